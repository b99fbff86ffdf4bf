"""The ingest flow on real faces: identities, growth, bad input, changed settings, Ray, S3, Prefect."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.ingest import ingest
from pipelines.unit_flow import stored_config
from schemas.ingest import IngestConfig
from tasks.people.identities import IdentityError
from tasks.people.versions import current, open_faces, verify_faces
from tasks.store.storage import Store
from tasks.trust.erase import Asked, erase
from tasks.units.commits import read_commits, standing_quarantine
from tasks.units.plan import PlanConflict
from tasks.units.reasons import NoRowsError
from tasks.units.verify import verify
from tests.chaos.jobs import contents
from tests.pipelines.conftest import astronaut, encoded

PATTERN = {"identity": {"pattern": "{identity}/{image}"}}


def place(name: str) -> float:
    """Return the place of an identity by the documented rule."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


# Two subjects in the first half of the places and two in the second.
FIRST = [name for name in map("p{}".format, range(40)) if place(name) < 0.5][:2]
SECOND = [name for name in map("p{}".format, range(40)) if place(name) >= 0.5][:3]
SUBJECTS = [*FIRST, *SECOND[:2]]


def write_image(path: Path, angle: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(astronaut().rotate(angle), "JPEG", quality=92))


def write_subjects(folder: Path, names: list[str]) -> Path:
    """Write two images of one and the same face for each name."""
    for number, name in enumerate(names):
        for image in range(2):
            write_image(folder / name / f"{image}.jpg", 2 * number - 3 + image)
    return folder


def config(source: object, dest: object, **changes: object) -> IngestConfig:
    values: dict[str, object] = {
        "source": str(source),
        "dest": str(dest),
        "units": {"items_per_unit": 3},
        "shards": {"faces_per_shard": 5, "val_fraction": 0.0},
        "ray": {"workers": 0},
        **PATTERN,
        **changes,
    }
    return IngestConfig.model_validate(values)


def faces_table(dest: object, split: str = "train") -> pa.Table:
    return pa.concat_tables([pq.read_table(uri) for uri in open_faces(f"{dest}/faces").uris(split)])


def written(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """Four subjects, two images each, ingested undisturbed; tests only read it."""
    folder = tmp_path_factory.mktemp("ingest")
    summary = ingest(config(write_subjects(folder / "photos", SUBJECTS), folder / "out"))
    assert (summary.outcome, summary.faces, summary.identities, summary.version) == ("complete", 8, 4, 1)
    return folder / "out"


def test_faces_are_sorted_by_identity(done):
    table = faces_table(done)
    identities = table["identity_id"].to_pylist()
    assert identities == [name for name in sorted(SUBJECTS, key=place) for _ in range(2)]
    assert [Path(uri).parent.name for uri in table["source_uri"].to_pylist()] == identities
    assert set(table["identity_source"].to_pylist()) == {"label"}
    version = current(f"{done}/faces")
    assert [shard.rows for shard in version.shards] == [4, 4]
    assert verify(f"{done}/annotations").ok
    assert verify_faces(f"{done}/faces").ok
    summary = json.loads((done / "_report" / "summary.json").read_text())
    assert summary["new_version"] is True
    assert set(summary["seconds"]) >= {"annotate_faces", "group_identities", "publish_faces", "write_card"}


@pytest.mark.parametrize("reader", ["pandas", "duckdb", "datasets"])
def test_foreign_readers_open_the_shards(done, reader, tmp_path):
    uris = open_faces(f"{done}/faces").uris("train")
    if reader == "pandas":
        import pandas

        frame = pandas.concat([pandas.read_parquet(uri) for uri in uris])
        assert len(frame) == 8
        assert frame["embedding"].iloc[0].shape == (128,)
    elif reader == "duckdb":
        import duckdb

        query = "select identity_id, count(*), min(octet_length(crop.bytes)) from read_parquet(?) group by 1 order by 1"
        rows = duckdb.connect().execute(query, [uris]).fetchall()
        assert [row[:2] for row in rows] == [(name, 2) for name in sorted(SUBJECTS)]
        assert all(row[2] > 1000 for row in rows)
    else:
        import datasets

        loaded = datasets.load_dataset(f"{done}/faces", cache_dir=str(tmp_path / "hf"))
        assert list(loaded) == ["train"]
        assert loaded["train"][0]["crop"].size == (320, 320)
        assert loaded["train"][0]["skin_mask"].mode == "L"


def test_second_run_writes_nothing(done):
    """It also deletes the temporary summary of a killed run."""
    killed = done / "_report/.deca-elsewhere-2-0a1b2c3d-summary.json.tmp"
    killed.write_bytes(b"")
    os.utime(killed, (0, 0))  # of another host, and a day old
    before = {name: file for name, file in written(done).items() if name.startswith(("faces/", "annotations/part"))}
    again = ingest(config(done.parent / "photos", done))
    assert (again.units_run, again.new_version, again.version, again.faces) == (0, False, 1, 8)
    after = written(done)
    assert {name: after[name] for name in before} == before
    assert not killed.exists()
    assert {name for name in after if name.startswith("faces/")} == {n for n in before if n.startswith("faces/")}


def test_growth_touches_only_what_it_must(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS), tmp_path / "out"
    ingest(config(photos, out))
    first = current(f"{out}/faces")
    parts = {commit.unit: commit.sha256 for commit in read_commits(f"{out}/annotations")}
    before = {name: content for name, (_, content) in written(out / "faces" / "data").items()}
    write_image(photos / SECOND[0] / "new.jpg", 9)
    write_image(photos / SECOND[2] / "new.jpg", -9)
    grown = ingest(config(photos, out))
    assert (grown.units_run, grown.faces_run, grown.images, grown.faces, grown.identities) == (1, 2, 10, 10, 5)
    commits = {commit.unit: commit.sha256 for commit in read_commits(f"{out}/annotations")}
    assert {unit: commits[unit] for unit in parts} == parts
    second = current(f"{out}/faces")
    assert (second.version, second.shards[0]) == (2, first.shards[0])
    assert second.shards[1] != first.shards[1]
    after = {name: content for name, (_, content) in written(out / "faces" / "data").items()}
    assert {name: after[name] for name in before} == before  # readers of version 1 still have it
    assert len(after) == len(before) + 1
    assert verify_faces(f"{out}/faces").ok
    assert faces_table(out)["identity_id"].to_pylist() == sorted(faces_table(out)["identity_id"].to_pylist(), key=place)


@pytest.mark.slow
def test_changed_filters_only_regroup(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:2]), tmp_path / "out"
    write_image(photos / SUBJECTS[0] / "2.jpg", 5)
    ingest(config(photos, out))
    again = ingest(config(photos, out, shards={"min_images": 3, "val_fraction": 0.0}))
    assert (again.units_run, again.new_version, again.version, again.faces) == (0, True, 2, 3)
    assert sum(again.left_out.values()) == 2
    assert "left out" in (out / "faces" / "card.html").read_text()
    back = ingest(config(photos, out))
    assert (back.units_run, back.faces, back.version) == (0, 5, 3)


