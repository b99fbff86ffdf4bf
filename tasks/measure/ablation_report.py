"""Loss ablations: comparisons of the full recipe with its variants, their tables and the report files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from deca_core.metrics import shape_points
from schemas.ablate import FIGURES, SCAN_MEDIAN, SHAPE_RATIO, AblateSummary, Comparison, Verdict
from schemas.parquet import fixed_values
from tasks.measure import bootstrap
from tasks.measure.evaluation_report import MM, templates
from tasks.store.storage import Store

PAGE, MARKDOWN, NUMBERS = (f"_report/ablations.{suffix}" for suffix in ("html", "md", "json"))
MIN_SUBJECTS = 10  # for an interval
FULL = "full recipe"


class MeasuredRows:
    """Rows of evaluations/ by method. shape_basis (V,3,100) metres, of the vertices that count."""

    def __init__(self, rows: pa.Table, shape_basis: NDArray[np.float32]) -> None:
        self._rows, self._basis = rows, MM * shape_basis
        self.identities: list[str] = sorted(pc.unique(rows["identity_id"]).to_pylist())

    def __getitem__(self, method: str) -> pa.Table:
        return self._rows.filter(pc.equal(self._rows["method"], method))

    def pair(self, figure: str, first: str, second: str) -> tuple[bootstrap.Statistic, bootstrap.Statistic]:
        """Return a figure of two methods as statistics, over the images that have it in both."""
        number, tables = len(self.identities), [self[method] for method in (first, second)]
        subjects = [np.searchsorted(self.identities, table["identity_id"].to_pylist()) for table in tables]
        if figure == SHAPE_RATIO.name:
            points = [shape_points(fixed_values(table, "shape"), self._basis) for table in tables]
            found = [
                bootstrap.spread_ratio(own, subject, number) for own, subject in zip(points, subjects, strict=True)
            ]
        elif figure == SCAN_MEDIAN.name:
            found = []
            for table, subject in zip(tables, subjects, strict=True):
                counts = pc.list_value_length(table["scan_mm"]).to_numpy()
                found.append(
                    bootstrap.pooled_median(pc.list_flatten(table["scan_mm"]).to_numpy(), np.repeat(subject, counts))
                )
        else:
            values = [table[figure].to_numpy(zero_copy_only=False).astype(np.float64) for table in tables]  # null: NaN
            known = np.isfinite(values[0]) & np.isfinite(values[1])
            found = [bootstrap.mean_over_images(own[known], subjects[0][known], number) for own in values]
        return found[0], found[1]


def compare(rows: MeasuredRows, variant: str, figure: str, methods: Sequence[tuple[str, str]]) -> Comparison:
    """Return the comparison of one figure. methods: (full recipe, variant) for every seed."""
    subjects = len(rows.identities)
    pairs = [rows.pair(figure, *names) for names in methods]
    values = [[bootstrap.value_of(pair[side], subjects) for pair in pairs] for side in (0, 1)]
    full, ablated = ([value for value in own if np.isfinite(value)] for own in values)
    interval = bootstrap.difference_interval(pairs, subjects) if subjects >= MIN_SUBJECTS else None
    low, high = interval or (None, None)
    verdict: Verdict = "not measured"
    if subjects < MIN_SUBJECTS:
        verdict = "too few subjects"
    elif interval is not None:
        worse = (interval[0] > 0) == (FIGURES[figure].better == "less")
        verdict = "no difference" if interval[0] <= 0 <= interval[1] else "worse" if worse else "better"
    return Comparison(variant=variant, figure=figure, full=full, ablated=ablated, low=low, high=high, verdict=verdict)


# --- tables and page --------------------------------------------------------------------------------------------------


def ablation_table(summary: AblateSummary) -> list[dict[str, str]]:
    """Return a row per variant and figure."""
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


def _seeds(values: Sequence[float]) -> str:
    """Format the mean over seeds, with the standard deviation where there are several."""
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
    """Return the notes above the tables: budget, intervals, and what limits the figures."""
    budget = ", ".join(f"{stage} {steps}" for stage, steps in summary.budget.items())
    seeds = f", {len(summary.seeds)} seeds" if len(summary.seeds) > 1 else ""
    lines = [
        f"All models have the same budget ({budget}) and see the same images in the same order; a variant retrains the "
        "stages whose loss it lacks, from the full recipe's model before them.",
        f"Intervals: 95 % of the differences over resampled subjects ({summary.people} subjects{seeds}). An interval "
        "that contains zero is called no difference; of twenty figures without a difference, one is expected to be "
        "called otherwise.",
    ]
    if not seeds:
        lines.append("One seed: the variation between two trainings of the same recipe is in no interval.")
    if untrained := sorted(name for name in summary.networks.values() if name.startswith("random-")):
        lines.append(f"Losses of networks with RANDOM weights: {', '.join(untrained)}.")
    lines += [f"Not trained: {variant}, {reason}." for variant, reason in summary.left_out.items()]
    if summary.outcome != "complete":
        lost = sum(summary.quarantined.values())
        lines.append(f"PARTIAL: {lost} images in quarantine, {summary.pending_units} units pending.")
    return lines


def write_report(summary: AblateSummary) -> None:
    """Write the page, the Markdown and, last, the JSON."""
    store, notes, table = Store(summary.dest), remarks(summary), ablation_table(summary)
    page = templates.get_template("ablations.html.j2").render(
        summary=summary, remarks=notes, tables={"What each loss is worth": table}
    )
    store.write(PAGE, page.encode())
    parts = ["\n".join(f"- {line}" for line in notes), *([_markdown(table)] if table else [])]
    store.write(MARKDOWN, ("\n\n".join(parts) + "\n").encode())
    store.write(NUMBERS, summary.model_dump_json(indent=2).encode())


def _markdown(table: Sequence[Mapping[str, str]]) -> str:
    rows = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
