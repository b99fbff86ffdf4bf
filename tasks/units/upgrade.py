"""Recompute rows of an earlier result version in place (see schemas/results.py).

An upgrade begins with a round without units that sets the new result version. Every run then processes, after the
pending units, committed units of an earlier version. Such a unit keeps its index and items; its new part is published
under a new name, the commit record switches, the old part is deleted. So a run may be killed anywhere, rows of a unit
are always available, and ids, erasures and rounds are unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from schemas.ledger import CommitRecord, Unit
from tasks.units.commits import commit_table, read_commits
from tasks.units.plan import Plan


def outdated(plan: Plan) -> dict[int, int]:
    """Return {committed unit: its earlier result version}, in order; empty unless the plan is being upgraded."""
    if not plan.upgraded:
        return {}
    table = commit_table(plan, ["versions"])
    made = [dict(versions).get("result", plan.record.result_version) for versions in table["versions"].to_pylist()]
    units = table["unit"].to_pylist()
    return {unit: int(version) for unit, version in zip(units, made, strict=True) if int(version) < plan.result_version}


def renewals(plan: Plan, indices: Collection[int]) -> Iterator[Unit]:
    """Yield committed units to recompute, in order, each with its current record.

    Items superseded by a later retry are left to the unit of that retry, which is recomputed itself.
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
