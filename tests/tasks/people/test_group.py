"""Identities, filters and reports over annotations that the real engine commits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas.engine import RayConfig, UnitsConfig
from schemas.faces import ASSIGNMENTS_SCHEMA, annotations_schema
from schemas.ingest import IngestConfig
from schemas.ledger import Item
from schemas.parquet import field_shape, fixed_array, write_table
from tasks.people.group import ANOTHER_FACE, FEW, NO_LABEL, Grouping, group, pairwise_scores, read_annotations
from tasks.people.identities import IdentityError
from tasks.sources.read import read_items
from tasks.units.engine import UnitOutput, run_units
from tasks.units.rounds import open_or_build

GOOD = {"sharpness": 50.0, "yaw": 0.0, "pitch": 0.0, "eye_distance": 60.0, "mask_coverage": 0.9}


class TextWorker:
    """Faces as an image's text tells them, a line a face: `subject`, then what differs from GOOD as name=value."""

    def process(self, items: Sequence[Item]) -> UnitOutput:
        schema = annotations_schema(128)
        rows = []
        for item, data in read_items(items, threads=1):
            assert isinstance(data, bytes)
            rows += [self.face(item, index, line) for index, line in enumerate(data.decode().splitlines())]
        columns = []
        for field in schema:
            if pa.types.is_fixed_size_list(field.type):
                zeros = np.zeros(field_shape(field))
                values = np.array([row.get(field.name, zeros) for row in rows], np.float32)
                columns.append(fixed_array(field, values.reshape(len(rows), *zeros.shape)))
            else:
                columns.append(pa.array([row.get(field.name) for row in rows], field.type))
        return UnitOutput(pa.Table.from_arrays(columns, schema=schema))

    def face(self, item: Item, index: int, line: str) -> dict[str, Any]:
        person, *differing = line.split()
        centre = np.random.default_rng(int(person)).normal(size=128) * 0.8 / 16
        own = np.random.default_rng(int(item.image_id, 16) + index).normal(size=128) * 0.3 / 16
        row: dict[str, Any] = {
            "face_id": f"{item.image_id}-{index:02d}",
            "image_id": item.image_id,
            "source_uri": item.source_uri,
            "face_index": index,
            "width": 64,
            "height": 64,
            "det_score": 1.0,
            "embedding": centre + own,
            **GOOD,
        }
        for name, _, value in (entry.partition("=") for entry in differing):
            row[name] = value if name == "label" else float(value)
        return row


class Archive:
    """A source of text images and its annotations."""

    def __init__(self, folder: Path) -> None:
        self.source, self.dest = folder / "photos", folder / "annotations"

    def add(self, pictures: dict[str, str]) -> None:
        for name, text in pictures.items():
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, ns=(10**18, 10**18))
        plan = open_or_build(str(self.dest), str(self.source), units=UnitsConfig(items_per_unit=3), mode="extend")
        run_units(plan, TextWorker, RayConfig(workers=0))

    def group(self, previous: pa.Table | None = None, **settings: Any) -> Grouping:
        config = {"source": str(self.source), "dest": "x", **settings}
        return group(str(self.dest), IngestConfig.model_validate(config), previous)

    def found(self, grouping: Grouping) -> dict[str, tuple[str | None, str | None]]:
        """ "image:face" -> (identity, reason)."""
        uris = read_annotations(str(self.dest), ["source_uri", "face_index"]).to_pylist()
        names = [f"{os.path.relpath(row['source_uri'], self.source)}:{row['face_index']}" for row in uris]
        rows = grouping.assignments.to_pylist()
        return {name: (row["identity_id"], row["left_out"]) for name, row in zip(names, rows, strict=True)}


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def crowd(people: range, pictures: int, start: int = 0) -> dict[str, str]:
    return {f"{person:02d}-{number}.jpg": f"{person}" for person in people for number in range(start, start + pictures)}


def as_bytes(table: pa.Table, path: Path) -> bytes:
    write_table(table, path)
    return path.read_bytes()


def people_of(archive: Archive, grouping: Grouping) -> dict[str, set[str | None]]:
    """Identities given to each subject of a `crowd`."""
    result: dict[str, set[str | None]] = {}
    for name, (identity, _) in archive.found(grouping).items():
        result.setdefault(name[:2], set()).add(identity)
    return result


