"""Figures of docs/theory.md. They only draw: every number is in the rows that the CSV files hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from theory.adaptivity import Point
from theory.least_squares import TRUE, Fit

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
MARKS = "osD^v"


def draw(fits: Sequence[Fit], points: Sequence[Point], folder: Path) -> None:
    """Draw figure 5, and the pull along the run."""
    for name, figure in (("verify-least-squares", _least_squares(fits)), ("verify-pull", _pull(points))):
        figure.savefig(folder / f"{name}.png", dpi=80, metadata={"Software": None})


def _figure(*titles: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.3 * len(titles), 3.7), layout="constrained")
    grid = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color="0.9")
    return figure, grid


def _least_squares(fits: Sequence[Fit]) -> Figure:
    figure, (axes,) = _figure("lines: closed form; marks: training")
    ends, middle = (-1.0, 2.0), (-0.55, 0.5, 1.55)
    target = (fits[0].target_slope, fits[0].target_intercept)
    for (slope, intercept), style, label in ((TRUE, "k-", "true line"), (target, "k--", "target's line")):
        axes.plot(ends, [slope * x + intercept for x in ends], style, linewidth=2.2, label=label)
    for fit, color, mark in zip(fits, COLORS, MARKS, strict=False):
        axes.plot(ends, [fit.slope * x + fit.intercept for x in ends], color=color, label=f"p = {fit.p:g}")
        axes.plot(middle, [fit.trained_slope * x + fit.trained_intercept for x in middle], mark, color=color)
    axes.set_xlabel("x")
    axes.legend()
    return figure


def _pull(points: Sequence[Point]) -> Figure:
    ps = sorted({point.p for point in points})
    middle = ps[len(ps) // 2]
    figure, (left, right) = _figure(f"E L(Phi) - L(w), p = {middle:g}", "measured / second-order prediction")
    at = [point for point in points if point.p == middle]
    steps = [point.step for point in at]
    error = [2 * point.measured_error for point in at]
    left.errorbar(steps, [point.measured for point in at], yerr=error, fmt="o-", capsize=3, label="measured")
    left.plot(steps, [point.predicted for point in at], "s--", label="p/(2(1-p)) sum of d'Hd")
    left.plot(steps, [point.fixed for point in at], "^:", label="the same, curvature fixed")
    for p, color, mark in zip(ps, COLORS, MARKS, strict=False):
        ratios = [point.measured / point.predicted for point in points if point.p == p]
        right.plot(steps, ratios, f"{mark}-", color=color, label=f"p = {p:g}")
    right.axhline(1.0, color="0.5", linewidth=1)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
        axes.set_xlabel("steps of fine-tuning")
        axes.legend()
    return figure
