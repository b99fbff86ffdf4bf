"""The image recipe: what a linter says, and that it copies and installs what is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "deploy/Dockerfile"


def linter() -> str:
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if not found:
        pytest.skip("hadolint is not installed")
    return found


def lint(text: str) -> subprocess.CompletedProcess[str]:
    command = [linter(), "--no-color", "-"]
    return subprocess.run(command, input=text, text=True, capture_output=True, check=False)


def test_the_linter_has_nothing_to_say():
    done = lint(RECIPE.read_text())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("ADD some-folder /some-folder", "DL3020"),
        ("RUN cd /tmp && pip install torch", "DL3013"),
        ("RUN sudo true", "DL3004"),
        ('RUN if [ "$a" == b ]; then true; fi', "SC3014"),
    ],
)
def test_the_linter_finds_what_it_is_for(line, rule):
    assert rule in lint(f"{RECIPE.read_text()}\n{line}\n").stdout


def copied() -> list[str]:
    """What the recipe copies from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", RECIPE.read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_what_it_copies_is_there_and_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == kept
    for source in copied():
        assert (ROOT / source).exists(), source


def test_the_flows_that_are_deployed_lie_in_it():
    for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        assert entry["entrypoint"].partition("/")[0] in copied()


def test_packages_come_by_hash_and_the_user_is_not_root():
    text = RECIPE.read_text()
    assert "--require-hashes" in text
    assert re.findall(r"^USER (\d+):", text, re.MULTILINE)[-1] != "0"
    assert not re.search(r"https?://|index-url|ARG .*(KEY|TOKEN|PASSWORD)", text)
