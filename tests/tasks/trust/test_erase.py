"""Erasure: nobody is left, nobody else harmed; kills between bytes and commit, runs that write meanwhile, records."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.erase import ERASED, identity_hash
from schemas.ingest import IngestConfig
from schemas.ledger import CommitRecord, Item, StoredFile, image_id_of
from tasks.people.group import ANOTHER_FACE, group
from tasks.people.group import ERASED as REASON
from tasks.people.versions import current, list_versions, open_faces, verify_faces
from tasks.store.storage import Store
from tasks.trust.audit import find_places, occurrences
from tasks.trust.erase import Asked, erase, resolve
from tasks.trust.erasure_records import check_records, read_records
from tasks.units.commit import UnitOutput, erase_unit
from tasks.units.commits import committed_parts, pending, read_commits, standing_quarantine
from tasks.units.engine import run_units
from tasks.units.plan import load_plan
from tasks.units.rewrite import drop_rows, files_left
from tasks.units.rounds import open_or_build, plan_retry
from tasks.units.tombstones import Erased, EraseError, read_erased, read_tombstones
from tasks.units.verify import verify
from tests.tasks import erasable
from tests.tasks.conftest import HashWorker

PERSON = Asked(identities=frozenset({erasable.PERSON}))
NAMES = ("people", "heads", "exports")
HERE = erasable.HERE
LIMITS = ("min_eye_distance", "min_sharpness", "min_mask_coverage", "max_yaw")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four datasets; each test works on them in the one place that their plans know, so it takes `datasets`."""
    folder = tmp_path_factory.mktemp("erase")
    erasable.make(folder / "work")
    shutil.copytree(folder / "work", folder / "base")
    return folder


@pytest.fixture
def datasets(world: Path) -> Path:
    shutil.rmtree(world / "work")
    return Path(shutil.copytree(world / "base", world / "work"))


def uris(folder: Path) -> list[str]:
    return [str(folder / name) for name in NAMES]


def whole(folder: Path) -> bool:
    """Whether every dataset is what its records say."""
    places = [place for uri in uris(folder) for place in find_places(uri)]
    return all((verify(one.uri) if one.kind == "units" else verify_faces(one.uri)).ok for one in places)


def rows(dest: Path | str) -> list[dict[str, object]]:
    tables = [pq.read_table(uri) for uri in committed_parts(str(dest))]
    return pa.concat_tables(tables).sort_by("face_id").to_pylist()


def faces(folder: Path) -> list[dict[str, object]]:
    opened = open_faces(str(folder / "people/faces"))
    tables = [pq.read_table(uri) for split in ("train", "val") for uri in opened.uris(split)]
    return pa.concat_tables(tables).sort_by("face_id").to_pylist()


# --- who goes and who stays -------------------------------------------------------------------------------------------


def test_erasing_a_subject_changes_no_other(datasets: Path) -> None:
    gone = erasable.ids_of(datasets)
    assert len(gone) == 20
    before = {name: rows(datasets / name) for name in ("people/annotations", "heads", "exports")}
    before["faces"] = faces(datasets)
    outcomes = erase(uris(datasets), PERSON)
    after = {name: rows(datasets / name) for name in ("people/annotations", "heads", "exports")}
    after["faces"] = faces(datasets)
    for name, table in before.items():
        assert after[name] == [row for row in table if row["face_id"] not in gone], name
        assert len(after[name]) < len(table)
    assert whole(datasets)
    # Whatever lies there, not only what readers read, as bytes. Plans keep the places of images.
    for path in datasets.rglob("*"):
        if path.is_file() and "photos" not in path.parts and "_plan" not in path.parts and ERASED not in path.parts:
            data = path.read_bytes()
            assert not [face for face in gone if face.encode() in data or face in str(path)], path
    assert [outcome.record.rows for outcome in outcomes if outcome.record][::3] == [20, 17]
    assert {len(list((datasets / name / "files").rglob("*.*"))) for name in ("heads", "exports")} == {25, 50}
    assert not (datasets / "heads/consensus").exists()
    assert [path.name for path in (datasets / "heads/_report").iterdir()] == ["summary.json"]
    assert erasable.PERSON not in (datasets / "people/annotations" / ERASED / "tombstone-000001.json").read_text()