def test_paths_name_subjects_and_the_largest_face_carries_the_name(archive: Archive) -> None:
    archive.add({"ada/1.jpg": "1\n2", "ada/2.jpg": "1", "é b/x.jpg": "3", "loose.jpg": "4"})
    pattern = {"pattern": "{identity}/{image}"}
    grouping = archive.group(identity=pattern)
    assert archive.found(grouping) == {
        "ada/1.jpg:0": ("ada", None),
        "ada/1.jpg:1": (None, ANOTHER_FACE),
        "ada/2.jpg:0": ("ada", None),
        "é b/x.jpg:0": ("é b", None),
        "loose.jpg:0": (None, NO_LABEL),
    }
    assert grouping.assignments.schema.equals(ASSIGNMENTS_SCHEMA, check_metadata=True)
    assert set(grouping.assignments["identity_source"].to_pylist()) == {"label"}
    ids = grouping.assignments["face_id"].to_pylist()
    assert ids == sorted(ids)
    report = grouping.report
    assert (report.method, report.faces, report.kept, report.identities) == ("path", 5, 3, 2)
    assert report.left_out == {ANOTHER_FACE: 1, NO_LABEL: 1}
    assert {name: count for name, count in report.sizes.items() if count} == {"1": 1, "2-4": 1}
    everyone = archive.found(archive.group(identity={**pattern, "labelled_faces": "all"}))
    assert everyone["ada/1.jpg:1"] == ("ada", None)


def test_a_small_face_does_not_inherit_the_name_of_a_blurred_large_one(archive: Archive) -> None:
    archive.add({"ada/1.jpg": "1 sharpness=0.1\n2"})
    found = archive.found(archive.group(identity={"pattern": "{identity}/{image}"}))
    assert found == {"ada/1.jpg:0": ("ada", "sharpness"), "ada/1.jpg:1": (None, ANOTHER_FACE)}


def test_filters_name_the_figure(archive: Archive) -> None:
    bad = {"eye_distance": "15.9", "sharpness": "nan", "yaw": "-76", "mask_coverage": "0.19"}
    archive.add({f"{name}.jpg": f"1 {name}={value}" for name, value in bad.items()})
    archive.add({"two.jpg": "1 yaw=80 eye_distance=3", "edge.jpg": "1 yaw=-75 eye_distance=16"})
    grouping = archive.group(identity={"method": "none"})
    reasons = {name.split(".")[0]: reason for name, (_, reason) in archive.found(grouping).items()}
    assert reasons == {**{name: name for name in bad}, "two": "eye_distance", "edge": None}
    off = {"min_eye_distance": None, "min_sharpness": None, "max_yaw": None, "min_mask_coverage": None}
    assert archive.group(identity={"method": "none"}, filters=off).report.kept == 6


def test_every_face_is_alone_without_a_method(archive: Archive) -> None:
    archive.add(crowd(range(2), 3))
    assignments = archive.group(identity={"method": "none"}).assignments
    assert assignments["identity_id"].to_pylist() == [f"p-{face}" for face in assignments["face_id"].to_pylist()]
    assert set(assignments["identity_source"].to_pylist()) == {"none"}


def test_a_table_names_subjects(archive: Archive, tmp_path: Path) -> None:
    archive.add(crowd(range(2), 2))
    (tmp_path / "who.csv").write_text("path,identity\nphotos/00-0.jpg,ada\n00-1.jpg,ada\n01-0.jpg,bob\n")
    found = archive.found(archive.group(identity={"table": str(tmp_path / "who.csv")}))
    assert [found[f"{name}.jpg:0"][0] for name in ("00-0", "00-1", "01-0", "01-1")] == ["ada", "ada", "bob", None]


def test_labels_beside_the_images(archive: Archive) -> None:
    archive.add({"1.jpg": "1 label=ada", "2.jpg": "2"})
    sidecar = {"sidecar": {"identity": ["{stem}.id.txt"]}}
    found = archive.found(archive.group(annotate=sidecar))
    assert found == {"1.jpg:0": ("ada", None), "2.jpg:0": (None, NO_LABEL)}


def test_labels_that_name_nothing_are_errors(archive: Archive, tmp_path: Path) -> None:
    archive.add(crowd(range(1), 2))
    with pytest.raises(IdentityError, match=r"matches none of the 2 .* '00-\d\.jpg'"):
        archive.group(identity={"pattern": "{identity}/{image}"})
    with pytest.raises(IdentityError, match="no image has a label beside it"):
        archive.group(identity={"method": "sidecar"})


