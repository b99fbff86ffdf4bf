"""The export worker: every format, one bad row, going on, parts that change, rows with and without their maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import trimesh
from PIL import Image
from pydantic import ValidationError

from deca_core.export import dense_mesh, rig_of
from pipelines.export import export
from schemas.export import ExportConfig, ExportSummary
from schemas.parquet import fixed_values, write_table
from tasks.heads.filters import FilterError
from tasks.heads.selection import HeadsError, model_for, read_heads
from tasks.models.outputs import encode_map, head_of
from tasks.store.storage import Store, hash_file
from tasks.units.commits import committed_parts, read_commits, standing_quarantine
from tasks.units.plan import PlanConflict, load_plan
from tasks.units.verify import verify
from tests.deca_core.export.test_gltf import Read

ALL = ("glb", "obj", "ply", "npz")


def run(source: str, dest: Path, **changes: object) -> ExportSummary:
    values = {"source": source, "dest": str(dest), "ray": {"workers": 0}, "units": {"items_per_unit": 3}, **changes}
    return export(ExportConfig.model_validate(values))


def folder_of(dest: Path, face_id: str) -> Path:
    return dest / "files" / face_id[:2] / face_id


def copied(heads: str, tmp_path: Path, change: Callable[[pa.Table], pa.Table], unit: int = 0) -> str:
    """A copy of the reconstructions with one part changed, and committed as if it had always been so."""
    copy = tmp_path / "heads"
    if not copy.exists():
        shutil.copytree(heads, copy)
    commit = next(one for one in read_commits(str(copy)) if one.unit == unit)
    path = copy / str(commit.part)
    table = change(pq.read_table(path))
    write_table(table, path)
    size, sha256 = hash_file(path)
    plan = load_plan(str(copy))
    record = commit.model_copy(update={"bytes": size, "sha256": sha256})
    Store(str(copy)).write(plan.commit_name(unit), record.model_dump_json().encode())
    return str(copy)


def replaced(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


@pytest.fixture(scope="module")
def done(stored_heads: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("exports")
    summary = run(stored_heads, dest, formats=ALL, dense=True, ids=["person-000"])
    assert (summary.outcome, summary.heads, summary.files) == ("complete", 2, 20)
    assert summary.colours == {"picture": 2}
    return dest


def test_rows_name_files_that_are_there_and_verified(stored_heads, done):
    table = pq.read_table(committed_parts(str(done)))
    assert table["face_id"].to_pylist() == ["000000-00", "000001-00"]
    assert table["identity_id"].to_pylist() == ["person-000"] * 2
    for row in table.to_pylist():
        assert sum((done / name).stat().st_size for name in row["files"]) == row["bytes"]
        assert row["source_uri"].startswith(f"{stored_heads}/part-")
        assert row["source_uri"].endswith(f"#head[{row['face_id']}]")
    checked = verify(str(done))
    assert (checked.ok, checked.leftovers) == (True, [])
    victim = folder_of(done, "000000-00") / "head.mtl"
    good = victim.read_bytes()
    victim.write_bytes(good + b"#")
    assert not verify(str(done)).ok
    victim.write_bytes(good)


def test_files_hold_the_stored_head(stored_heads, done):
    found = read_heads(stored_heads, ["000001-00"])
    model = model_for(stored_heads)
    displacement = torch.from_numpy(fixed_values(found.table, "displacement").copy())
    with torch.inference_mode():
        out = head_of(model, found.codes, displacement)
        dense = dense_mesh(model, out)
    folder = folder_of(done, "000001-00")
    again = trimesh.load(folder / "dense.obj", process=False, maintain_order=True)
    assert np.abs(again.vertices - dense.vertices).max() < 1e-6
    posed = out.vertices[0].numpy()
    glb = Read(folder / "head.glb")
    assert np.abs(glb.vertices() - posed[rig_of(model.bundle).split.vertex]).max() < 1e-4
    assert glb.gltf.scenes[0].extras["face_id"] == "000001-00"
    with np.load(folder / "head.npz", allow_pickle=False) as arrays:
        assert np.abs(arrays["vertices"] - posed).max() < 1e-7
        assert np.abs(arrays["dense_vertices"] - dense.vertices).max() < 1e-7
    assert len(trimesh.load(folder / "dense.ply", process=False).vertices) == len(dense.vertices)
    assert Image.open(folder / "displacement.png").mode == "I;16"


def test_again_there_is_nothing_to_do_and_a_lost_unit_comes_back_the_same(stored_heads, tmp_path):
    asked = {"formats": ["glb", "obj", "npz"], "ids": ["person-001"], "units": {"items_per_unit": 2}}
    run(stored_heads, tmp_path, **asked)
    assert run(stored_heads, tmp_path, **asked).units_run == 0
    before = {path.name: path.read_bytes() for path in folder_of(tmp_path, "001002-00").iterdir()}
    Path(tmp_path, load_plan(str(tmp_path)).commit_name(1)).unlink()
    shutil.rmtree(folder_of(tmp_path, "001002-00"))
    again = run(stored_heads, tmp_path, **asked)
    assert (again.units_run, again.heads) == (1, 3)
    assert {path.name: path.read_bytes() for path in folder_of(tmp_path, "001002-00").iterdir()} == before
    with pytest.raises(PlanConflict, match="formats"):
        run(stored_heads, tmp_path, **{**asked, "formats": ["npz"]})
    with pytest.raises(PlanConflict, match="4 added"):
        run(stored_heads, tmp_path, **{**asked, "ids": None})
    grown = run(stored_heads, tmp_path, **{**asked, "ids": None, "existing": "extend"})
    assert (grown.heads, grown.units_skipped, verify(str(tmp_path)).ok) == (7, 2, True)


def test_a_bad_row_stays_alone_and_a_retry_heals_it(stored_heads, tmp_path):
    def spoil(table: pa.Table) -> pa.Table:
        codes = fixed_values(table, "exp").copy()
        codes[1, 0] = np.nan
        field = table.schema.field("exp")
        return replaced(table, "exp", pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), type=field.type))

    heads = copied(stored_heads, tmp_path, spoil)
    summary = run(heads, tmp_path / "out", where="identity_id != 'person-002'")
    assert (summary.outcome, summary.heads, summary.quarantined) == ("partial", 4, {"decode": 1})
    [lost] = standing_quarantine(str(tmp_path / "out"))
    assert lost.uri.endswith("#head[000001-00]")
    assert "not finite" in lost.message


def test_a_recomputed_part_is_refused_until_it_is_planned_again(stored_heads, tmp_path):
    heads = copied(stored_heads, tmp_path, lambda table: table)
    run(heads, tmp_path / "out", formats=["npz"])
    plan = load_plan(str(tmp_path / "out"))
    plan.store.delete(plan.commit_name(0))
    copied(stored_heads, tmp_path, lambda table: replaced(table, "det_score", pa.array([0.5] * 3, pa.float32())))
    with pytest.raises(PlanConflict, match="3 changed"):
        run(heads, tmp_path / "out", formats=["npz"])
    summary = run(heads, tmp_path / "out", formats=["npz"], existing="resume")
    assert summary.quarantined == {"read": 3}
    assert "changed since it was planned" in standing_quarantine(str(tmp_path / "out"))[0].message
    healed = run(heads, tmp_path / "out", formats=["npz"], existing="extend")
    assert (healed.outcome, healed.heads) == ("complete", 7)


def test_rows_without_maps_and_with_maps_in_files(stored_heads, tmp_path):
    """The displacement is the same from a column, from a file, and from F_d."""
    field = pq.read_schema(committed_parts(stored_heads)[0]).field("displacement")
    store = Store(str(tmp_path / "heads"))

    def to_files(table: pa.Table) -> pa.Table:
        steps = np.array(table["displacement"].to_pylist(), np.uint16).reshape(-1, 256, 256)
        names = [f"files/{face}.png" for face in table["face_id"].to_pylist()]
        for name, one in zip(names, steps, strict=True):
            store.write(name, encode_map(one))
        column = pa.field("displacement_file", pa.string(), metadata=field.metadata)
        return table.drop(["displacement"]).append_column(column, pa.array(names))

    heads = copied(stored_heads, tmp_path, to_files)
    copied(stored_heads, tmp_path, lambda table: table.drop(["displacement"]), unit=1)
    maps = {}
    for name, source in (("stored", stored_heads), ("other", heads)):
        run(source, tmp_path / name, formats=["npz"], where="identity_id != 'person-002'")
        maps[name] = {}
        for path in (tmp_path / name).rglob("head.npz"):
            with np.load(path, allow_pickle=False) as arrays:
                maps[name][path.parent.name] = arrays["displacement"]
    step = float(field.metadata[b"scale"])
    assert len(maps["stored"]) == 5
    for face, expected in maps["stored"].items():
        limit = 0 if face in ("000000-00", "000001-00", "001000-00") else step
        assert np.abs(maps["other"][face] - expected).max() <= limit, face
    Path(heads, "files", "000001-00.png").unlink()
    summary = run(heads, tmp_path / "lost", formats=["npz"], ids=["person-000"])
    assert (summary.heads, summary.quarantined) == (1, {"decode": 1})


def test_a_stored_texture_needs_no_photograph_and_a_lost_one_is_said(stored_heads, tmp_path, caplog):
    gone = copied(stored_heads, tmp_path, lambda table: table)
    config = json.loads(Path(gone, "_config.json").read_text())
    for shard in Path(config["source"]).glob("faces/data/*"):
        assert shard.exists()
    plan = load_plan(gone)
    [file] = plan.record.files
    units = pq.ParquetFile(Path(gone, file.file))
    names = [*units.schema_arrow.names]
    moved = units.read()
    uris = [uri.replace("/faces/", "/nowhere/") for uri in moved["uri"].to_pylist()]
    with pq.ParquetWriter(Path(gone, file.file), moved.schema) as writer:
        table = moved.set_column(names.index("uri"), moved.schema.field("uri"), pa.array(uris))
        for unit in range(file.units):
            writer.write_table(table.filter(pc.equal(table["unit"], unit)))
    with caplog.at_level("WARNING", logger="deca"):
        summary = run(gone, tmp_path / "out", ids=["person-000"])
    assert summary.colours == {"albedo": 2}
    assert "could not be read any more" in caplog.text

    def with_texture(table: pa.Table) -> pa.Table:
        Image.new("RGB", (256, 256), (200, 30, 30)).save(tmp_path / "red.png")
        cell = {"bytes": (tmp_path / "red.png").read_bytes(), "path": None}
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return table.append_column(pa.field("texture", kind), pa.array([cell] * len(table), kind))

    copied(gone, tmp_path, with_texture)
    summary = run(gone, tmp_path / "again", formats=["obj"], ids=["person-000"])
    assert summary.colours == {"picture": 2}
    with Image.open(folder_of(tmp_path / "again", "000000-00") / "texture.jpg") as texture:
        cheek = np.asarray(texture)[140:150, 105:115].reshape(-1, 3).mean(0)
    assert np.abs(cheek - [200, 30, 30]).max() < 12


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"ids": ["nobody"]}, HeadsError, "no face, image or identity 'nobody'"),
        ({"where": "det_score > 3"}, HeadsError, "none of 7 rows matches"),
        ({"where": "det_score >"}, FilterError, "cannot be read"),
        ({"formats": ["fbx"]}, ValidationError, "'glb', 'obj', 'ply' or 'npz'"),
        ({"formats": ["glb", "glb"]}, ValidationError, "names something twice"),
        ({"formats": []}, ValidationError, "at least 1"),
        ({"dense": True}, ValidationError, "Add obj, ply or npz"),
        ({"expressions": 51}, ValidationError, "less than or equal to 50"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(stored_heads, tmp_path, asked, error, words):
    with pytest.raises(error, match=words):
        run(stored_heads, tmp_path / "out", **asked)
    assert not list(tmp_path.glob("out/files/*"))


def test_a_face_id_that_leads_elsewhere_is_no_folder(stored_heads, tmp_path):
    def rename(table: pa.Table) -> pa.Table:
        return replaced(table, "face_id", pa.array(["../../x", *table["face_id"].to_pylist()[1:]]))

    heads = copied(stored_heads, tmp_path, rename)
    summary = run(heads, tmp_path / "out", formats=["npz"])
    assert (summary.heads, summary.quarantined) == (6, {"decode": 1})
    assert "cannot name a folder" in standing_quarantine(str(tmp_path / "out"))[0].message