def test_a_run_that_keeps_no_face_fails_and_publishes_nothing(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:2]), tmp_path / "out"
    (photos / SUBJECTS[0] / "bad.jpg").write_bytes(b"a letter")
    none = config(photos, out, filters={"min_eye_distance": 500})
    said = (
        r"^no face of 5 images was kept: 4 x eye_distance \(filters.min_eye_distance=500.0\), 1 x decode ImageError "
        rf"\(.*\); no version was published. Look: deca status {out}$"
    )
    for _ in range(2):  # and again, where nothing is left to run
        with pytest.raises(NoRowsError, match=said):
            ingest(none)
    assert not (out / "faces").exists()
    assert ingest(config(photos, out)).faces == 4
    before = written(out / "faces")
    with pytest.raises(NoRowsError, match=r"4 x few pictures \(shards.min_images=3\)"):
        ingest(config(photos, out, shards={"min_images": 3}))
    assert written(out / "faces") == before


@pytest.mark.slow
def test_faces_that_were_all_erased_are_not_lost(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:1]), tmp_path / "out"
    ingest(config(photos, out))
    erase([str(out)], Asked(identities=frozenset(SUBJECTS[:1])))
    assert ingest(config(photos, out)).faces == 0
    write_image(photos / SUBJECTS[0] / "new.jpg", 9)
    grown = ingest(config(photos, out))
    assert (grown.outcome, grown.faces, grown.left_out) == ("complete", 0, {"erased": 1})


def test_photographs_without_a_face_fail(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (photos / name).write_bytes(encoded(Image.new("RGB", (90, 90), "teal"), "JPEG"))
    with pytest.raises(NoRowsError, match="nothing came of 2 images: 2 x detect NoFaceError"):
        ingest(config(photos, out, identity={}))
    assert not (out / "faces").exists()
    write_image(photos / "c.jpg", 0)
    assert ingest(config(photos, out, identity={})).faces == 1


@pytest.mark.slow
def test_changed_annotators_are_refused_with_the_next_command(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:1]), tmp_path / "out"
    ingest(config(photos, out))
    other = config(photos, out, annotate={"max_faces": 1})
    with pytest.raises(PlanConflict, match=r"max_faces 100 -> 1.*--resume.*--new"):
        ingest(other)
    resumed = ingest(other.model_copy(update={"existing": "resume"}))
    assert (resumed.units_run, resumed.new_version) == (0, False)
    new = ingest(other.model_copy(update={"existing": "new"}))
    assert (new.units_run, new.version, new.faces) == (1, 2, 2)


