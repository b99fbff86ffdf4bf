"""Why rows were lost, the commonest reason first; and the end of a flow that has lost every one of them."""

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
    """A flow of which nothing came, though all was tried: why, by number, and where to look."""


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
    """Standing quarantine by stage and error, the most frequent first."""
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
    """Raise NoRowsError where all units are done and not one row came of them, or nothing was planned at all.

    new: rows that this run has made; what: the plan's items are. Rows that are gone because they were erased are not
    lost.
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
    """(rows, reason) as text, the commonest first."""
    ordered = sorted(lost, key=lambda entry: -entry[0])
    rest = [f"{len(ordered) - NAMED} other reasons"] if len(ordered) > NAMED else []
    return ", ".join([*(f"{rows} x {reason}" for rows, reason in ordered[:NAMED]), *rest]) or "no reason is recorded"


def counted(plan: Plan, what: str) -> str:
    """How many items a plan has, in words; what: the plural."""
    return f"{plan.inputs.items} {what if plan.inputs.items != 1 else what.removesuffix('s')}"


def where_to_look(dest: str) -> str:
    return f"Look: deca status {dest}"