def test_clusters_are_the_subjects_and_are_scored_where_paths_tell(archive: Archive) -> None:
    archive.add(crowd(range(8), 4))
    grouping = archive.group(identity={"method": "cluster", "pattern": "{identity}-{image}"})
    found = people_of(archive, grouping)
    assert all(len(identities) == 1 for identities in found.values())
    assert len(set.union(*found.values())) == 8
    rows = grouping.assignments.to_pylist()
    first = {row["identity_id"]: row["face_id"] for row in reversed(rows)}
    assert all(identity == f"p-{face}" for identity, face in first.items()), "named by the smallest face_id"
    scores = grouping.report.scores
    assert scores is not None
    assert (scores.precision, scores.recall, scores.purity, scores.faces) == (1, 1, 1, 32)
    assert archive.group().report.scores is None


def test_two_faces_of_an_image_are_never_one_subject(archive: Archive) -> None:
    archive.add({**crowd(range(1), 4), "twins.jpg": "0\n0"})
    found = archive.found(archive.group())
    assert found["twins.jpg:0"][0] != found["twins.jpg:1"][0]


def test_new_images_change_only_what_they_must(archive: Archive, tmp_path: Path) -> None:
    archive.add(crowd(range(8), 4))
    before = archive.group()
    assert as_bytes(archive.group(before.assignments).assignments, tmp_path / "a") == as_bytes(
        before.assignments, tmp_path / "b"
    ), "nothing new, nothing changes"
    archive.add(crowd(range(4, 12), 3, start=9))
    after = archive.group(before.assignments)
    kept = {row["face_id"]: row["identity_id"] for row in before.assignments.to_pylist()}
    now = {row["face_id"]: row["identity_id"] for row in after.assignments.to_pylist()}
    assert kept.items() <= now.items()
    people = people_of(archive, after)
    assert all(len(identities) == 1 for identities in people.values())
    assert len(set.union(*people.values())) == 12
    assert after.report.joined == 12
    again = archive.group(before.assignments)
    assert as_bytes(after.assignments, tmp_path / "a") == as_bytes(again.assignments, tmp_path / "b")


def test_identities_survive_other_filters_and_go_with_their_image(archive: Archive) -> None:
    archive.add({f"{number}.jpg": f"1 eye_distance={20 + number}" for number in range(5)})
    before = archive.group()
    name = before.assignments["identity_id"][0].as_py()
    stricter = archive.found(archive.group(before.assignments, filters={"min_eye_distance": 22.5}))
    assert [stricter[f"{number}.jpg:0"] for number in range(5)] == [(name, "eye_distance")] * 3 + [(name, None)] * 2
    fresh = archive.group(before.assignments, filters={"min_eye_distance": 22.5}, identity={"regroup": True})
    assert [archive.found(fresh)[f"{number}.jpg:0"][0] for number in range(3)] == [None] * 3
    gone = pa.Table.from_pylist(
        [{"face_id": "gone-00", "identity_id": name, "identity_source": "cluster", "left_out": None, "descriptor": 1}],
        schema=ASSIGNMENTS_SCHEMA,
    )
    later = archive.group(pa.concat_tables([before.assignments, gone]))
    assert later.assignments == before.assignments


def test_the_founder_of_a_subject_comes_back_as_another(archive: Archive) -> None:
    archive.add(crowd(range(2), 3))
    before = archive.group().assignments
    rows = before.to_pylist()
    founder, *others = [row for row in rows if row["identity_id"] == rows[0]["identity_id"]]
    stranger = next(row for row in rows if row["identity_id"] != founder["identity_id"])
    # The founder's own image shows the other subject now: what was known of it is gone.
    ids = read_annotations(str(archive.dest), ["source_uri"]).to_pylist()
    path = Path(ids[0]["source_uri"])
    path.write_text("77")
    archive.add({})
    previous = pa.Table.from_pylist([*others, stranger], schema=ASSIGNMENTS_SCHEMA)
    now = {row["face_id"]: row["identity_id"] for row in archive.group(previous).assignments.to_pylist()}
    name = now[founder["face_id"]]
    assert name not in {row["identity_id"] for row in rows}
    assert name.startswith(founder["identity_id"])
    assert {now[row["face_id"]] for row in others} == {founder["identity_id"]}