def test_runs_over_the_same_images_restore_no_erased_subject(datasets: Path) -> None:
    gone = set(erasable.ids_of(datasets))
    erase(uris(datasets), PERSON)
    left = rows(datasets / "people/annotations")
    for path in (datasets / "photos").rglob("*.jpg"):
        path.write_bytes(path.read_bytes())  # a new time of change: every image is planned anew
    erasable.annotate(datasets)
    assert rows(datasets / "people/annotations") == left
    plan = open_or_build(
        str(datasets / "people/annotations"),
        str(datasets / "photos"),
        config={"flow": "ingest"},
        weights={"detector": "0a1b"},
        units=erasable.UNITS,
        mode="new",
    )
    run_units(plan, erasable.FaceWorker, HERE)
    assert rows(plan.dest) == left
    plan_retry(str(datasets / "heads"))
    run_units(load_plan(str(datasets / "heads")), lambda: erasable.HeadWorker(str(datasets / "heads")), HERE)
    assert not gone & {row["face_id"] for row in rows(datasets / "heads")}
    erasable.group(datasets)
    assert not gone & {row["face_id"] for row in faces(datasets)}
    assert [occurrences(place, read_erased(place.store)) for place in find_places(str(datasets / "people"))] == [[], []]


def test_one_face_goes_and_the_next_ingest_has_nothing_to_do(datasets: Path) -> None:
    """The version that an erasure publishes is the one that grouping the rest publishes: no shard is made twice."""
    face, other = erasable.ids_of(datasets)[0], erasable.ids_of(datasets)[0].replace("-00", "-01")
    holds = current(str(datasets / "people/faces"))
    erase([str(datasets / "people")], Asked(faces=frozenset({face})))
    now = current(str(datasets / "people/faces"))
    assert holds is not None
    assert now is not None
    assert (now.faces, now.version, list_versions(str(datasets / "people/faces"))) == (holds.faces - 1, 2, [2])
    assert len({shard.file for shard in now.shards} & {shard.file for shard in holds.shards}) == len(now.shards) - 1
    assert other in {row["face_id"] for row in rows(datasets / "people/annotations")}
    assert erasable.group(datasets) is False
    assert whole(datasets)


def test_an_image_may_be_named_by_its_place(datasets: Path) -> None:
    path = datasets / "photos/bob/00101.jpg"
    erase([str(datasets / "people")], Asked(images=frozenset({str(path)})))
    image = image_id_of(str(path), str(datasets / "photos"))
    assert image not in {row["image_id"] for row in rows(datasets / "people/annotations")}
    assert [stone.requests[0].id for stone in read_tombstones(Store(datasets / "people/annotations"))] == [image]


def test_images_without_rows_may_be_erased_as_well(photos, tmp_path: Path) -> None:
    """A quarantined image, and one whose unit has not been worked yet."""
    plan = open_or_build(tmp_path / "out", str(photos(8, {1: b"bad"})), units=erasable.UNITS)
    run_units(plan, HashWorker, HERE, only=[0])
    items = [item for unit in plan.iter_units() for item in unit.items]
    erase([plan.dest], Asked(images=frozenset({items[1].image_id, items[7].image_id})))
    assert standing_quarantine(plan.dest) == []
    assert [commit.quarantine for commit in read_commits(plan.dest)] == [None]
    run_units(plan, HashWorker, HERE)
    assert {row["face_id"] for row in rows(plan.dest)} == {item.image_id for item in items} - {
        items[1].image_id,
        items[7].image_id,
    }
    assert (pending(plan), verify(plan.dest).problems, verify(plan.dest).leftovers) == ([], [], [])


def test_a_unit_of_erased_images_alone_has_no_part(photos, tmp_path: Path) -> None:
    plan = open_or_build(tmp_path / "out", str(photos(7)), units=erasable.UNITS)
    last = [item.image_id for item in next(plan.iter_units([1])).items]
    erase([plan.dest], Asked(images=frozenset(last)))
    run_units(plan, HashWorker, HERE)
    assert [(commit.part is None, commit.rows, commit.items) for commit in read_commits(plan.dest)] == [
        (False, 6, 6),
        (True, 0, 1),
    ]


def test_unknown_ids_are_an_error_before_anything_is_written(datasets: Path) -> None:
    before = erasable.contents(datasets)
    with pytest.raises(
        EraseError, match=r"face nobody-00, identity eve: in none of these datasets. Nothing was erased"
    ):
        erase(uris(datasets), Asked(frozenset({"nobody-00"}), frozenset(), frozenset({"eve", erasable.PERSON})))
    assert erasable.contents(datasets) == before
    with pytest.raises(EraseError, match="holds no dataset"):
        erase([str(datasets / "photos")], PERSON)


