"""Rows of an earlier result version made anew in place (schemas/results.py says what such a version is).

An upgrade begins with a round that has no units and says what rows mean from now on. Every run then works, after the
pending units, committed ones whose record says an earlier version. Such a unit keeps its index and its items; its new
part lies under a name of its own, then the commit record switches, then the old part goes. So a run may end anywhere,
rows of a unit are there at any time, and ids, erasures and rounds stay what they were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from schemas.ledger import CommitRecord, Unit
from tasks.units.commits import commit_table, read_commits
from tasks.units.plan import Plan


def outdated(plan: Plan) -> dict[int, int]:
    """Committed units with rows of an earlier result version and that version, in order; none if not upgraded."""
    if not plan.upgraded:
        return {}
    table = commit_table(plan, ["versions"])
    made = [dict(versions).get("result", plan.record.result_version) for versions in table["versions"].to_pylist()]
    units = table["unit"].to_pylist()
    return {unit: int(version) for unit, version in zip(units, made, strict=True) if int(version) < plan.result_version}


def renewals(plan: Plan, indices: Collection[int]) -> Iterator[Unit]:
    """Committed units to be worked again, in order, each with its record of before.

    What a later retry has taken over comes from the unit of that retry, which is worked again by itself.
    """
    wanted = set(indices)
    if not wanted:
        return
    retried: dict[int, list[tuple[int, int | None]]] = {}  # by item: unit and face of each retry
    for unit in plan.iter_units(plan.retry_units):
        for item in unit.items:
            retried.setdefault(item.index, []).append((unit.index, item.face_index))
    records: Iterator[CommitRecord] = (commit for commit in read_commits(plan.dest) if commit.unit in wanted)
    for unit, record in zip(plan.iter_units(wanted), records, strict=True):
        later = {
            item: [face for index, face in retried.get(item.index, ()) if index > unit.index] for item in unit.items
        }
        items = [item for item, faces in later.items() if item.face_index not in faces]
        faces = {f"{item.image_id}-{face:02d}" for item in items for face in later[item] if face is not None}
        yield Unit(unit.index, items, record, frozenset(faces))