def test_existing_refuse_refuses_growth(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:1]), tmp_path / "out"
    ingest(config(photos, out))
    write_image(photos / SUBJECTS[0] / "new.jpg", 9)
    with pytest.raises(PlanConflict, match="1 added"):
        ingest(config(photos, out, existing="refuse"))


@pytest.mark.slow
@pytest.mark.parametrize("below", ["a/o[u]t", ""])
def test_a_dest_inside_the_source_is_no_source(tmp_path, below):
    photos = write_subjects(tmp_path / "photos", SUBJECTS[:1])
    inside = config(photos, photos / below, identity={"method": "none"})
    assert ingest(inside).images == 2
    again = ingest(inside)
    assert (again.images, again.units_run, again.new_version) == (2, 0, False)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pattern_that_matches_nothing_ends_the_run_before_any_work(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:1]), tmp_path / "out"
    with pytest.raises(IdentityError, match=rf"nobody_.*{SUBJECTS[0]}/0\.jpg"):
        ingest(config(photos, out, identity={"pattern": "nobody_{identity}.png"}))
    assert not list((out / "annotations").glob("_commits/*"))
    assert ingest(config(photos, out)).faces == 2  # the plan is good, and the right pattern resumes it


@pytest.mark.slow
def test_a_pattern_may_match_late_images_only(tmp_path):
    photos = write_subjects(tmp_path / "photos", SUBJECTS[:1])
    for image in range(4):
        write_image(photos / f"{image}.jpg", image)  # no folder: these come first, in units of their own
    summary = ingest(config(photos, tmp_path / "out"))
    assert (summary.annotated, summary.faces, summary.left_out) == (6, 2, {"no label": 4})


@pytest.mark.slow
def test_a_table_without_a_match_ends_the_run_before_any_work(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:1]), tmp_path / "out"
    table = tmp_path / "people.csv"
    table.write_text("path,identity\nelsewhere/0.jpg,ann\n")
    with pytest.raises(IdentityError, match=r"elsewhere/0\.jpg"):
        ingest(config(photos, out, identity={"table": str(table)}))
    assert not list((out / "annotations").glob("_commits/*"))
    table.write_text(f"path,identity\n{SUBJECTS[0]}/1.jpg,ann\n")
    assert ingest(config(photos, out, identity={"table": str(table)})).left_out == {"no label": 1}


@pytest.mark.slow
def test_clusters_stay_when_photographs_arrive(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:2]), tmp_path / "out"
    clustered = {"identity": {}}
    first = ingest(config(photos, out, **clustered))
    assert (first.faces, first.identities) == (4, 1)  # the images are all of one face
    [name] = set(faces_table(out)["identity_id"].to_pylist())
    write_image(photos / "a" / "first.jpg", 6)  # sorts before all others
    grown = ingest(config(photos, out, **clustered))
    assert (grown.faces, grown.version) == (5, 2)
    assert set(faces_table(out)["identity_id"].to_pylist()) == {name}
    assert ingest(config(photos, out, **clustered)).new_version is False


@pytest.mark.slow
def test_regrouping_is_per_run(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:1]), tmp_path / "out"
    ingest(config(photos, out, identity={}))
    ingest(config(photos, out, identity={"regroup": True}))
    assert stored_config(f"{out}/annotations", IngestConfig).identity.regroup is False


@pytest.mark.slow
def test_a_missing_object_of_a_list_is_quarantined_and_comes_back(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:2]), tmp_path / "out"
    names = sorted(path.relative_to(tmp_path) for path in photos.rglob("*.jpg"))
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join([*map(str, names), str(names[0]), "photos/gone/1.jpg"]))
    settings = {"identity": {"pattern": "photos/{identity}/{image}"}}
    summary = ingest(config(listing, out, **settings))
    assert (summary.outcome, summary.images, summary.faces, summary.quarantined) == ("partial", 5, 4, {"read": 1})
    [row] = standing_quarantine(f"{out}/annotations")
    assert row.uri.endswith("photos/gone/1.jpg")
    assert "photos/gone/1.jpg" in (out / "faces" / "card.html").read_text()
    write_image(photos / "gone" / "1.jpg", 1)
    retry = stored_config(f"{out}/annotations", IngestConfig).model_copy(update={"existing": "retry"})
    mended = ingest(retry)
    assert (mended.outcome, mended.faces, mended.identities, mended.version) == ("complete", 5, 3, 2)
    assert "Nothing is in quarantine" in (out / "faces" / "card.html").read_text()