@pytest.mark.slow
def test_it_works_on_a_bucket(datasets: Path, s3) -> None:
    uri = s3.uri("erase-heads")
    store = Store(uri)
    for path in (datasets / "heads").rglob("*"):
        if path.is_file():
            store.write(str(path.relative_to(datasets / "heads")), path.read_bytes())
    gone = {row["face_id"] for row in rows(uri) if row["identity_id"] == erasable.PERSON}
    erase([uri], PERSON)
    left = store.walk()
    assert not [name for name in left if any(face in name for face in gone)]
    assert not gone & {row["face_id"] for row in rows(uri)}
    assert (verify(uri).ok, occurrences(find_places(uri)[0], read_erased(store))) == (True, [])


# --- crashes and neighbours -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_between_bytes_and_commit_and_finished(tmp_path: Path) -> None:
    """Some of the moments; all of them: python -m tests.chaos.erasures."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.chaos.erasures import Harness\n"
        f"harness = Harness(Path({str(tmp_path)!r}))\n"
        "steps = [step for step in harness.of_each_kind() if any(part in step.what for part in sys.argv[1:])]\n"
        "trials = [harness.trial(step) for step in steps]\n"
        "for trial in trials:\n    print(trial.step.what, trial.problems)\n"
        "print('again', harness.run_again())\n"
        "sys.exit(len(trials) < 5 or any(trial.problems for trial in trials))\n"
    )
    moments = (
        *("publish annotations/_commits", "publish faces/_current", "delete faces/data", "publish heads/_commits"),
        "create exports/_erased/record",
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, *moments], cwd=root, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "again []" in done.stdout


def test_without_ids_an_interrupted_erasure_is_finished(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tasks.trust.erase.erase_unit", full)
        with pytest.raises(OSError, match="No space"):
            erase(uris(datasets), PERSON)
    place = find_places(uris(datasets)[0])[0]
    assert "is not finished. Run: deca erase" in check_records(place.store)[0]
    outcomes = erase(uris(datasets), Asked())
    assert [outcome.record is not None for outcome in outcomes] == [True] * 4
    assert [occurrences(one.place, read_erased(one.place.store)) for one in outcomes[:3]] == [[], [], []]
    assert [outcome.record for outcome in erase(uris(datasets), Asked())] == [None] * 4
    assert [outcome.record for outcome in erase(uris(datasets), PERSON)] == [None] * 4


class Meanwhile:
    """A worker during whose first unit somebody else erases an image of that unit."""

    def __init__(self, dest: str, image: str) -> None:
        self.dest, self.image, self.calls = dest, image, 0

    def process(self, items: Sequence[Item]) -> UnitOutput:
        output = HashWorker().process(items)
        if not self.calls:
            other = threading.Thread(target=erase, args=([self.dest], Asked(images=frozenset({self.image}))))
            other.start()
            other.join()
        self.calls += 1
        return output


def test_a_run_under_way_does_not_commit_whoever_was_erased_meanwhile(photos, tmp_path: Path) -> None:
    plan = open_or_build(tmp_path / "out", str(photos(8)), units=erasable.UNITS)
    image = next(plan.iter_units([0])).items[2].image_id
    run_units(plan, lambda: Meanwhile(plan.dest, image), HERE)
    assert image not in {row["face_id"] for row in rows(plan.dest)}
    assert (len(rows(plan.dest)), verify(plan.dest).problems, verify(plan.dest).leftovers) == (7, [], [])


def test_an_erasure_between_part_and_commit(photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The erasure finds a part that nobody has committed, and deletes it; the unit is then done again without."""
    import tasks.units.commit as commit

    plan = open_or_build(tmp_path / "out", str(photos(4)), units=erasable.UNITS)
    image, real = next(plan.iter_units([0])).items[2].image_id, commit.publish_commit

    def late(*args: object) -> None:
        monkeypatch.setattr(commit, "publish_commit", real)
        erase([plan.dest], Asked(images=frozenset({image})))
        assert not list((tmp_path / "out").glob("part-*"))
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(commit, "publish_commit", late)
    run_units(plan, HashWorker, HERE)
    assert image not in {row["face_id"] for row in rows(plan.dest)}
    assert (len(rows(plan.dest)), verify(plan.dest).problems) == (3, [])


