"""No code of this tree executes what it reads: a rule over every source, beside ruff's own (S rules in pyproject.toml).

Ruff finds calls by their usual names; this also follows `from x import y as z`, asks torch.load for weights_only=True
and np.load for allow_pickle=False, and allows an unpickler in the inert reader alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("deca_core", "deca_world", "tasks", "schemas", "pipelines", "benchmarks", "tools", "tests")

# Calls that execute what they are given, or unpack it to wherever it says.
FORBIDDEN = {
    **dict.fromkeys(("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle._Unpickler"), "reads a pickle"),
    **dict.fromkeys(("cPickle.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"), "a pickle"),
    **dict.fromkeys(("joblib.load", "pandas.read_pickle", "shelve.open", "marshal.load", "marshal.loads"), "a pickle"),
    **dict.fromkeys(("eval", "exec", "builtins.eval", "builtins.exec", "code.interact", "runpy.run_path"), "runs text"),
    **dict.fromkeys(("os.system", "os.popen", "commands.getoutput", "subprocess.getoutput"), "runs a shell"),
    **dict.fromkeys(("subprocess.getstatusoutput", "asyncio.create_subprocess_shell"), "runs a shell"),
    **dict.fromkeys(("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"), "makes objects from YAML"),
    **dict.fromkeys(("shutil.unpack_archive", "tempfile.mktemp"), "writes to paths in the input"),
    **dict.fromkeys(("xml.etree.ElementTree.parse", "xml.dom.minidom.parse", "xml.sax.parse"), "expands entities"),
    **dict.fromkeys(("torch.hub.load", "torch.package.PackageImporter", "jinja2.Template"), "runs foreign code"),
}
UNPACKING = {"extractall", "extract"}  # of whatever object: archives are read by place, never unpacked
ARCHIVES = ("tarfile", "zipfile", "py7zr", "rarfile")
REQUIRED = {  # calls that are safe with one argument only
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
}
# Allowed calls, and why.
ALLOWED = {
    ("deca_core/assets/unpickle.py", "pickle._Unpickler"): "the inert reader is made of it: it finds only records",
    ("tests/deca_core/assets/test_unpickle.py", "pickle.loads"): "shows that the attacks work elsewhere",
    ("benchmarks/ledger.py", "pickle.load"): "records from a process of ours, as Ray hands them over",
    ("tests/hostile/test_fuzz.py", "pickle.loads"): "shows that the fuzz tests see an execution",
    ("tests/deca_core/export/in_blender.py", "exec"): "docs/export/drivers.py, inside Blender",
    ("tests/deca_core/export/test_gltf.py", "eval"): "formulas that are constants of ours",
    ("tests/test_docs_python.py", "exec"): "the Python of the documentation",
    ("tests/tasks/sources/test_images.py", "pickle.loads"): "our own error, over the way between processes",
}


def findings(source: str, mentions: bool = True) -> Iterator[tuple[int, str, str]]:
    """Yield (line, name, why not) for everything forbidden that a source calls or, with `mentions`, names.

    Tests may name what a hostile file would call: that is how they make one.
    """
    tree = ast.parse(source)
    names = dict(_imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _call(node, names)
        elif mentions and isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            called = _full(node, names)
            if called in FORBIDDEN:
                yield node.lineno, called, FORBIDDEN[called]


def _call(node: ast.Call, names: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    called = _full(node.func, names)
    if called in FORBIDDEN:
        yield node.lineno, called, FORBIDDEN[called]
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    shell = keywords.get("shell")
    if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
        yield node.lineno, f"{called}(shell=...)", "runs a shell"
    if called in REQUIRED:
        argument, wanted = REQUIRED[called]
        given = keywords.get(argument)
        if not (isinstance(given, ast.Constant) and given.value is wanted):
            yield node.lineno, called, f"needs {argument}={wanted}"
    if called == "jinja2.Environment":
        escapes = keywords.get("autoescape")
        if escapes is None or (isinstance(escapes, ast.Constant) and escapes.value is not True):
            yield node.lineno, called, "needs autoescape"
    unpacks = isinstance(node.func, ast.Attribute) and node.func.attr in UNPACKING
    if unpacks and set(ARCHIVES) & {name.partition(".")[0] for name in names.values()}:
        yield node.lineno, called or node.func.attr, "unpacks an archive"  # type: ignore[attr-defined]


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name in this file, full name) of everything imported anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of an expression with its imports resolved; empty for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


@cache
def findings_by_file() -> list[tuple[str, int, str, str]]:
    """Return (file, line, name, why not) for every finding of the tree."""
    found = []
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    for path in sorted(path for path in paths if "node_modules" not in path.parts):
        place = path.relative_to(ROOT).as_posix()
        for line, name, why in findings(path.read_text(), mentions=not place.startswith("tests/")):
            found.append((place, line, name, why))
    return found


def test_no_source_executes_what_it_reads() -> None:
    found = [one for one in findings_by_file() if (one[0], one[2]) not in ALLOWED]
    assert not found


def test_every_exception_is_still_needed() -> None:
    assert set(ALLOWED) <= {(place, name) for place, _, name, _ in findings_by_file()}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads as read\nread(b'')",
        "import pickle as p\nclass U(p.Unpickler): pass",
        "eval('1')",
        "map(exec, lines)",
        "from os import system\nsystem('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess as s\ns.Popen(c, shell=flag)",
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=False)",
        "from torch import load\nload(p, map_location='cpu')",
        "import numpy as np\nnp.load(p)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import yaml\nyaml.load(t, Loader=yaml.Loader)",
        "import tarfile\ntarfile.open(p).extractall(d)",
        "import zipfile\nwith zipfile.ZipFile(p) as z:\n    z.extract('a', d)",
        "import jinja2\njinja2.Environment(loader=loader)",
        "import shutil\nshutil.unpack_archive(p, d)",
        "def f():\n    from pandas import read_pickle\n    return read_pickle(p)",
    ],
)
def test_the_rule_finds_what_it_is_for(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p, weights_only=True)",
        "import numpy as np\nnp.load(p, allow_pickle=False)",
        "model.eval()",
        "import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import yaml\nyaml.safe_load(t)",
        "import pyarrow.compute as pc\npc.extract_regex(a, p)",
    ],
)
def test_the_rule_leaves_the_rest_alone(source: str) -> None:
    assert not list(findings(source))
