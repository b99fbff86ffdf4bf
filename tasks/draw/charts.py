"""Small charts as SVG text for self-contained pages; equal numbers give equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

SIZE = (3.6, 2.2)  # inches; the page scales them
INK, FILL, GRID = "#3c4048", "#3d6fa8", "#d9dce1"
CURVES_SIZE = (6.0, 3.6)
LINES = ("#3d6fa8", "#c4572f", "#4b8b3b", "#8a5aa8", "#b08a1e", "#3b8f8f", "#8c4a4a", "#6b7280")
BINS = (8, 60)  # fewest and most


def histogram(values: NDArray[Any], label: str, *, log: bool = False) -> str:
    """Counts of finite values in equal bins (logarithmic ones with `log`, for values above zero).

    The outermost 0.1 % are clipped, so that an outlier does not squeeze the rest into one bar.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    figure, axes = _axes(label)
    if len(values):
        low, high = np.quantile(values, 0.001, method="lower"), np.quantile(values, 0.999, method="higher")
        high = high if high > low else low + max(abs(low), 1.0) * 0.01
        bins = int(np.clip(2 * np.cbrt(len(values)), *BINS))  # Rice's rule
        edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
        edges[0], edges[-1] = low, high  # geomspace rounds
        counts, _ = np.histogram(values, edges)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=FILL, linewidth=0)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_locator(NullLocator())
    return _svg(figure, label)


def bars(counts: Mapping[str, int], label: str, colours: Sequence[str] | None = None) -> str:
    """A bar chart of counts by name, in the given order."""
    figure, axes = _axes(label)
    names = list(counts)
    axes.bar(range(len(names)), list(counts.values()), 0.8, color=colours or FILL, linewidth=0)
    axes.set_xticks(range(len(names)), names)
    return _svg(figure, label)


def curves(
    series: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], label: str, height: str, *, small: bool = False
) -> str:
    """A line chart of (x, y) by name, with a legend. label, height: of the axes; small: the size of a histogram."""
    figure, axes = _axes(label, SIZE if small else CURVES_SIZE)
    for number, (name, (x, y)) in enumerate(series.items()):
        axes.plot(x, y, color=LINES[number % len(LINES)], linewidth=1.4, label=name)
    axes.set_ylabel(height, color=INK, fontsize=8)
    axes.margins(x=0)
    if small:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    if any(series):
        axes.legend(fontsize=7, frameon=False, labelcolor=INK)
    return _svg(figure, label + height)


def bands(codes: NDArray[Any], label: str) -> str:
    """Chart of the median, 50 % and 90 % intervals of every component of codes (N,K)."""
    figure, axes = _axes(label)
    if len(codes):
        low, lower, middle, upper, high = np.quantile(codes, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
        numbers = np.arange(1, codes.shape[1] + 1)
        axes.fill_between(numbers, low, high, step="mid", color=FILL, alpha=0.25, linewidth=0)
        axes.fill_between(numbers, lower, upper, step="mid", color=FILL, alpha=0.45, linewidth=0)
        axes.step(numbers, middle, where="mid", color=INK, linewidth=0.8)
    axes.margins(x=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return _svg(figure, label)


def _axes(label: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Any]:
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(label, color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=7, length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.ticklabel_format(useOffset=False)  # an offset would be written over the label
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure, axes


def _svg(figure: Figure, salt: str) -> str:
    """The figure as SVG without prolog, date and generator; salt keeps the ids of charts on one page apart."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', text, count=1)