# --- parts and files --------------------------------------------------------------------------------------------------


def file(name: str) -> StoredFile:
    return StoredFile(file=name, bytes=1, sha256="0")


def test_rows_own_the_files_that_their_texts_name() -> None:
    mesh = pa.struct([("format", pa.string()), ("file", pa.string())])
    table = pa.table(
        {
            "face_id": ["aa-00", "bb-00", "cc-00"],
            "files": pa.array([["a.glb", "common.mtl"], ["b.glb", "common.mtl"], []], pa.list_(pa.string())),
            "meshes": pa.array(
                [[{"format": "obj", "file": "a.obj"}], [{"format": "obj", "file": "b.obj"}], None], pa.list_(mesh)
            ),
        }
    )
    names = ["a.glb", "a.obj", "b.glb", "b.obj", "common.mtl", "sheets/aa-00.png", "sheets/aaa-00.png", "notes.txt"]
    erased = Erased(faces=frozenset({"aa-00"}))
    left = files_left([file(name) for name in names], table, erased.rows(table), erased)
    assert left.gone == ["a.glb", "a.obj", "sheets/aa-00.png"]
    assert left.shared == ["common.mtl"]
    assert [one.file for one in left.stay] == ["b.glb", "b.obj", "common.mtl", "sheets/aaa-00.png", "notes.txt"]


def test_columns_are_known_by_their_names() -> None:
    erased = Erased(faces=frozenset({"a1-00"}), images=frozenset({"b2"}), identities=frozenset({identity_hash("ada")}))
    columns = {
        "face_id": ["a1-00", "a1-01", "b2-07", "b22-00", None],
        "expression_face_id": ["x", "a1-00", "x", "x", "x"],
        "image_id": ["a1", "a1", "b2", "b22", "b2"],
        "label": ["eve", "eve", "eve", "ada", None],
        "identity": ["heads/#a1-00", "a1-001", "ada", "eve#xa1-00", "heads#ada"],
        "caption": ["ada", "a1-00", "b2", "ada", "ada"],  # says nothing: a column of any other name
    }
    expected = {
        "face_id": [True, False, True, False, False],
        "expression_face_id": [False, True, False, False, False],
        "image_id": [False, False, True, False, True],
        "label": [False, False, False, True, False],
        "identity": [True, False, True, False, True],
        "caption": [False] * 5,
    }
    for name, values in columns.items():
        assert erased.rows(pa.table({name: values})).tolist() == expected[name], name
    assert erased.rows(pa.table({"size": [1, 2]})).tolist() == [False, False]


def test_a_file_of_several_subjects_stops_the_erasure_with_its_name(datasets: Path) -> None:
    store, plan = Store(datasets / "exports"), load_plan(str(datasets / "exports"))
    gone = {row["face_id"] for row in rows(datasets / "heads") if row["identity_id"] == erasable.PERSON}
    commit = next(
        one
        for one in read_commits(plan.dest)
        if 0 < sum(row["face_id"] in gone for row in pq.read_table(store.join(str(one.part))).to_pylist()) < one.rows
    )
    table = pq.read_table(store.join(str(commit.part)))
    both = pa.array([["files/all.tar"]] * len(table), pa.list_(pa.string()))
    table = table.set_column(1, table.schema.field(1), both)
    size, sha256 = store.write("files/all.tar", b"everybody")
    with store.scratch("part") as path:
        pq.write_table(table, path)
        part_bytes, part_sha = store.publish(path, str(commit.part))
    changed = {"files": [StoredFile(file="files/all.tar", bytes=size, sha256=sha256)]}
    record = commit.model_copy(update={**changed, "bytes": part_bytes, "sha256": part_sha})
    store.write(plan.commit_name(commit.unit), record.model_dump_json().encode())
    with pytest.raises(EraseError, match=r"files/all\.tar: rows of others name these files too"):
        erase(uris(datasets), PERSON)
    assert not gone & {row["face_id"] for row in rows(datasets / "exports")}
    assert read_records(store) == []


