"""Figures, tables and report page of the rows of evaluations/."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from markupsafe import Markup
from numpy.typing import NDArray

from deca_core.metrics import cumulative, pooled, shape_spread
from schemas.evaluate import METRICS, EvaluateSummary, Figure, MethodFigures, Pooled
from schemas.parquet import fixed_values
from tasks.draw.charts import curves
from tasks.draw.pages import page_templates
from tasks.store.storage import Store
from tasks.units.commits import read_parts
from tasks.units.plan import Plan

REPORT = "_report/report.html"
CURVE_LIMIT = 7.0  # millimetres: where the paper's curves end
MM = 1000.0

templates = page_templates(Path(__file__).parent)


def read_rows(plan: Plan) -> pa.Table | None:
    """Return all committed rows, or None where there are none."""
    parts = [part for part in read_parts(plan) if part.rows]
    tables = [pq.read_table(io.BytesIO(plan.store.read(part.file))) for part in parts]
    return pa.concat_tables(tables) if tables else None


def figures(rows: pa.Table | None, shape_basis: NDArray[np.float32]) -> list[MethodFigures]:
    """Return the figures of every method. shape_basis (V,3,100) metres, of the vertices that count."""
    if rows is None:
        return []
    return [_method(name, _of(rows, "method", name), shape_basis) for name in pc.unique(rows["method"]).to_pylist()]


def _method(name: str, rows: pa.Table, basis: NDArray[np.float32]) -> MethodFigures:
    within, between = shape_spread(fixed_values(rows, "shape"), rows["identity_id"].to_pylist(), MM * basis)
    challenges = [challenge for challenge in pc.unique(rows["challenge"]).to_pylist() if challenge]
    return MethodFigures(
        method=name,
        pictures=rows.num_rows,
        scan=_pooled(rows, "scan_mm"),
        scan_metrical=_pooled(rows, "scan_metrical_mm"),
        challenges={kind: _pooled(_of(rows, "challenge", kind), "scan_mm") for kind in sorted(challenges)},
        metrics={metric.name: figure for metric in METRICS if (figure := _figure(rows, metric.name))},
        shape_within_mm=_known(within),
        shape_between_mm=_known(between),
        shape_ratio=_known(within / between if between > 0 else math.nan),
    )


def _of(rows: pa.Table, column: str, value: str) -> pa.Table:
    return rows.filter(pc.equal(rows[column], value))


def _distances(rows: pa.Table, column: str) -> NDArray[np.float32]:
    return pc.list_flatten(rows[column]).to_numpy()


def _pooled(rows: pa.Table, column: str) -> Pooled:
    spread = pooled(_distances(rows, column))
    median, mean, std = (_known(value) for value in (spread.median, spread.mean, spread.std))
    return Pooled(median=median, mean=mean, std=std, vertices=spread.count)


def _figure(rows: pa.Table, name: str) -> Figure | None:
    values = rows[name].drop_null().to_numpy().astype(np.float64)
    return Figure(mean=float(values.mean()), std=float(values.std()), pictures=len(values)) if len(values) else None


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- tables and page --------------------------------------------------------------------------------------------------


def scan_table(methods: Sequence[MethodFigures]) -> list[dict[str, str]]:
    """Return NoW's table: a row per method."""
    return [
        {
            "method": method.method,
            **{
                f"{variant}{statistic} (mm)": _number(getattr(values, statistic))
                for variant, values in (("", method.scan), ("metrical ", method.scan_metrical))
                for statistic in ("median", "mean", "std")
            },
            "pictures": f"{method.pictures:,}",
        }
        for method in methods
    ]


def metric_table(methods: Sequence[MethodFigures]) -> list[dict[str, str]]:
    """Return a row per measured metric, a column per method: mean ± standard deviation over images."""
    shown = [metric for metric in METRICS if any(metric.name in method.metrics for method in methods)]
    return [
        {
            "figure": metric.label,
            "unit": metric.unit,
            "better": metric.better,
            **{method.method: _spread(method.metrics.get(metric.name)) for method in methods},
        }
        for metric in shown
    ]


def spread_table(methods: Sequence[MethodFigures]) -> list[dict[str, str]]:
    """Return the consistency of shapes within and between subjects: a row per method."""
    return [
        {
            "method": method.method,
            "one subject's images (mm)": _number(method.shape_within_mm),
            "two subjects' (mm)": _number(method.shape_between_mm),
            "ratio": _number(method.shape_ratio),
        }
        for method in methods
    ]


def challenge_table(methods: Sequence[MethodFigures]) -> list[dict[str, str]]:
    """Return the median per NoW challenge: a row per method; empty outside NoW."""
    return [
        {"method": method.method, **{kind: _number(values.median) for kind, values in method.challenges.items()}}
        for method in methods
        if method.challenges
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _spread(figure: Figure | None) -> str:
    return "–" if figure is None else f"{figure.mean:.3f} ± {figure.std:.3f}"


def write_report(plan: Plan, summary: EvaluateSummary, rows: pa.Table | None) -> str:
    """Write the self-contained report.html; return its URI."""
    names = [method.method for method in summary.methods]
    page = templates.get_template("evaluation.html.j2").render(
        summary=summary,
        curves=[
            (title, Markup(_curve(rows, column, names)))  # matplotlib escapes the names
            for title, column in (("With scale", "scan_mm"), ("Metrical", "scan_metrical_mm"))
        ],
        tables=[
            ("Scan to surface, all vertices of all images", scan_table(summary.methods)),
            ("Median by kind of image (mm)", challenge_table(summary.methods)),
            ("Against the truth, mean ± standard deviation over images", metric_table(summary.methods)),
            ("Shape of one subject and of two", spread_table(summary.methods)),
        ],
    )
    Store(plan.dest).write(REPORT, page.encode())
    return plan.store.join(REPORT)


def _curve(rows: pa.Table | None, column: str, names: Iterable[str]) -> str:
    """Return cumulative error curves: per cent of the vertices within a distance."""
    thresholds = np.linspace(0, CURVE_LIMIT, 141)
    series = {}
    if rows is not None:
        for name in names:
            series[name] = thresholds, cumulative(_distances(_of(rows, "method", name), column), thresholds)
    return curves(series, "distance (mm)" if column == "scan_mm" else "metrical distance (mm)", "vertices (%)")
