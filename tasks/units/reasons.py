"""Quarantine reasons by frequency, and the error of a flow that produced no row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow.compute as pc

from deca_core.errors import DecaError
from tasks.units.commits import commit_table, standing_rows
from tasks.units.plan import Plan
from tasks.units.tombstones import read_erased

EXAMPLES = 3  # URIs shown for one reason
NAMED = 4  # reasons named in an error
MESSAGE_LIMIT = 300  # characters of a reason's first message there


class NoRowsError(DecaError):
    """All units are done and no row was produced; lists the reasons by frequency and the next command."""


@dataclass(frozen=True)
class Reason:
    """Quarantined rows that share stage and error."""

    stage: str
    error: str
    rows: int
    examples: list[tuple[str, str]]  # (URI, message)

    def __str__(self) -> str:
        message = self.examples[0][1]
        shown = message if len(message) <= MESSAGE_LIMIT else f"{message[:MESSAGE_LIMIT]}..."
        return f"{self.stage} {self.error} ({shown})"


def quarantine_reasons(plan: Plan) -> list[Reason]:
    """Return the standing quarantine by stage and error, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for _, row in standing_rows(plan):
        key = (row.stage, row.error)
        counts[key] += 1
        found = examples.setdefault(key, [])
        if len(found) < EXAMPLES:
            found.append((row.uri, row.message))
    return [Reason(*key, rows, examples[key]) for key, rows in sorted(counts.items(), key=lambda e: (-e[1], e[0]))]


def check_rows(plan: Plan, new: int, what: str) -> None:
    """Raise NoRowsError if all units are done without any row, or if nothing was planned.

    new: rows of this run; what: plural noun of the plan's items. Erased rows do not count as lost.
    """
    if not plan.inputs.items:
        raise NoRowsError(f"{plan.record.source} holds no {what}, so there is nothing to do")
    if new:
        return
    rows = commit_table(plan, ["rows"])["rows"]
    if len(rows) < plan.units or pc.any(pc.greater(rows, 0)).as_py() or read_erased(plan.store):
        return
    lost = [(reason.rows, str(reason)) for reason in quarantine_reasons(plan)]
    raise NoRowsError(f"nothing came of {counted(plan, what)}: {by_number(lost)}. {where_to_look(plan.dest)}")


def by_number(lost: Iterable[tuple[int, str]]) -> str:
    """Return (rows, reason) pairs as text, the most frequent first."""
    ordered = sorted(lost, key=lambda entry: -entry[0])
    rest = [f"{len(ordered) - NAMED} other reasons"] if len(ordered) > NAMED else []
    return ", ".join([*(f"{rows} x {reason}" for rows, reason in ordered[:NAMED]), *rest]) or "no reason is recorded"


def counted(plan: Plan, what: str) -> str:
    """Return the number of items of a plan as text; what: the plural noun."""
    return f"{plan.inputs.items} {what if plan.inputs.items != 1 else what.removesuffix('s')}"


def where_to_look(dest: str) -> str:
    return f"Look: deca status {dest}"