@pytest.mark.slow
def test_an_image_that_changes_after_the_plan(tmp_path):
    photos, out = write_subjects(tmp_path / "photos", SUBJECTS[:2]), tmp_path / "out"
    planned = ingest.prepare(config(photos, out))
    ingest.freeze_plan(planned, ingest.weights(planned))
    changed = photos / SUBJECTS[0] / "0.jpg"
    write_image(changed, 11)
    os.utime(changed, ns=(1, 1))
    summary = ingest(planned.model_copy(update={"existing": "resume"}))
    assert (summary.faces, summary.quarantined) == (3, {"read": 1})
    assert "changed" in standing_quarantine(f"{out}/annotations")[0].message
    again = ingest(config(photos, out))
    assert (again.outcome, again.faces) == ("complete", 4)
    assert verify(f"{out}/annotations").ok


@pytest.mark.slow
def test_trouble_with_sidecars(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    points = np.stack([110 + 60 * np.cos(angles), 110 + 70 * np.sin(angles)], 1).astype(np.float32)
    broken = points.copy()
    broken[3, 0] = np.nan
    mask = np.full((220, 220), 255, np.uint8)
    labels = {
        "good": (points, mask),
        "67-points": (points[:67], mask),
        "nan": (broken, mask),
        "other-size": (points, mask[:100]),
        "no-label": (None, mask),
    }
    for name, (landmarks, area) in labels.items():
        write_image(photos / f"{name}.jpg", 0)
        Image.fromarray(area).save(photos / f"{name}_mask.png")
        (photos / f"{name}.person.txt").write_text("ann\n")
        if landmarks is not None:
            np.save(photos / f"{name}.npy", landmarks)
    summary = ingest(
        config(
            photos,
            out,
            identity={},
            annotate={"provider": "sidecar", "sidecar": {"identity": ["{stem}.person.txt"]}},
            inputs={"exclude": ["*_mask.png"]},
            filters={"min_mask_coverage": None, "max_yaw": None, "min_eye_distance": None, "min_sharpness": None},
        )
    )
    messages = {Path(row.uri).stem: row.message for row in standing_quarantine(f"{out}/annotations")}
    assert set(messages) == {"67-points", "nan", "other-size", "no-label"}
    assert "67" in messages["67-points"]
    assert (summary.images, summary.faces) == (5, 1)
    table = faces_table(out)
    assert table["identity_id"].to_pylist() == ["ann"]
    assert table["identity_source"].to_pylist() == ["label"]


# --- other machines ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_makes_the_same_bytes(done, tmp_path, ray_cluster):
    summary = ingest(config(done.parent / "photos", tmp_path / "out", ray={"workers": 2}))
    assert (summary.outcome, summary.faces) == ("complete", 8)
    assert contents(str(tmp_path / "out")) == contents(str(done))


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["s3", "azure"])
def test_from_and_to_buckets(done, storage, request):
    endpoint = request.getfixturevalue(storage)
    bucket = endpoint.uri("ingest") if storage == "s3" else f"{endpoint}/ingest"
    photos = Store(f"{bucket}/in")
    for path in (done.parent / "photos").rglob("*.jpg"):
        photos.write(f"{path.parent.name}/{path.name}", path.read_bytes())
    dest = f"{bucket}/out"
    summary = ingest(config(photos.uri, dest))
    assert (summary.outcome, summary.faces, summary.identities) == ("complete", 8, 4)
    assert verify_faces(f"{dest}/faces").ok
    assert Store(dest).read("faces/README.md").startswith(b"---\n")
    again = ingest(config(photos.uri, dest))
    assert (again.units_run, again.new_version) == (0, False)


def test_prefect_flow_leaves_artifacts(done, tmp_path, prefect_harness):
    from prefect.client.orchestration import get_client

    from pipelines import flows

    photos = write_subjects(tmp_path / "photos", SUBJECTS[:2])
    (photos / SUBJECTS[0] / "bad.jpg").write_bytes(b"a letter")
    state = flows.ingest(config(photos, tmp_path / "out"), return_state=True)
    assert state.is_completed()
    assert state.name == "Partial"
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_latest_artifacts()}
    assert artifacts["ingest-progress"].data == 100
    report = artifacts["ingest-report"].data
    assert "4 faces of 2 identities" in report
    assert "decode: ImageError | 1" in report
    summary = {row["what"]: row["value"] for row in json.loads(artifacts["ingest-summary"].data)}
    assert summary["faces"] == "4"


@pytest.mark.slow
def test_a_prefect_flow_that_keeps_nothing_fails(tmp_path, prefect_harness):
    from pipelines import flows

    photos = write_subjects(tmp_path / "photos", SUBJECTS[:1])
    state = flows.ingest(config(photos, tmp_path / "out", filters={"min_eye_distance": 500}), return_state=True)
    assert state.is_failed()
    assert "2 x eye_distance" in state.message
