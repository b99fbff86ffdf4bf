"""The documentation against the program: commands parse, cheap ones run, links resolve, quoted errors exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.main import get_command

from pipelines import cli
from schemas import columns

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deca_core").rglob("*.md")])
SHELL = re.compile(r"^( *)```sh\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^( *)```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4,}(deca .+)$", re.MULTILINE)
QUOTED = re.compile(r"`(deca [^`]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# Commands of the pages that are run, in this order, in a folder with photos/ of one procedural subject; and options
# that make them small.
RUN = {
    "deca assets head bundle/": "",
    "deca assets show bundle/": "",
    "deca plan photos/ out/": "--set ray.workers=0 --set precision=fp32",
    "deca fit photos/ heads/": "--workers 0",
    "deca status heads/": "",
    "deca verify heads/": "",
    "deca report heads/": "",
}


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Line(NamedTuple):
    """A command of a page; one quoted in running text may omit arguments."""

    text: str
    quoted: bool


def commands(page: Path) -> list[Line]:
    """Every `deca` command: of shell blocks, of indented lines, and in running text, without comments and synopses."""
    text = page.read_text()
    found = [line.strip() for _, block in SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found += [line.strip() for line in INDENTED.findall(text)]
    lines = [Line(part, False) for line in found for part in re.split(r"&&|[*]  ", re.sub(r"\s+#.*$", "", line))]
    lines += [Line(line, True) for line in QUOTED.findall(" ".join(text.split()))]
    return [
        Line(line.text.strip(), line.quoted)
        for line in lines
        if line.text.strip().startswith("deca ") and not re.search(r"\[--|\||\.\.\.", line.text)
    ]


@cache
def program() -> typer.main.TyperGroup:
    return get_command(cli.app)


def parse(line: str) -> str:
    """Return typer's complaint about a command's names, options, choices or arguments, or an empty string."""
    words = shlex.split(line)[1:]
    group = program()
    context = group.make_context("deca", [words[0]], resilient_parsing=True)
    command = group.get_command(context, words.pop(0))
    while isinstance(command, typer.core.TyperGroup):
        command = command.get_command(context, words.pop(0))
    if command is None:
        return "no such command"
    try:
        command.make_context(command.name, words, parent=context)
    except typer.TyperException as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_parse(page):
    for line in commands(page):
        complaint = parse(line.text)
        lacks = line.quoted and "Missing parameter" in complaint  # named in running text
        assert lacks or not complaint, f"{relative(page)}: {line.text}: {complaint}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_modules_and_targets_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = page.read_text()
    for line in re.findall(r"python -m ((?:benchmarks|tools|tests|pipelines)[a-z_.]*)([^`\n#]*)", text):
        source = ROOT / f"{line[0].replace('.', '/')}.py"
        source = source if source.is_file() else source.with_suffix("") / "__main__.py"
        assert source.is_file(), f"{relative(page)}: {line[0]}"
        for option in re.findall(r"--[a-z][a-z-]+", line[1]):
            assert option in source.read_text(), f"{relative(page)}: {line[0]} has no {option}"
    for target in re.findall(r"`make ([a-z-]+)", text) + re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, f"{relative(page)}: make {target}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_resolve(page):
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{relative(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{relative(page)}: {link}"


def test_the_index_names_every_page():
    linked = {(ROOT / "docs" / link).resolve() for link in LINK.findall((ROOT / "docs/README.md").read_text())}
    pages = {page for page in (ROOT / "docs").glob("*.md")} | set((ROOT / "docs/howto").glob("*.md"))
    assert pages - {ROOT / "docs/README.md"} <= linked


def names_of(path: Path) -> set[str]:
    """Classes, functions and constants of a module, methods as Class.method."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_code_that_the_architecture_names_exists():
    """`folder/path.py` and `folder/path.py:Class.method`; `path.py:name` without a folder is of tasks/units."""
    text = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)(?::([A-Za-z_.]+))?`", text)
    named += [(f"tasks/units/{file}", name) for file, name in re.findall(r"`([a-z_]+\.py):([A-Za-z_.]+)`", text)]
    for file, name in named:
        assert (ROOT / file).is_file(), file
        assert not name or name in names_of(ROOT / file), f"{file} has no {name}"
    assert {f"eq. {number}" for number in range(1, 16)} <= set(re.findall(r"eq\. \d+", text))
    for room in (ROOT / "tasks").glob("*/__init__.py"):
        assert f"| `{room.parent.name}` |" in text, f"no room {room.parent.name}"


# --- errors by their text ---------------------------------------------------------------------------------------------


@cache
def messages() -> list[str]:
    """Every string of the code, with NUL for what is filled in."""
    found = []
    for layer in ("deca_core", "schemas", "tasks", "pipelines"):
        for path in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return [" ".join(text.split()) for text in found]


@cache
def class_names() -> set[str]:
    sources = [path.read_text() for layer in ("tasks", "deca_core") for path in (ROOT / layer).rglob("*.py")]
    return {name for text in sources for name in re.findall(r"^class (\w+)", text, re.MULTILINE)}


def test_quoted_errors_exist_in_the_code():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quarantine = page[page.index("## In quarantine") : page.index("## In training")]
    rows = re.findall(r"^\| (`.+?) \|", page.replace(quarantine, ""), re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        for quoted in re.findall(r"`([^`]+)`", row):
            pieces = [re.escape(piece.strip()) for piece in quoted.split("...") if piece.strip()]
            pattern = re.compile(".*".join(pieces))
            assert any(pattern.search(text) for text in messages()), f"no error says {quoted!r}"
    for row in re.findall(r"^\| (`.+?) \|", quarantine, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", row):
            assert name in class_names() or name in columns.meaning("quarantine", "stage"), name


# --- pages from schemas -----------------------------------------------------------------------------------------------


def test_dataset_pages_are_those_of_the_schemas(tmp_path):
    """The generator refuses words about columns that no schema has."""
    command = [sys.executable, "-m", "tools.dataset_pages", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    folder, again = ROOT / "docs/datasets", "run: python -m tools.dataset_pages docs/datasets"
    assert {path.name for path in folder.iterdir()} == {path.name for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        assert (folder / path.name).read_text() == path.read_text(), f"docs/datasets/{path.name}: {again}"


# --- commands that run ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cheap_commands_run(tmp_path, monkeypatch, capsys):
    from deca_core.assets import procedural_head
    from deca_world import Limits, World

    written = {line.text for page in PAGES for line in commands(page)}
    assert set(RUN) <= written, f"no page has {set(RUN) - written}"
    (tmp_path / "photos").mkdir()
    world = World(procedural_head())
    subject = world.subject(seed=5, index=1)
    photograph = world.photograph(subject, world.shot(subject, 0, Limits(yaw=(0.0, 10.0), occluders=False)), 256)
    (tmp_path / "photos" / "one.jpg").write_bytes(photograph.jpeg())
    monkeypatch.chdir(tmp_path)
    for line, smaller in RUN.items():
        monkeypatch.setattr(sys, "argv", shlex.split(f"{line} {smaller}"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, f"{line}\n{capsys.readouterr()}"
