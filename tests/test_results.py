"""Rows of every flow against golden ones: rows of another meaning need another result version.

tests/golden_rows/<flow>.json stores the version, the hashes of the models and, by row, a description of each column:
numbers, texts, and a few moments of long lists, images and maps. Where a change of the rows is meant, raise the flow's
number in schemas/results.py and regenerate its file; after a change of models, which a plan stores by their hashes,
only regenerate it:

    python -m tests.test_results reconstruct
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deca_core.augment import PLAIN
from pipelines.animate import animate
from pipelines.evaluate import evaluate
from pipelines.export import export
from pipelines.ingest import ingest
from pipelines.places import annotations_of, faces_of
from pipelines.reconstruct import reconstruct
from pipelines.synth import synth
from schemas.animate import AnimateConfig
from schemas.evaluate import EvaluateConfig
from schemas.export import ExportConfig
from schemas.ingest import IngestConfig
from schemas.reconstruct import ReconstructConfig
from schemas.results import RESULT_VERSIONS
from schemas.world import SynthConfig
from tasks.training.datasets import ShardSource
from tasks.training.order import BatchPlan
from tasks.training.samples import Samples
from tasks.units.commits import committed_parts
from tasks.units.plan import load_plan
from tests.pipelines.conftest import write_photos

GOLDEN = Path(__file__).parent / "golden_rows"
SHORT = 16  # numbers that a list may have to be stored whole
TOLERANCE = 2e-3  # of a column's largest number: processors round differently, meanings differ by more
# Names and bytes that differ from machine to machine without a change of meaning.
MODELS = {"bundle", "checkpoint"}  # of the hashes in a plan: the others are of annotators, pinned by the lock
VOLATILE = {"bytes", "sha256", "seconds"}
OF_PLACES = {"face_id", "animation_id"}  # of an animation: hashes of the places of its identity and motion

MARK = re.compile(r"-[0-9a-f]{8}(?=\.)")  # of a plan in the name of a part

Row = dict[str, Any]


# --- the flows --------------------------------------------------------------------------------------------------------


class Flows:
    """Each flow once on the astronaut, a public-domain photograph, or on two images of the world."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, function: Callable[[Any], Any], kind: Any, dest: str, **values: Any) -> str:
        """The folder that a flow writes to under `dest`, run in this process."""
        place = self.folder / dest
        if not place.exists():
            function(kind.model_validate({"dest": str(place), "ray": {"workers": 0}, **values}))
        return str(place)

    def photos(self) -> str:
        place = self.folder / "photos" / "ada"  # a folder a subject
        if not place.exists():
            place.parent.mkdir()
            write_photos(place)
        return str(place.parent)

    def synth(self) -> str:
        return self.world() + "/truth.parquet"

    def world(self) -> str:
        world = {"identities": 1, "images_per_identity": 2, "size": 160, "seed": 8, "max_yaw": 20.0}
        return self.run(synth, SynthConfig, "world", **world)

    def ingest(self) -> str:
        return annotations_of(self.people())

    def people(self) -> str:
        values = {"source": self.photos(), "identity": {"pattern": "{identity}/{image}"}, "shards": {"min_images": 1}}
        return self.run(ingest, IngestConfig, "people", **values)

    def samples(self) -> list[Row]:
        source = ShardSource(faces_of(self.people()), "train")
        batch = next(iter(Samples(source, BatchPlan(subjects=1, images=2), PLAIN)))
        names = ("images", "landmarks", "masks")
        return [{name: described(getattr(batch, name)[row].numpy()) for name in names} for row in range(len(batch))]

    def reconstruct(self) -> str:
        values = {"source": self.photos(), "precision": "fp32", "contact_sheet_rows": 0}
        return self.run(reconstruct, ReconstructConfig, "heads", **values)

    def export(self) -> str:
        values = {"source": self.reconstruct(), "formats": ("glb", "npz")}
        return self.run(export, ExportConfig, "meshes", **values)

    def animate(self) -> str:
        photo = f"{self.photos()}/ada/0.jpg"
        values = {"identity": (photo,), "expression": ("smile",), "outputs": ("codes", "displacement"), "fps": 4.0}
        return self.run(animate, AnimateConfig, "moving", **values)

    def evaluate(self) -> str:
        return self.run(evaluate, EvaluateConfig, "figures", source=self.world())


# --- descriptions of rows ---------------------------------------------------------------------------------------------


def rows_of(dest: str) -> list[Row]:
    """Return every committed row of a dataset, described, with its files."""
    found = []
    for row in pq.read_table(committed_parts(dest)).to_pylist():
        files = [Path(dest, name) for name in row.get("files") or ()]
        left_out = VOLATILE | OF_PLACES if "animation_id" in row else VOLATILE
        kept = {name: described(value) for name, value in row.items() if name not in left_out}
        found.append(kept | {f"file{path.suffix}": described_file(path) for path in files})
    return found


