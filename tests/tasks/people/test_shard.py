"""Shards: the rule against a plain one, what a later run makes anew, Ray against none, kills, full disks, conflicts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.processes import descendants
from schemas.faces import ASSIGNMENTS_SCHEMA, FacesVersion
from schemas.ingest import ShardConfig
from schemas.parquet import ROW_GROUP
from tasks.people import shard
from tasks.people.layout import lay_out
from tasks.people.shard import PublishConflict, publish
from tasks.people.versions import FacesError, current, gc, list_versions, named_files, read_version, verify_faces
from tasks.store.storage import StorageError
from tasks.units.commits import committed_parts
from tasks.units.engine import RayConfig
from tests.tasks.annotated import add_photos, annotate, assign, settings


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations of 60 photos, 120 faces, in 12 parts; not to be changed."""
    folder = tmp_path_factory.mktemp("annotated")
    add_photos(folder / "photos", range(60))
    annotate(folder / "photos", folder / "annotations")
    return folder


def publish_at(folder: Path, assignments: pa.Table, faces: str = "faces", **shards: float) -> tuple[FacesVersion, bool]:
    return publish(str(folder / faces), str(folder / "annotations"), assignments, settings(folder, **shards))


def contents(faces: Path) -> dict[str, bytes]:
    """Every file of a folder but scratch files."""
    paths = [path for path in faces.rglob("*") if path.is_file() and not path.name.startswith(".deca-")]
    return {str(path.relative_to(faces)): path.read_bytes() for path in paths}


def named_bytes(faces: Path) -> dict[str, bytes]:
    """The files that the current version names."""
    version = current(str(faces))
    assert version is not None
    return {name: (faces / name).read_bytes() for name in named_files(version)}


