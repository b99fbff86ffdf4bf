"""From the rows of every model to what each loss is worth, and to the page, the Markdown and the numbers of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deca_core.metrics import shape_points
from schemas.ablate import FIGURES, SCAN_MEDIAN, SHAPE_RATIO, AblateSummary, Comparison, Verdict
from schemas.evaluate import MethodFigures
from schemas.parquet import fixed_values
from tasks.measure.bootstrap import (
    Ints,
    Statistic,
    difference_interval,
    mean_over_pictures,
    pooled_median,
    spread_ratio,
    value_of,
)
from tasks.measure.evaluation_report import MM, templates
from tasks.store.storage import Store

PAGE, MARKDOWN, NUMBERS = (f"_report/ablations.{suffix}" for suffix in ("html", "md", "json"))
FEWEST_PEOPLE = 10  # whom an interval can be drawn from
FULL = "full recipe"


class MeasuredRows:
    """The rows of evaluations/ by method. shape_basis (V,3,100) metres: of the vertices that count."""

    def __init__(self, rows: pa.Table, shape_basis: NDArray[np.float32]) -> None:
        self._rows, self._basis = rows, MM * shape_basis
        self.identities: list[str] = sorted(pc.unique(rows["identity_id"]).to_pylist())

    def __getitem__(self, method: str) -> pa.Table:
        return self._rows.filter(pc.equal(self._rows["method"], method))

    def pair(self, figure: str, first: str, second: str) -> tuple[Statistic, Statistic]:
        """A figure of two methods, over the pictures that have it in both."""
        tables = [self[method] for method in (first, second)]
        if figure in (SCAN_MEDIAN.name, SHAPE_RATIO.name):
            one, other = (self._pooled(figure, table) for table in tables)
            return one, other
        values = [table[figure].to_numpy(zero_copy_only=False).astype(np.float64) for table in tables]  # null: NaN
        known = np.isfinite(values[0]) & np.isfinite(values[1])
        people = self._people(tables[0])[known]
        one, other = (mean_over_pictures(own[known], people, len(self.identities)) for own in values)
        return one, other

    def _pooled(self, figure: str, table: pa.Table) -> Statistic:
        people = self._people(table)
        if figure == SHAPE_RATIO.name:
            return spread_ratio(shape_points(fixed_values(table, "shape"), self._basis), people, len(self.identities))
        counts = pc.list_value_length(table["scan_mm"]).to_numpy()
        return pooled_median(pc.list_flatten(table["scan_mm"]).to_numpy(), np.repeat(people, counts))

    def _people(self, table: pa.Table) -> Ints:
        """Number of the person on every row."""
        return np.searchsorted(np.array(self.identities), np.array(table["identity_id"].to_pylist())).astype(np.int64)


def compare(rows: MeasuredRows, variant: str, figure: str, methods: Sequence[tuple[str, str]]) -> Comparison:
    """The full recipe's figure against a variant's. methods: the names of both, a pair for every seed."""
    people = len(rows.identities)
    pairs = [rows.pair(figure, *names) for names in methods]
    full, ablated = ([value_of(pair[side], people) for pair in pairs] for side in (0, 1))
    interval = difference_interval(pairs, people) if people >= FEWEST_PEOPLE else None
    low, high = interval or (None, None)
    return Comparison(
        variant=variant,
        figure=figure,
        full=[value for value in full if np.isfinite(value)],
        ablated=[value for value in ablated if np.isfinite(value)],
        low=low,
        high=high,
        verdict=_verdict(FIGURES[figure].better, interval, people),
    )


def _verdict(better: str, interval: tuple[float, float] | None, people: int) -> Verdict:
    if interval is None:
        return "too few people" if people < FEWEST_PEOPLE else "not measured"
    low, high = interval
    if low <= 0 <= high:
        return "no difference"
    return "worse" if (low > 0) == (better == "less") else "better"


def figures_of(method: MethodFigures, names: Sequence[str]) -> dict[str, float]:
    """Figures of a row of the evaluation, by name; those that it does not have are left out."""
    found = {name: figure.mean for name, figure in method.metrics.items()}
    pooled = {SCAN_MEDIAN.name: method.scan.median, SHAPE_RATIO.name: method.shape_ratio}
    found |= {name: value for name, value in pooled.items() if value is not None}
    return {name: found[name] for name in names if name in found}


# --- tables and page --------------------------------------------------------------------------------------------------


def ablation_table(summary: AblateSummary) -> list[dict[str, str]]:
    """A row a variant and figure."""
    return [
        {
            "variant": row.variant,
            "figure": f"{row.figure} ({FIGURES[row.figure].unit}, {FIGURES[row.figure].better} is better)",
            FULL: _seeds(row.full),
            "without": _seeds(row.ablated),
            "difference, 95 %": _interval(row),
            "the variant is": row.verdict,
        }
        for row in summary.comparisons
    ]


def models_table(summary: AblateSummary) -> list[dict[str, str]]:
    """A row a model, a column a figure."""
    names = dict.fromkeys(name for model in summary.models for name in model.figures)
    return [
        {"model": model.model, **{name: _seeds(model.figures.get(name, [])) for name in names}}
        for model in summary.models
    ]


def _seeds(values: Sequence[float]) -> str:
    """The mean over seeds, with the standard deviation where there are several."""
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{spread}"


def _interval(row: Comparison) -> str:
    if not row.full or not row.ablated:
        return "–"
    difference = f"{np.mean(row.ablated) - np.mean(row.full):+.3g}"
    return difference if row.low is None else f"{difference} [{row.low:+.3g}, {row.high:+.3g}]"


def remarks(summary: AblateSummary) -> list[str]:
    """What a reader must know about the tables."""
    budget = ", ".join(f"{stage} {steps}" for stage, steps in summary.budget.items())
    lines = [
        f"Every model has the same budget ({budget}) and sees the same pictures in the same order; a variant trains "
        "anew the stages whose loss it lacks, from the model that the full recipe had before them.",
        f"Intervals: 95 % of the differences when people are drawn anew ({summary.people} people"
        + (f", {len(summary.seeds)} seeds)." if len(summary.seeds) > 1 else ").")
        + " An interval that holds zero is called no difference; of twenty figures that do not differ, one is expected "
        "to be called otherwise.",
    ]
    if len(summary.seeds) == 1:
        lines.append("One seed: how much two trainings of the same recipe differ is in no interval.")
    if untaught := sorted(name for name in summary.networks.values() if name.startswith("random-")):
        lines.append(f"Judged by networks with RANDOM weights: {', '.join(untaught)}.")
    lines += [f"Not trained: {variant}, {reason}." for variant, reason in summary.left_out.items()]
    if summary.outcome != "complete":
        lost = sum(summary.quarantined.values())
        lines.append(f"PARTIAL: {lost} pictures in quarantine, {summary.pending_units} units pending.")
    return lines


def write_report(summary: AblateSummary) -> None:
    """The page, the Markdown and, last, the numbers."""
    tables = {"What each loss is worth": ablation_table(summary), "All models": models_table(summary)}
    store, notes = Store(summary.dest), remarks(summary)
    page = templates.get_template("ablations.html.j2").render(summary=summary, remarks=notes, tables=tables)
    store.write(PAGE, page.encode())
    parts = ["\n".join(f"- {line}" for line in notes), *(markdown(table) for table in tables.values() if table)]
    store.write(MARKDOWN, ("\n\n".join(parts) + "\n").encode())
    store.write(NUMBERS, summary.model_dump_json(indent=2).encode())


def markdown(table: Sequence[Mapping[str, str]]) -> str:
    """A table with the first row's names as its head."""
    rows = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