def test_the_origin_of_a_part_survives_every_rewriting(datasets: Path) -> None:
    plan = load_plan(str(datasets / "people/annotations"))
    first = next(read_commits(plan.dest))
    uri, face = (
        pq.read_table(plan.store.join(str(first.part)))[name].to_pylist() for name in ("source_uri", "face_id")
    )
    second = drop_rows(plan.store, first, [uri[0]])
    third, shared = erase_unit(plan, second, Erased(faces=frozenset({face[-1]})))
    assert first.origin is None
    assert (second.origin, third.origin, shared) == (first.sha256, first.sha256, [])
    assert first.rows > second.rows > third.rows
    assert CommitRecord.model_validate_json(plan.store.read(plan.commit_name(0, 1))) == third


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_tell_of_tombstones_that_were_changed_or_deleted(datasets: Path) -> None:
    one, two = erasable.ids_of(datasets)[:2]
    for face in (one, two):
        erase([str(datasets / "heads")], Asked(faces=frozenset({face})))
    store = Store(datasets / "heads")
    assert [(record.number, record.requests, record.rows) for record in read_records(store)] == [(1, 1, 1), (2, 1, 1)]
    assert check_records(store) == []
    stones = [datasets / "heads" / ERASED / f"tombstone-00000{number}.json" for number in (1, 2)]
    stones[0].unlink()
    stones[1].write_text(json.dumps(json.loads(stones[1].read_text())))
    assert check_records(store) == [
        f"{ERASED}/tombstone-00000{number}.json: changed or deleted since its erasure" for number in (1, 2)
    ]


def test_chained_and_signed_records_of_schema_1_open_extend_and_verify(datasets: Path) -> None:
    one, two = erasable.ids_of(datasets)[:2]
    heads = str(datasets / "heads")
    erase([heads], Asked(faces=frozenset({one})))
    path = datasets / "heads" / ERASED / "record-000001.json"
    chained = {"schema_version": 1, "previous_sha256": "", "state_sha256": "ab" * 32}
    signature = {"method": "hmac-sha256", "key": "0123456789abcdef", "value": "cd" * 32}
    path.write_text(json.dumps(json.loads(path.read_text()) | chained | {"signature": signature}))
    stored = path.read_bytes()
    assert check_records(Store(heads)) == []
    [outcome] = erase([heads], Asked(faces=frozenset({two})))
    assert outcome.record is not None
    assert [record.schema_version for record in read_records(Store(heads))] == [1, 2]
    assert (check_records(Store(heads)), verify(heads).problems, path.read_bytes()) == ([], [], stored)


def test_resolving_asks_every_dataset(datasets: Path) -> None:
    """Exports do not know who is who; they learn it from the others."""
    places = [place for uri in uris(datasets) for place in find_places(uri)]
    [request] = resolve(places, PERSON)
    assert (request.kind, request.faces) == ("identity", erasable.ids_of(datasets))
    with pytest.raises(EraseError, match="identity ada"):
        resolve([place for place in places if place.uri.endswith("exports")], PERSON)


# --- identities that come again ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_new_images_of_an_erased_subject_are_kept_out_of_faces_without_their_name(datasets: Path) -> None:
    people = datasets / "people"
    erase([str(people)], PERSON)
    path = datasets / "photos" / erasable.PERSON / "new.jpg"
    path.write_bytes(b"a picture that was taken later")
    erasable.annotate(datasets)
    settings = {"source": "photos", "dest": str(people), "identity": {"pattern": "{identity}/{image}"}}
    grouping = group(str(people / "annotations"), IngestConfig.model_validate(settings), None)
    assert grouping.report.left_out[REASON] == 1
    [row] = [row for row in grouping.assignments.to_pylist() if row["left_out"] == REASON]
    assert row["identity_id"] is None
    assert erasable.PERSON not in grouping.assignments["identity_id"].to_pylist()
    assert {"bob", "cyd"} <= set(grouping.assignments["identity_id"].to_pylist())


@pytest.mark.slow
def test_whoever_stands_beside_an_erased_face_does_not_inherit_its_label(datasets: Path) -> None:
    people, face = datasets / "people", erasable.ids_of(datasets)[0]
    erase([str(people)], Asked(faces=frozenset({face})))
    settings: dict[str, object] = {"source": "photos", "dest": str(people)}
    settings |= {"identity": {"pattern": "{identity}/{image}"}, "filters": dict.fromkeys(LIMITS)}
    table = group(str(people / "annotations"), IngestConfig.model_validate(settings), None).assignments
    [beside] = [row for row in table.to_pylist() if row["face_id"] == face.replace("-00", "-01")]
    assert (beside["identity_id"], beside["left_out"]) == (None, ANOTHER_FACE)