def stamps(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What writing a file changes; not the time of the last reading, which the system changes too."""
    stats = {path: path.stat() for path in folder.rglob("*")}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def rows_of(version: FacesVersion, faces: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(faces / file.file) for file in version.shards])


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("people", "faces_per_shard"), [(1, 5), (40, 1000), (40, 30), (400, 3)])
def test_the_layout_follows_the_rule(people: int, faces_per_shard: int) -> None:
    draw = random.Random(people)
    owner = {f"face-{number:04d}": f"pérson {draw.randrange(people)}" for number in range(500)}
    table = pa.table(
        [[*owner], [*owner.values()], ["label"] * 500, [None] * 500, [None] * 500], schema=ASSIGNMENTS_SCHEMA
    )

    def place(name: str) -> tuple[Fraction, bool]:
        digest = hashlib.sha256(name.encode()).digest()
        first, second = (Fraction(int.from_bytes(half), 2**64) for half in (digest[:8], digest[8:16]))
        return first, second < Fraction(1, 4)

    expected: list[tuple[str, int, str]] = []
    for split in ("train", "val"):
        faces = [face for face, name in owner.items() if place(name)[1] == (split == "val")]
        shards = next(2**k for k in range(64) if len(faces) <= faces_per_shard * 2**k)
        faces.sort(key=lambda face: (place(owner[face])[0], owner[face].encode(), face))
        expected += [(split, int(place(owner[face])[0] * shards), face) for face in faces]
    layout = lay_out(
        table.take(pa.array(draw.sample(range(500), 500))),
        ShardConfig(faces_per_shard=faces_per_shard, val_fraction=0.25),
    )
    actual = [
        (part.split, part.number, face) for part in layout.shards for face in layout.rows(part)["face_id"].to_pylist()
    ]
    assert actual == expected


def test_rows_arrive_as_they_were_annotated(annotated: Path, tmp_path: Path) -> None:
    assignments = assign(annotated / "annotations", 17)
    faces = tmp_path / "faces"
    version, new = publish(str(faces), str(annotated / "annotations"), assignments, settings(tmp_path))
    assert (new, version.version, len(version.shards) > 4) == (True, 1, True)
    assert verify_faces(str(faces)).problems == []
    assert verify_faces(str(faces)).leftovers == []
    parts = pa.concat_tables([pq.read_table(uri) for uri in committed_parts(str(annotated / "annotations"))])
    kept = assignments.filter(pc.is_null(assignments["left_out"]))
    rows = rows_of(version, faces).sort_by("face_id")
    kept = kept.drop_columns(["left_out", "descriptor"])
    assert rows.select(kept.schema.names).to_pylist() == kept.to_pylist()
    wanted = parts.filter(pc.is_in(parts["face_id"], kept["face_id"])).sort_by("face_id")
    assert rows.select(wanted.schema.names).to_pylist() == wanted.to_pylist()
    assert (version.faces, version.identities) == (len(kept), len(kept["identity_id"].unique()))
    assert version.left_out == {"min_eye_distance": 120 - len(kept)}


def test_row_groups_let_one_identity_be_read(annotated: Path, tmp_path: Path) -> None:
    assignments = assign(annotated / "annotations", 2, left_out=10**9)
    faces = tmp_path / "faces"
    version, _ = publish(
        str(faces), str(annotated / "annotations"), assignments, settings(tmp_path, faces_per_shard=500, val_fraction=0)
    )
    (file,) = version.shards
    parquet = pq.ParquetFile(faces / file.file)
    assert [parquet.metadata.row_group(group).num_rows for group in range(2)] == [ROW_GROUP, 120 - ROW_GROUP]
    index = pq.read_table(faces / version.identities_file.file).to_pylist()
    second = index[1]
    group, skipped = divmod(second["first_row"], ROW_GROUP)
    assert group == 0
    ids = parquet.read(columns=["identity_id"])["identity_id"].to_pylist()
    assert ids[skipped : skipped + second["rows"]] == [second["identity_id"]] * second["rows"]
    assert second["rows"] + index[0]["rows"] == 120


def test_nothing_kept_is_a_version_without_shards(annotated: Path, tmp_path: Path) -> None:
    version, new = publish(
        str(tmp_path / "faces"),
        str(annotated / "annotations"),
        assign(annotated / "annotations", 3, left_out=1),
        settings(tmp_path),
    )
    assert (new, version.faces, version.shards) == (True, 0, [])
    assert verify_faces(str(tmp_path / "faces")).ok


# --- later runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with photos, annotations and a published version of them."""
    add_photos(tmp_path / "photos", range(60))
    annotate(tmp_path / "photos", tmp_path / "annotations")
    publish_at(tmp_path, assign(tmp_path / "annotations", 40))
    return tmp_path


def test_publishing_again_writes_nothing(world: Path) -> None:
    before = stamps(world / "faces")
    version, new = publish_at(world, assign(world / "annotations", 40))
    assert (version.version, new) == (1, False)
    assert stamps(world / "faces") == before


def test_new_photos_touch_only_their_shards_and_read_no_old_crop(world: Path) -> None:
    faces = world / "faces"
    first = current(str(faces))
    assert first is not None
    old_parts = committed_parts(str(world / "annotations"))
    add_photos(world / "photos", range(60, 62))
    annotate(world / "photos", world / "annotations")
    assignments = assign(world / "annotations", 40)
    for uri in old_parts:  # whoever wants more of them than ids now fails
        pq.write_table(pq.read_table(uri, columns=["face_id", "embedding"]), uri)
    inodes = {path: path.stat().st_ino for path in (faces / "data").iterdir()}
    second, new = publish_at(world, assignments)
    assert (second.version, new) == (2, True)
    shared = {file.file for file in first.shards} & {file.file for file in second.shards}
    changed = len(second.shards) - len(shared)
    assert 1 <= changed <= 4 < len(shared)  # four new faces
    assert all((faces / name).stat().st_ino == inodes[faces / name] for name in shared)
    assert verify_faces(str(faces)).ok
    gc(str(faces))
    assert set(contents(faces)) == {*named_files(second), "_current.json", "versions/000002.json"}


@pytest.mark.parametrize("change", ["replaced photo", "merged people", "more shards", "fewer shards"])
def test_a_changed_version_equals_one_made_afresh(world: Path, change: str) -> None:
    renamed, shards = None, {}
    if change == "replaced photo":
        add_photos(world / "photos", range(7, 8), content=b" retouched")
        annotate(world / "photos", world / "annotations")
    elif change == "merged people":
        renamed = {"person-3": "person-4"}
    else:
        shards = {"faces_per_shard": 5 if change == "more shards" else 64}
    assignments = assign(world / "annotations", 40, renamed)
    later, new = publish_at(world, assignments, **shards)
    afresh, _ = publish_at(world, assignments, "afresh", **shards)
    assert new
    assert later.model_copy(update={"version": 1}) == afresh
    assert named_bytes(world / "faces") == named_bytes(world / "afresh")
    if change == "replaced photo":
        assert 1 <= len({file.file for file in later.shards} - named_files(read_version(str(world / "faces"), 1))) <= 2


def test_lost_files_are_made_again(world: Path) -> None:
    faces = world / "faces"
    before = contents(faces)
    for folder in ("data", "index"):
        next((faces / folder).iterdir()).unlink()
    assert publish_at(world, assign(world / "annotations", 40))[1] is False
    assert contents(faces) == before


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_two_at_once_get_one_version_and_one_error(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = shard._identities

    def meanwhile(*arguments: Any) -> pa.Table:
        monkeypatch.setattr(shard, "_identities", original)
        assert publish_at(world, assign(world / "annotations", 30))[0].version == 2
        return original(*arguments)

    monkeypatch.setattr(shard, "_identities", meanwhile)
    with pytest.raises(
        PublishConflict, match=r"another run published version 2 at the same time.*Run the same command"
    ):
        publish_at(world, assign(world / "annotations", 20))
    assert verify_faces(str(world / "faces")).ok
    assert current(str(world / "faces")) == read_version(str(world / "faces"), 2)
    version, new = publish_at(world, assign(world / "annotations", 20))
    assert (version.version, new) == (3, True)


def test_what_gc_takes_from_under_a_run_is_noticed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = shard._version

    def meanwhile(*arguments: Any) -> FacesVersion:
        version = original(*arguments)
        (world / "faces" / version.shards[-1].file).unlink()
        return version

    monkeypatch.setattr(shard, "_version", meanwhile)
    with pytest.raises(PublishConflict, match=r"data/val-.* was deleted while this run needed it"):
        publish_at(world, assign(world / "annotations", 40, left_out=8))
    assert list_versions(str(world / "faces")) == [1]


def test_assignments_that_continue_another_version_are_refused(world: Path) -> None:
    config, assignments = settings(world), assign(world / "annotations", 9)
    with pytest.raises(PublishConflict, match="version 1 holds, and this run began with version 0"):
        publish(str(world / "faces"), str(world / "annotations"), assignments, config, base=0)
    assert publish(str(world / "faces"), str(world / "annotations"), assignments, config, base=1)[0].version == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.slice(1), "120 faces are annotated, 119 assigned .* changed after"),
        (lambda table: pa.concat_tables([table, table.slice(0, 1)]), "121 assigned .120 of them different"),
        (
            lambda table: table.set_column(0, table.schema.field(0), pa.array([f"x-{n}" for n in range(len(table))])),
            "face x-0 is assigned to an identity and not annotated",
        ),
        (
            lambda table: table.set_column(1, table.schema.field(1), pa.nulls(len(table), pa.string())),
            "neither an identity nor a reason",
        ),
    ],
)
def test_assignments_out_of_step_are_refused(annotated: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    assignments = spoil(assign(annotated / "annotations", 5))
    with pytest.raises(FacesError, match=message):
        publish(str(tmp_path / "faces"), str(annotated / "annotations"), assignments, settings(tmp_path))
    assert not (tmp_path / "faces").exists()


def test_a_face_in_two_parts_and_a_missing_part_are_named(annotated: Path, tmp_path: Path) -> None:
    shutil.copytree(annotated / "annotations", tmp_path / "annotations")
    assignments = assign(tmp_path / "annotations", 5)
    first, second = committed_parts(str(tmp_path / "annotations"))[:2]
    shutil.copy(first, second)
    with pytest.raises(FacesError, match=rf"face \w+-00 is in {first} and {second}"):
        publish_at(tmp_path, assignments)
    Path(second).unlink()
    with pytest.raises(FacesError, match=rf"{second} is committed and missing. Run: deca verify"):
        publish_at(tmp_path, assignments)


# --- Ray --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def all_by_ray(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> RayConfig:
    """Settings with which even little is moved by Ray."""
    monkeypatch.setattr("tasks.people.shuffle.LITTLE", 0)
    return RayConfig(workers=2)


def kill_one_task(name: str, killed: list[str], done: threading.Event) -> None:
    """SIGKILL the first of our Ray workers that is seen running a task of this name; what it was goes to `killed`."""
    family: list[int] = []
    looked = 0.0
    while not killed and not done.is_set():
        if time.monotonic() > looked + 0.5:  # who is there changes slowly, and all of /proc takes long to read
            family, looked = descendants(os.getpid()), time.monotonic()
        for process in family:
            title = b""
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0]
            if title.startswith(b"ray::") and name.encode() in title:
                os.kill(process, signal.SIGKILL)
                killed.append(title.decode())
                break
        time.sleep(0.005)


