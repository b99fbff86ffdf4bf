"""Help, argument errors and status import none of the heavy libraries."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.test_cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchvision", "ray", "prefect", "pandas", "matplotlib", "scipy", "numba", "sklearn", "faiss"}
# Runs commands in a row and reports of each its exit code and which of HEAVY are imported by then.
SCRIPT = """
import contextlib, io, json, sys
from pipelines import cli
for command in json.loads(sys.argv[1]):
    sys.argv = ["deca", *command]
    printed = io.StringIO()
    for console in (cli.console, cli.errors):
        console.file, console.width = printed, 400
    with contextlib.redirect_stdout(printed):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
    found = [name for name in json.loads(sys.stdin.readline()) if name in sys.modules]
    print(json.dumps([code, found, printed.getvalue()]), file=sys.__stdout__, flush=True)
"""


def run(*commands: tuple[object, ...]) -> list[tuple[int, list[str], str]]:
    """(exit code, what of HEAVY was imported so far, what it printed) of each command, in one process."""
    listed = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, listed],
        input=f"{json.dumps(sorted(HEAVY))}\n" * len(commands),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert not done.returncode, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_help_imports_nothing_heavy():
    commands = [("--help",), *((*command.split(), "--help") for command in COMMANDS)]
    for code, heavy, printed in run(*commands):
        assert (code, heavy) == (0, [])
        assert "Usage" in printed


def test_status_and_verify_import_nothing_heavy(tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(ROOT / "tests" / "schema_1" / "tiny", out)
    migrated, status, verified, nowhere = run(
        ("migrate", out), ("status", out), ("verify", out), ("status", tmp_path / "none")
    )
    assert migrated[0] == 0, migrated[2]
    assert status[0] == 2, status[2]
    assert "Try them once more" in status[2]
    assert verified[0] == 0, verified[2]
    assert nowhere[0] == 1
    assert "no plan at" in nowhere[2]
    assert nowhere[1] == []  # so the others imported nothing either


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(b"never read")
    return tmp_path / "photo.jpg"


def test_errors_in_arguments_import_nothing_heavy(photo, tmp_path):
    out, none = tmp_path / "out", tmp_path / "none"
    cases = {
        ("reconstruct", photo, out, "--colour"): "No such option",
        ("reconstruct", photo, out, "--set", "batch_size=0"): "batch_size",
        ("reconstruct", photo): "DEST is missing",
        ("reconstruct", none, out): f"{none} does not exist",
        ("reconstruct", f"{none}/*.jpg", out): f"{none} does not exist",
        ("reconstruct", photo, "/proc/deca"): "/proc/deca",
        ("reconstruct", photo, out, "--checkpoint", none): "A checkpoint is a folder",
        ("reconstruct", photo, out, "--bundle", none): "A bundle is a folder",
        ("reconstruct", photo, out, "--resume"): "no plan at",
        ("reconstruct", none, "--show"): f"{none} does not exist",
        ("reconstruct", tmp_path, "--show"): "--show takes one image",
        ("fit", none, out): f"{none} does not exist",
        ("plan", none, out): f"{none} does not exist",
        ("plan", photo, out, "--checkpoint", none): "A checkpoint is a folder",
        ("ingest", none, out): f"{none} does not exist",
        ("ingest", photo, out, "--resume"): "no plan at",
        ("train", "world", out, "--start", none): "A checkpoint is a folder",
        ("evaluate", photo, out, "--checkpoint", none): "A checkpoint is a folder",
        ("evaluate", photo, out, "--set", f"compare.a={none}"): "A checkpoint is a folder",
        ("export", photo, out, "--checkpoint", none): "A checkpoint is a folder",
        ("retry", none): "no plan at",
        ("report", none): "no plan at",
        ("gc", none): "holds no faces",
        ("verify", none): "no plan at",
    }
    for command, (code, heavy, printed) in zip(cases, run(*cases), strict=True):
        assert (code, heavy) == (1, []), (command, printed)
        assert cases[command] in printed, (command, printed)
        assert printed.count("\n") == 1
    assert not list(tmp_path.rglob("_*"))  # no plan, no run
