"""The layers: imports only point down, and the method runs with nothing but torch and numpy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["pipelines", "tasks", "schemas", "deca_world", "deca_core"]  # from the top


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down(layer):
    above = set(LAYERS[: LAYERS.index(layer)])
    for path in (ROOT / layer).rglob("*.py"):
        assert not imported(path) & above, path


METHOD = {"deca_core", "torch", "numpy", "scipy", "safetensors", "PIL", "numba"}
PACKAGES = {  # beside the standard library
    "deca_core": METHOD,
    "deca_world": METHOD - {"safetensors"} | {"deca_world"},
    "examples": {"deca_core", "torch", "numpy", "PIL"},
}
OPTIONAL = {  # inside a function, or in a module that is only imported inside one
    "deca_core/raster/__init__.py": {"pytorch3d"},
    "deca_core/raster/triton_kernel.py": {"triton"},
    "deca_core/encoder.py": {"torchvision"},  # the MobileNet backbone
    "deca_core/perceptual.py": {"torchvision"},  # ImageNet weights of VGG19
}


@pytest.mark.parametrize("package", PACKAGES)
def test_method_world_and_example_import_these_packages_and_no_others(package):
    for path in (ROOT / package).rglob("*.py"):
        optional = OPTIONAL.get(path.relative_to(ROOT).as_posix(), set())
        found = imported(path) - sys.stdlib_module_names
        assert found <= PACKAGES[package] | optional, path
        at_import = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [node for node in at_import if "torchvision" in ast.unparse(node)], path


def test_the_readme_of_the_method_lists_every_module():
    """The reading order: no module is missing, none is listed that is gone; the generator of the head is one entry."""
    core = ROOT / "deca_core"
    listed = set(re.findall(r"^\| `([\w/]+\.py|[\w/]+/)` \|", (core / "README.md").read_text(), flags=re.MULTILINE))
    there = {path.relative_to(core).as_posix() for path in core.rglob("*.py") if path.name != "__init__.py"}
    there.add("raster/__init__.py")  # where `rasterize` is
    there = {"assets/head/" if path.startswith("assets/head/") else path for path in there}
    assert listed == there


ROOMS = sorted(path.parent.name for path in (ROOT / "tasks").glob("*/__init__.py"))


def allowed(room: str) -> set[str]:
    """The rooms that a room's docstring says it may import."""
    text = ast.get_docstring(ast.parse((ROOT / "tasks" / room / "__init__.py").read_text()))
    (line,) = re.findall(r"^May import: (.+)\.$", text, flags=re.MULTILINE)
    return set() if line == "nothing of tasks" else set(line.split())


def rooms_of(path: Path) -> set[str]:
    """The rooms of tasks/ that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {module.split(".")[1] for module in modules if module.startswith("tasks.")}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_docstring_says_and_nothing_else(room):
    """A new arrow fails here; so does one that nothing needs any more."""
    arrows = {other: path for path in (ROOT / "tasks" / room).rglob("*.py") for other in rooms_of(path) - {room}}
    assert set(arrows) == allowed(room), arrows


def test_arrows_between_rooms_make_no_cycle():
    TopologicalSorter({room: allowed(room) for room in ROOMS}).prepare()  # raises CycleError


def test_every_module_of_tasks_lies_in_a_room():
    assert [path.name for path in (ROOT / "tasks").glob("*.py")] == ["__init__.py"]


ON_RAY = {"ray_cluster.py", "engine.py", "shuffle.py", "ranks.py"}  # the cluster, units, the global shuffle, training


def test_prefect_stays_in_the_flows_and_ray_in_four_rooms():
    for path in [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]:
        if path.name != "flows.py":
            assert "prefect" not in imported(path), path
        if path.name not in ON_RAY:
            assert "ray" not in imported(path), path


def test_tests_benchmarks_and_tools_do_not_import_one_another():
    """Tests guard the product; benchmarks and tools run beside it, and nothing imports them."""
    apart = {"tests", "benchmarks", "tools"}
    for place in [*LAYERS, *apart]:
        for path in (ROOT / place).rglob("*.py"):
            assert not imported(path) & (apart - {place}), path


BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in {"scipy", "numba", "PIL", "safetensors", "pyarrow", "pydantic", "torchvision", "ray", "prefect"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
import numpy as np
import torch
from deca_core import DECA
from tests.deca_core.conftest import mini_bundle
from tests.golden import load

model = DECA(mini_bundle(load("mini_head.npz")))
with torch.inference_mode():
    codes = model.encode(torch.rand(1, 3, 224, 224))
    print(model.render(codes, model.decode(codes), size=32, backend="reference").images.shape)
"""


def test_the_method_runs_with_torch_and_numpy_alone():
    script = BARE.replace("from tests.deca_core.conftest import mini_bundle", _mini_bundle_source())
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[1, 3, 32, 32]" in done.stdout


def _mini_bundle_source() -> str:
    """`mini_bundle` without the pytest around it."""
    text = (ROOT / "tests/deca_core/conftest.py").read_text()
    body = text[text.index("def mini_bundle") : text.index("@pytest.fixture")]
    return "from deca_core.assets.bundle import AssetBundle\n" + body