@pytest.mark.slow
def test_ray_gives_the_same_bytes_though_a_worker_is_killed(world: Path, all_by_ray: RayConfig) -> None:
    assignments = assign(world / "annotations", 30)
    here, _ = publish_at(world, assignments)
    shutil.copytree(world / "faces", world / "by-ray")
    for name in named_files(here) - named_files(read_version(str(world / "faces"), 1)):
        (world / "by-ray" / name).unlink()
    shutil.copy(world / "faces/versions/000001.json", world / "by-ray/_current.json")
    (world / "by-ray/versions/000002.json").unlink()
    killed: list[str] = []
    done = threading.Event()
    killer = threading.Thread(target=kill_one_task, args=("write", killed, done))
    killer.start()
    try:
        config = settings(world).model_copy(update={"ray": all_by_ray})
        there, new = publish(str(world / "by-ray"), str(world / "annotations"), assignments, config)
    finally:
        done.set()
        killer.join()
    assert (new, there) == (True, here)
    assert contents(world / "by-ray") == contents(world / "faces")
    assert killed


@pytest.mark.slow
def test_a_fault_in_a_ray_task_is_reported_as_without_ray(world: Path, all_by_ray: RayConfig) -> None:
    part = committed_parts(str(world / "annotations"))[3]
    pq.write_table(pq.read_table(part, columns=["face_id", "embedding"]), part)
    config = settings(world).model_copy(update={"ray": all_by_ray})
    with pytest.raises(StorageError, match=rf"cannot read {part}: "):
        publish(str(world / "afresh"), str(world / "annotations"), assign(world / "annotations", 30), config)
    assert current(str(world / "afresh")) is None