def described(value: Any) -> Any:
    """Return a value of a row as JSON, the same on every machine but for rounding."""
    if isinstance(value, dict):
        return {name: described(inner) for name, inner in value.items()}
    if isinstance(value, bytes):
        return described(np.asarray(Image.open(io.BytesIO(value))))
    if isinstance(value, str):
        return MARK.sub("", Path(value).name)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, list) and value and isinstance(value[0], str | bytes | dict):
        return [described(inner) for inner in value]
    numbers = np.asarray(value, np.float64).ravel()
    if numbers.size <= SHORT:
        return rounded(numbers)
    parts = [part.mean() for part in np.array_split(numbers, SHORT)]
    return {"size": numbers.size, "parts": rounded(parts), "mean and spread": rounded([numbers.mean(), numbers.std()])}


def rounded(numbers: Iterable[float]) -> list[float]:
    return [float(f"{number:.5g}") for number in numbers]


def described_file(path: Path) -> Any:
    """Return the arrays of an NPZ; of a GLB names and counts."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: described(arrays[name].tolist()) for name in sorted(arrays.files)}
    data = path.read_bytes()
    head = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    return {
        "nodes": [node.get("name") for node in head["nodes"]],
        "targets": [mesh.get("extras", {}).get("targetNames") for mesh in head["meshes"]],
        "counts": [accessor["count"] for accessor in head["accessors"]],
    }


def differences(golden: Any, now: Any, where: str = "") -> list[str]:
    """Return where two descriptions differ by more than rounding."""
    if isinstance(golden, dict) and isinstance(now, dict):
        names = sorted({*golden, *now})
        return [text for name in names for text in differences(golden.get(name), now.get(name), f"{where}.{name}")]
    if isinstance(golden, list) and isinstance(now, list) and len(golden) == len(now):
        if golden and all(isinstance(one, int | float) for one in (*golden, *now)):
            left, right = np.array(golden), np.array(now)
            close = np.abs(left - right) <= TOLERANCE * max(np.abs(left).max(), 1e-3)
            return [] if (close | np.isnan(left) & np.isnan(right)).all() else [f"{where}: {golden} -> {now}"]
        pairs = zip(golden, now, strict=True)
        return [text for index, (a, b) in enumerate(pairs) for text in differences(a, b, f"{where}[{index}]")]
    if isinstance(golden, float) and isinstance(now, float):
        return differences([golden], [now], where)
    return [] if golden == now else [f"{where}: {golden} -> {now}"]


# --- the test ---------------------------------------------------------------------------------------------------------


@cache
def flows() -> Flows:
    return Flows(Path(tempfile.mkdtemp(prefix="golden-rows-")))


def test_a_change_differs_from_rounding() -> None:
    row = {"pose": [0.1, -0.2], "size": 3.0, "name": "a.jpg", "list": [{"x": [1.0, 2.0]}], "none": None}
    assert differences(row, {**row, "pose": [0.1001, -0.2001], "list": [{"x": [1.001, 2.0]}]}) == []
    for change in ({"pose": [0.11, -0.2]}, {"size": 4.0}, {"name": "b.jpg"}, {"list": []}, {"none": 0.0}, {"new": 1}):
        assert len(differences(row, {**row, **change})) == 1, change


def record_of(flow: str) -> dict[str, Any]:
    made = getattr(flows(), flow)()
    models = load_plan(made).record.weights if isinstance(made, str) else {}
    return {
        "version": RESULT_VERSIONS[flow],
        "models": {name: sha for name, sha in models.items() if name in MODELS},
        "rows": rows_of(made) if isinstance(made, str) else made,
    }


@pytest.mark.slow
@pytest.mark.parametrize("flow", RESULT_VERSIONS)
def test_rows_mean_what_their_version_says(flow: str) -> None:
    golden, now = json.loads((GOLDEN / f"{flow}.json").read_text()), record_of(flow)
    assert golden["version"] == now["version"], f"regenerate its rows: python -m tests.test_results {flow}"
    assert golden["models"] == now["models"], f"other models: regenerate its rows: python -m tests.test_results {flow}"
    changed = differences(golden["rows"], now["rows"])
    assert not changed, (
        f"rows of {flow} changed. Not meant: find out why. Meant: raise RESULT_VERSIONS[{flow!r}], say in "
        f"RESULT_CHANGES what changed, then: python -m tests.test_results {flow}\n" + "\n".join(changed[:20])
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        (GOLDEN / f"{name}.json").write_text(json.dumps(record_of(name)).replace('"rows": [', '"rows": [\n') + "\n")