def test_images_swapped_under_one_name_change_their_identities(archive: Archive) -> None:
    archive.add(crowd(range(2), 3))
    before = archive.group()
    names = {name: identity for name, (identity, _) in archive.found(before).items()}
    assert names["00-0.jpg:0"] != names["01-0.jpg:0"]
    archive.add({"00-0.jpg": "1 ", "01-0.jpg": "0 "})
    after = archive.found(archive.group(before.assignments))
    swapped = {"00-0.jpg:0": names["01-1.jpg:0"], "01-0.jpg:0": names["00-1.jpg:0"]}
    assert {name: identity for name, (identity, _) in after.items()} == names | swapped


def test_a_name_never_passes_to_another_subject(archive: Archive) -> None:
    archive.add({**crowd(range(3), 1), **crowd(range(5, 6), 3)})
    grouping = archive.group()
    friends = archive.found(grouping)["05-0.jpg:0"][0]
    names = {archive.found(grouping)["00-0.jpg:0"][0]}
    for person in ("7  ", "8   ", "0"):
        archive.add({"00-0.jpg": person})
        grouping = archive.group(grouping.assignments)
        people = people_of(archive, grouping)
        assert [len(identities) for identities in people.values()] == [1, 1, 1, 1]
        assert people["05"] == {friends}
        names |= people["00"]
    assert len(names) == 4


def test_descriptors_are_kept_of_the_faces_that_were_clustered(archive: Archive) -> None:
    archive.add({"0.jpg": "1", "1.jpg": "1", "2.jpg": "1 sharpness=0"})
    vectors = read_annotations(str(archive.dest), ["embedding", "sharpness"]).to_pylist()
    expected = [
        int.from_bytes(hashlib.blake2b(np.float32(row["embedding"]).tobytes()).digest()[:8], "little", signed=True)
        if row["sharpness"]
        else None
        for row in vectors
    ]
    assert archive.group().assignments["descriptor"].to_pylist() == expected
    assert archive.group(identity={"method": "none"}).assignments["descriptor"].null_count == 3


def test_subjects_with_few_images_wait_and_grow(archive: Archive) -> None:
    archive.add({**crowd(range(1), 4), **crowd(range(1, 2), 2)})
    before = archive.group(shards={"min_images": 3})
    found = archive.found(before)
    assert [reason for name, (_, reason) in found.items() if name.startswith("01")] == [FEW, FEW]
    assert before.report.identities == 1
    name = found["01-0.jpg:0"][0]
    archive.add(crowd(range(1, 2), 1, start=7))
    found = archive.found(archive.group(before.assignments, shards={"min_images": 3}))
    assert [found[f"01-{number}.jpg:0"] for number in (0, 1, 7)] == [(name, None)] * 3


def test_an_archive_without_faces(archive: Archive) -> None:
    archive.add({"1.jpg": ""})
    for identity in ({}, {"pattern": "{identity}/{image}"}, {"method": "none"}):
        grouping = archive.group(identity=identity)
        assert len(grouping.assignments) == 0
        assert grouping.report.identities == 0


def test_parts_without_a_commit_are_not_read(archive: Archive) -> None:
    archive.add(crowd(range(2), 3))
    part = next(archive.dest.glob("part-*.parquet"))
    (archive.dest / "part-00099-deadbeef.parquet").write_bytes(part.read_bytes())
    assert len(read_annotations(str(archive.dest), ["yaw"])) == 6
    assert read_annotations(str(archive.dest), ["yaw"]).column_names == ["yaw"]


def test_scores_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    assigned, true = rng.integers(0, 5, 60), rng.integers(0, 7, 60).astype(str)
    together, same = (labels[:, None] == labels[None] for labels in (assigned, true))
    upper = np.triu_indices(60, 1)
    scores = pairwise_scores(assigned, true)
    assert scores.precision == pytest.approx(same[upper][together[upper]].mean())
    assert scores.recall == pytest.approx(together[upper][same[upper]].mean())
    commonest = sum(np.unique(true[assigned == label], return_counts=True)[1].max() for label in range(5))
    assert scores.purity == pytest.approx(commonest / 60)
    assert pairwise_scores(np.arange(3), np.array([1, 1, 2])).precision == 1.0
