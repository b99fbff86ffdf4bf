"""Consensus: the median against scipy's, outliers, datasets written by the engine, crashes, stale records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.optimize import minimize

from deca_core.assets import procedural_head
from schemas.engine import RayConfig, UnitsConfig
from schemas.ledger import Item, Quarantined
from schemas.parquet import fixed_array, fixed_field, fixed_values
from tasks.heads import consensus
from tasks.heads.consensus import (
    ConsensusError,
    consensus_record,
    make_consensus,
    median_weights,
    read_consensus,
    robust_weights,
    share_codes,
    verify_consensus,
)
from tasks.store.storage import Store
from tasks.units.commits import committed_parts
from tasks.units.engine import UnitOutput, run_units
from tasks.units.rounds import open_or_build, plan_retry

PEOPLE = ["ada", "bob", "cyd", None]  # the last: no identity
PICTURES = 9  # of each
SCHEMA = pa.schema(
    [
        pa.field("face_id", pa.string(), nullable=False),
        pa.field("identity_id", pa.string()),
        fixed_field("shape", (100,)),
        fixed_field("detail", (128,)),
    ]
)
BUNDLE = SimpleNamespace(hash="head", shape_basis=procedural_head().shape_basis)


def codes_of(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of image `number`: its identity's and noise; two of bob's nine images show another subject."""
    person, picture = number % len(PEOPLE), number // len(PEOPLE)
    own, noise = np.random.default_rng(100 + person), np.random.default_rng(1000 + number)
    shape, detail = own.standard_normal(100), own.standard_normal(128)
    if person == 1 and picture in (2, 5):
        shape, detail = shape + 8, detail - 8
    return shape + 0.1 * noise.standard_normal(100), detail + 0.1 * noise.standard_normal(128)


class CodesWorker:
    """One row an image; image 7 fails the first time."""

    def process(self, items: Sequence[Item]) -> UnitOutput:
        good = [item for item in items if item.index != 7 or item.attempts]
        bad = [Quarantined.of(item, "read", "ReadError", "not yet") for item in items if item not in good]
        codes = [codes_of(item.index) for item in good]
        columns = [
            pa.array([f"{item.index:03d}" for item in good]),
            pa.array([PEOPLE[item.index % len(PEOPLE)] for item in good], pa.string()),
            *(
                fixed_array(SCHEMA.field(name), np.array([pair[at] for pair in codes], np.float32))
                for at, name in enumerate(("shape", "detail"))
            ),
        ]
        return UnitOutput(pa.table(columns, schema=SCHEMA), bad)


def written(dest: object, unit: int = 5) -> str:
    items = [Item(index=number, uri=f"{number}.jpg") for number in range(len(PEOPLE) * PICTURES)]
    plan = open_or_build(str(dest), "people", items=items, units=UnitsConfig(items_per_unit=unit))
    run_units(plan, CodesWorker, RayConfig(workers=0))
    return plan.dest


def rows(dest: str) -> dict[str, dict[str, object]]:
    return {row["identity_id"]: row for row in read_consensus(dest).to_pylist()}


# --- the median -------------------------------------------------------------------------------------------------------


def test_it_is_the_point_with_the_least_sum_of_distances():
    points = np.random.default_rng(0).standard_normal((1, 7, 4)) * [1, 2, 3, 4]
    found = (points * median_weights(points)[..., None]).sum(axis=1)[0]
    least = minimize(lambda x: np.linalg.norm(points[0] - x, axis=1).sum(), points[0].mean(0), method="Nelder-Mead")
    assert np.linalg.norm(found - least.x) < 2e-3


@pytest.mark.parametrize("strangers", [0, 1, 5, 9])
def test_less_than_half_of_the_images_may_show_other_subjects(strangers):
    generator = np.random.default_rng(strangers)
    truth = generator.standard_normal(100)
    points = truth + 0.3 * generator.standard_normal((20, 100))
    points[:strangers] = 50 * generator.standard_normal(100)
    weights = robust_weights(points[None])[0]
    assert np.flatnonzero(weights == 0).tolist() == list(range(strangers))
    assert weights @ points == pytest.approx(points[strangers:].mean(0))


def test_one_stranger_among_three_is_found():
    points = np.random.default_rng(0).standard_normal((1, 3, 100))
    points[0, 1] += 3  # as far as another subject is
    assert robust_weights(points)[0].tolist() == [0.5, 0, 0.5]


def test_equal_images_two_images_and_one():
    assert robust_weights(np.ones((1, 5, 3))) == pytest.approx(np.full((1, 5), 0.2))
    assert robust_weights(np.random.default_rng(0).standard_normal((2, 2, 3))) == pytest.approx(np.full((2, 2), 0.5))
    assert robust_weights(np.zeros((1, 1, 3))) == pytest.approx(1)


def test_a_result_does_not_depend_on_other_identities():
    points = np.random.default_rng(0).standard_normal((6, 5, 100))
    together = median_weights(points)
    assert all(np.array_equal(median_weights(points[[one]])[0], together[one]) for one in range(6))
    assert np.array_equal(robust_weights(points[[3]])[0], robust_weights(points)[3])