# --- kills and full disks ---------------------------------------------------------------------------------------------

# Publishes in a process of its own for every line that it is sent; what takes seconds to import is shared.
NURSERY = """
import os, sys
from tasks.people.shard import publish
from tests.tasks.annotated import assign, settings
folder = sys.argv[1]
for _ in sys.stdin:
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1], flush=True)
        continue
    assignments = assign(f"{folder}/annotations", 40)
    print(os.getpid(), flush=True)
    publish(f"{folder}/faces", f"{folder}/annotations", assignments, settings(folder, faces_per_shard=8))
    os._exit(0)
"""


@pytest.mark.slow
def test_killed_anywhere_the_old_version_holds_and_the_next_run_gives_the_same(world: Path) -> None:
    faces, draw, killed = world / "faces", random.Random(4), 0
    shutil.copytree(faces, world / "backup")
    started = time.monotonic()
    publish_at(world, assign(world / "annotations", 40), faces_per_shard=8)
    seconds, expected = time.monotonic() - started, contents(faces)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", NURSERY, str(world)], **pipes) as nursery:
        for _ in range(20):  # on a busy machine a publication may be over before the kill
            if killed == 3:
                break
            shutil.rmtree(faces)
            shutil.copytree(world / "backup", faces)
            nursery.stdin.write("publish\n")
            child = int(nursery.stdout.readline())
            time.sleep(draw.uniform(0, seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            killed += int(nursery.stdout.readline()) == signal.SIGKILL
            assert verify_faces(str(faces)).ok
            publish_at(world, assign(world / "annotations", 40), faces_per_shard=8)
            assert contents(faces) == expected
            # a write test does not say whose it is, so it is left for a day
            assert not list(faces.rglob(".deca-*"))
        nursery.stdin.close()
    assert killed == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_run_can_resume(small_disk: Path, tmp_path: Path) -> None:
    add_photos(tmp_path / "photos", range(20))
    annotate(tmp_path / "photos", tmp_path / "annotations", padding=8000)
    assignments = assign(tmp_path / "annotations", 9)
    few = assignments.filter(pc.equal(assignments["identity_id"], "person-3"))
    rest = pc.invert(pc.is_in(assignments["face_id"], few["face_id"]))
    left_out = pc.if_else(rest, "undecided", pa.scalar(None, pa.string()))
    few = assignments.set_column(3, "left_out", left_out)
    faces, annotations = str(small_disk), str(tmp_path / "annotations")
    first, _ = publish(faces, annotations, few, settings(tmp_path))
    with pytest.raises(StorageError, match=rf"cannot write {small_disk}/data/.*: the disk is full. .*df -h"):
        publish(faces, annotations, assignments, settings(tmp_path))
    assert current(faces) == first
    assert verify_faces(faces).ok
    assert not list(small_disk.rglob(".deca-*"))
    subprocess.run(["mount", "-o", "remount,size=16m", faces], check=True)
    version, new = publish(faces, annotations, assignments, settings(tmp_path))
    assert (version.version, new, verify_faces(faces).ok) == (2, True, True)


def test_an_interrupted_switch_is_finished(world: Path) -> None:
    faces = world / "faces"
    old = (faces / "_current.json").read_bytes()
    publish_at(world, assign(world / "annotations", 9))
    expected = contents(faces)
    (faces / "_current.json").write_bytes(old)  # the state between the record and _current.json
    assert current(str(faces)) == read_version(str(faces), 1)
    version, new = publish_at(world, assign(world / "annotations", 9))
    assert (version.version, new) == (2, True)
    assert contents(faces) == expected
    (faces / "_current.json").write_bytes(old)
    assert publish_at(world, assign(world / "annotations", 8))[0].version == 3  # another one takes the next number
    assert os.path.exists(faces / "versions/000002.json")
