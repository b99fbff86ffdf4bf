"""Four datasets that know each other, made by the real engine of pictures that show nobody: annotations, faces, heads
with a file a row and a consensus, exports with files beside the part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.engine import RayConfig, UnitsConfig
from schemas.faces import ASSIGNMENTS_SCHEMA
from schemas.ledger import Item, Quarantined, StoredFile
from schemas.parquet import fixed_array, fixed_field
from tasks.heads.consensus import make_consensus
from tasks.people.face_rows import face_items, read_rows
from tasks.people.shard import publish
from tasks.people.versions import open_faces
from tasks.store.storage import Store
from tasks.units.commit import UnitOutput
from tasks.units.commits import committed_parts
from tasks.units.engine import run_units
from tasks.units.plan import Plan
from tasks.units.rounds import open_or_build
from tests.tasks.annotated import FaceWorker, add_photos, settings

PERSON, PICTURES, OTHERS = "ada", 20, ("bob", "cyd")
HERE, UNITS = RayConfig(workers=0), UnitsConfig(items_per_unit=6)
BUNDLE = SimpleNamespace(hash="head", shape_basis=np.random.default_rng(0).standard_normal((50, 3, 100)))

HEADS = pa.schema(
    [
        pa.field("face_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("identity_id", pa.string()),
        pa.field("displacement_file", pa.string(), nullable=False),
        fixed_field("shape", (100,)),
    ],
    metadata={"schema_version": "1", "dataset": "reconstructions"},
)
EXPORTS = pa.schema(
    [pa.field("face_id", pa.string(), nullable=False), pa.field("files", pa.list_(pa.string()), nullable=False)],
    metadata={"schema_version": "1", "dataset": "exports"},
)


@dataclass
class HeadWorker:
    """A row and a file a face of faces/; every seventh face of a unit is quarantined where `picky`."""

    dest: str
    picky: bool = False

    def process(self, items: Sequence[Item]) -> UnitOutput:
        rows, files, bad = [], [], list[Quarantined]()
        for number, (item, row) in enumerate(read_rows(items)):
            if isinstance(row, Exception) or (self.picky and number == 5 and not item.attempts):
                bad.append(Quarantined.of(item, "encode", "EncodeError", "not finite"))
                continue
            face = row.columns["face_id"]
            name = f"files/{face[:2]}/{face}.png"
            size, sha256 = Store(self.dest).write(name, b"map of " + face.encode())
            files.append(StoredFile(file=name, bytes=size, sha256=sha256))
            shape = np.random.default_rng(int(face[:8], 16)).standard_normal(100).astype(np.float32)
            rows.append(
                {**{key: row.columns[key] for key in HEADS.names[:4]}, "displacement_file": name, "shape": shape}
            )
        shapes = np.array([row["shape"] for row in rows], np.float32).reshape(-1, 100)
        columns = [pa.array([row[key] for row in rows], pa.string()) for key in HEADS.names[:-1]]
        table = pa.table([*columns, fixed_array(HEADS.field("shape"), shapes)], schema=HEADS)
        return UnitOutput(table, bad, files)


@dataclass
class ExportWorker:
    """Two files a face, named by the number of its row."""

    dest: str

    def process(self, items: Sequence[Item]) -> UnitOutput:
        rows, files = [], []
        for item in items:
            names = [f"files/{item.index:05d}.{kind}" for kind in ("glb", "obj")]
            for name in names:
                size, sha256 = Store(self.dest).write(name, b"mesh of " + item.uri.encode())
                files.append(StoredFile(file=name, bytes=size, sha256=sha256))
            rows.append({"face_id": item.uri.rpartition("/")[2], "files": names})
        return UnitOutput(pa.Table.from_pylist(rows, schema=EXPORTS), [], files)


def photographs(folder: Path) -> Path:
    """Twenty pictures of the person and six of others, two faces on each."""
    add_photos(folder / PERSON, range(PICTURES))
    for name in OTHERS:
        add_photos(folder / name, range(100, 103), content=name.encode())
    return folder


def annotate(folder: Path) -> Plan:
    source, dest = str(folder / "photos"), str(folder / "people/annotations")
    plan = open_or_build(
        dest, source, config={"flow": "ingest"}, weights={"detector": "0a1b"}, units=UNITS, mode="extend"
    )
    run_units(plan, FaceWorker, HERE)
    return plan


def assignments(annotations: str) -> pa.Table:
    """The first face of a picture is who its folder says, the second one a passer-by; one of those is left out."""
    table = pa.concat_tables(
        pq.read_table(uri, columns=["face_id", "source_uri"]) for uri in committed_parts(annotations)
    )
    rows = []
    for row in table.sort_by("face_id").to_pylist():
        known, folder = row["face_id"].endswith("-00"), row["source_uri"].split("/")[-2]
        out = not known and row["source_uri"].endswith("00100.jpg")
        who = folder if known else f"nobody-{row['face_id']}"
        rows.append((row["face_id"], who, "label", "sharpness" if out else None, None))
    return pa.Table.from_pylist(
        [dict(zip(ASSIGNMENTS_SCHEMA.names, row, strict=True)) for row in rows], schema=ASSIGNMENTS_SCHEMA
    )


def group(folder: Path) -> bool:
    """Publish faces/ as an ingest does; whether that is a new version."""
    annotations, people = str(folder / "people/annotations"), folder / "people"
    return publish(str(people / "faces"), annotations, assignments(annotations), settings(people))[1]


def reconstruct(folder: Path, picky: bool = False) -> Plan:
    dest, faces = str(folder / "heads"), open_faces(str(folder / "people/faces"))
    config = {"flow": "reconstruct", "faces": faces.version.fingerprint}
    plan = open_or_build(dest, faces.dest, items=face_items(faces), config=config, units=UNITS)
    run_units(plan, partial(HeadWorker, dest, picky), HERE)
    return plan


def export(folder: Path) -> Plan:
    dest, heads = str(folder / "exports"), str(folder / "heads")
    ids = pa.concat_tables(pq.read_table(uri, columns=["face_id"]) for uri in committed_parts(heads))["face_id"]
    items = [Item(number, f"heads/{face}") for number, face in enumerate(ids.to_pylist())]
    plan = open_or_build(dest, "heads", items=items, config={"flow": "export"}, units=UNITS)
    run_units(plan, partial(ExportWorker, dest), HERE)
    return plan


def make(folder: Path) -> list[str]:
    """All four below `folder`; the names to erase from."""
    photographs(folder / "photos")
    annotate(folder)
    group(folder)
    reconstruct(folder, picky=True)
    make_consensus(str(folder / "heads"), BUNDLE)
    Store(folder / "heads").write("_report/contact_sheet.png", b"faces")
    Store(folder / "heads").write("_report/summary.json", b"{}")
    export(folder)
    return [str(folder / name) for name in ("people", "heads", "exports")]


def ids_of(folder: Path, person: str = PERSON) -> list[str]:
    """face_ids of a person, as the current assignments say."""
    files = [pq.read_table(path) for path in sorted((folder / "people/faces/index").glob("assignments-*"))]
    table = pa.concat_tables(files)
    return sorted(set(table.filter(pc.equal(table["identity_id"], person))["face_id"].to_pylist()))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the records of erasures, which hold the time."""
    files = [path for path in folder.rglob("*") if path.is_file() and "_erased/record-" not in str(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}
