"""Datasets of schema 1: refused with the command, brought up to date, whole, and of use afterwards.

tests/schema_1/tiny was made by the last version that wrote schema 1: six items `memory://photos/0.jpg` ... in three
units, one row each but for items 1 (failed once, then came by a retry round) and 3 (failed twice).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.engine import RayConfig
from schemas.ledger import SCHEMA_VERSION, CommitRecord, Item, PlanRecord, RoundRecord
from tasks.people.versions import FacesError, open_faces
from tasks.store.records import SchemaError
from tasks.store.storage import Store
from tasks.trust import migrate as module
from tasks.trust.erase import Asked, erase
from tasks.trust.migrate import migrate
from tasks.units.commit import UnitOutput
from tasks.units.commits import committed_parts, read_commits, standing_quarantine
from tasks.units.engine import run_units
from tasks.units.plan import PlanError, load_plan
from tasks.units.rounds import plan_retry
from tasks.units.verify import status, verify
from tests.tasks.stored_faces import publish

STORED = Path(__file__).resolve().parents[2] / "schema_1/tiny"


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(shutil.copytree(STORED, tmp_path / "tiny"))


def rows(dest: str) -> list[dict[str, object]]:
    return pa.concat_tables(pq.read_table(uri) for uri in committed_parts(dest)).sort_by("size").to_pylist()


def test_an_older_dataset_is_refused_with_the_command(tiny: str) -> None:
    with pytest.raises(SchemaError, match=rf"_plan.json has schema 1, this version writes 3. Run: deca migrate {tiny}"):
        load_plan(tiny)
    for reader in (status, verify, read_commits, plan_retry):
        with pytest.raises(SchemaError, match="Run: deca migrate"):
            reader(tiny)


def test_it_is_whole_afterwards_and_its_rows_are_what_they_were(tiny: str) -> None:
    before = {path.name: path.read_bytes() for path in Path(tiny).rglob("*.parquet")}
    [done] = migrate(tiny)
    assert (done.before, done.after, done.records) == (1, 3, 6)
    assert {path.name: path.read_bytes() for path in Path(tiny).rglob("*.parquet")} == before
    assert (verify(tiny).problems, verify(tiny).leftovers) == ([], [])
    assert [(row["size"], row["identity_id"]) for row in rows(tiny)] == [
        *[(0, "person-0"), (1, "person-1"), (2, "person-0"), (4, "person-0"), (5, "person-1")]
    ]
    [stands] = standing_quarantine(tiny)
    assert (stands.index, stands.attempts) == (3, 2)
    assert [one.records for one in migrate(tiny)] == [0]
    for path in (*Path(tiny).glob("_commits/*"), *Path(tiny).glob("_plan*/*.json"), Path(tiny, "_plan.json")):
        assert json.loads(path.read_text())["schema_version"] == SCHEMA_VERSION


class Tiny:
    """What made the rows, as far as it matters here; item 3 succeeds today."""

    def process(self, items: Sequence[Item]) -> UnitOutput:
        schema = pq.read_schema(STORED / "part-00000-68b95246.parquet").remove_metadata()
        columns = [
            [f"{item.image_id}-00" for item in items],
            [item.image_id for item in items],
            [item.source_uri for item in items],
            [f"person-{item.index % 2}" for item in items],
            [item.index for item in items],
        ]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        return UnitOutput(pa.table(arrays, schema=schema))


def test_it_is_of_use_afterwards(tiny: str) -> None:
    migrate(tiny)
    run_units(plan_retry(tiny), Tiny, RayConfig(workers=0))
    assert [row["size"] for row in rows(tiny)] == [0, 1, 2, 3, 4, 5]
    erase([tiny], Asked(identities=frozenset({"person-1"})))
    assert [row["size"] for row in rows(tiny)] == [0, 2, 4]
    assert verify(tiny).ok


@pytest.mark.parametrize("at", range(6))
def test_a_killed_migration_resumes(tiny: str, at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = shutil.copytree(STORED, tmp_path / "whole")
    migrate(str(whole))
    real, count = Store.write, 0

    def dies(self: Store, name: str, data: bytes) -> tuple[int, str]:
        nonlocal count
        count += 1
        if count > at:
            raise KeyboardInterrupt
        return real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            migrate(tiny)
    with pytest.raises(SchemaError, match="deca migrate"):
        load_plan(tiny)
    assert migrate(tiny)[0].records == 6 - at
    for path in whole.rglob("*.json"):
        assert (Path(tiny) / path.relative_to(whole)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["_plan.json", "_commits/00001-68b95246.json"])
def test_a_newer_dataset_is_refused_with_the_command(tiny: str, name: str) -> None:
    migrate(tiny)
    path = Path(tiny, name)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 4, "of the future": 1}))
    with pytest.raises(SchemaError, match=r"has schema 4, this version reads 3: a newer one.*pip install --upgrade"):
        list(read_commits(tiny))
    if name == "_plan.json":
        with pytest.raises(SchemaError, match="pip install --upgrade"):
            migrate(tiny)


def test_newer_faces_are_refused_as_well(tmp_path: Path) -> None:
    publish(str(tmp_path / "faces"), [2, 2], shards=1)
    path = tmp_path / "faces/_current.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(SchemaError, match=r"_current.json has schema 2, this version reads 1.*pip install"):
        open_faces(str(tmp_path / "faces"))
    path.write_text("{}")
    with pytest.raises(FacesError, match="damaged"):
        open_faces(str(tmp_path / "faces"))


def test_damaged_records_are_named(tiny: str) -> None:
    Path(tiny, "_commits/00001-68b95246.json").write_text('{"schema')
    with pytest.raises(PlanError, match=r"_commits/00001-.*is damaged.*deca verify"):
        migrate(tiny)


def test_there_is_a_step_from_every_earlier_schema_to_this_one(tiny: str) -> None:
    assert sorted(module.STEPS) == list(range(1, SCHEMA_VERSION))
    migrate(tiny)
    store = Store(tiny)
    PlanRecord.model_validate_json(store.read("_plan.json"))
    RoundRecord.model_validate_json(store.read("_plan/round-00001.json"))
    CommitRecord.model_validate_json(store.read("_commits/00000-68b95246.json"))