def test_distances_are_millimetres_of_vertices():
    from deca_core.flame import FLAME

    bundle, generator = procedural_head(), np.random.default_rng(0)
    import torch

    a, b = (torch.from_numpy(generator.standard_normal((1, 100)).astype(np.float32)) for _ in range(2))
    still = torch.zeros(1, 50), torch.zeros(1, 6)
    flame = FLAME(bundle)
    apart = (flame(a, *still).vertices - flame(b, *still).vertices).square().sum(-1).mean().sqrt() * 1000
    measured = np.linalg.norm((a - b).numpy()[0] @ consensus.shape_metric(bundle))
    assert measured == pytest.approx(float(apart), rel=1e-3)


# --- the dataset ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_identities_get_their_codes_whatever_their_units(tmp_path, place):
    dest = written(tmp_path / "out" if place == "folder" else f"memory://{tmp_path.name}")
    record = make_consensus(dest, BUNDLE, detail=True)
    assert (record.identities, record.faces, record.unknown) == (3, 27, 8)  # image 7 has no identity
    found = rows(dest)
    assert [(row["count"], row["used"]) for row in found.values()] == [(9, 9), (9, 7), (9, 9)]
    assert list(found) == ["ada", "bob", "cyd"]
    for person, name in enumerate(PEOPLE[:3]):
        own = np.random.default_rng(100 + person)
        for code in ("shape", "detail"):
            truth = own.standard_normal(len(found[name][code]))
            assert np.abs(np.array(found[name][code]) - truth).max() < 0.2
    assert found["ada"]["spread"] < 1
    assert verify_consensus(dest).ok


def test_units_of_another_size_give_the_same_bytes(tmp_path):
    files = [make_consensus(written(tmp_path / str(size), size), BUNDLE).file.file for size in (2, 5, 40)]
    data = [
        pq.read_table(tmp_path / str(size) / "consensus" / name) for size, name in zip((2, 5, 40), files, strict=True)
    ]
    assert data[0].equals(data[1])
    assert data[0].equals(data[2])


def test_rows_read_through_it_share_one_skull(tmp_path):
    dest = written(tmp_path / "out")
    make_consensus(dest, BUNDLE)
    table = pq.read_table(committed_parts(dest))
    shared = share_codes(table, read_consensus(dest))
    assert shared.schema.equals(table.schema, check_metadata=True)
    shapes, own = fixed_values(shared, "shape"), fixed_values(table, "shape")
    names = np.array(table["identity_id"].to_pylist())
    for name in PEOPLE[:3]:
        assert len(np.unique(shapes[names == name], axis=0)) == 1
        assert len(np.unique(own[names == name], axis=0)) == PICTURES
    unknown = names == None  # noqa: E711 elementwise
    assert np.array_equal(shapes[unknown], own[unknown])
    assert np.array_equal(fixed_values(shared, "detail"), fixed_values(table, "detail"))


def test_again_does_nothing_and_new_rows_make_it_stale(tmp_path):
    dest = written(tmp_path / "out")
    first = make_consensus(dest, BUNDLE)
    file = tmp_path / "out" / "consensus" / first.file.file
    stamp = file.stat().st_mtime_ns
    assert make_consensus(dest, BUNDLE) == first
    assert file.stat().st_mtime_ns == stamp
    run_units(plan_retry(dest), CodesWorker, RayConfig(workers=0))
    with pytest.raises(ConsensusError, match=r"rows came or went.*--consensus identity"):
        read_consensus(dest)
    assert not verify_consensus(dest).ok
    second = make_consensus(dest, BUNDLE)
    assert second.unknown == first.unknown + 1
    assert verify_consensus(dest).ok


def test_a_run_that_ends_before_the_record_leaves_the_earlier_one_whole(tmp_path, monkeypatch):
    dest = written(tmp_path / "out")
    first = make_consensus(dest, BUNDLE)
    before = read_consensus(dest)

    def full(self: Store, name: str, data: bytes) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        with pytest.raises(OSError, match="no space"):
            make_consensus(dest, BUNDLE, detail=True)
    assert consensus_record(dest) == first
    assert read_consensus(dest).equals(before)
    assert len(verify_consensus(dest).leftovers) == 1
    second = make_consensus(dest, BUNDLE, detail=True)
    assert second.detail
    assert verify_consensus(dest).leftovers == []


def test_damage_is_found(tmp_path):
    dest = written(tmp_path / "out")
    with pytest.raises(ConsensusError, match="has no consensus"):
        read_consensus(dest)
    file = tmp_path / "out" / "consensus" / make_consensus(dest, BUNDLE).file.file
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "changed" in verify_consensus(dest).problems[0]
    file.unlink()
    assert "missing" in verify_consensus(dest).problems[0]
    make_consensus(dest, BUNDLE)
    assert verify_consensus(dest).ok


def test_rows_without_identity_have_no_consensus(tmp_path):
    plan = open_or_build(str(tmp_path / "out"), "people", items=[Item(index=3, uri="3.jpg")])
    run_units(plan, partial(CodesWorker), RayConfig(workers=0))
    with pytest.raises(ConsensusError, match=r"identity_id.*deca ingest"):
        make_consensus(plan.dest, BUNDLE)
