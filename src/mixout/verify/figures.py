"""Figures of finished checks. They only draw: every number is in the rows that the CSV files hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixout.finetune.extras import needs
from mixout.study.report.looks import INK, MUTED, PAPER, look, style
from mixout.verify.least_squares import TRUE, Fit
from mixout.verify.pull import Point
from mixout.verify.suite import Findings
from mixout.verify.transfer import PAPER as OF_THE_PAPER
from mixout.verify.transfer import Cell

with needs("demo", "figures"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure


def draw(found: Findings, folder: Path) -> list[Path]:
    """Draw figure 5, the pull along the run, and section 4.

    Args:
        found: what was found.
        folder: where the figures go.

    Returns:
        The files written.
    """
    with style():
        drawn = {
            "verify-least-squares": _least_squares(found.fits),
            "verify-pull": _pull(found.points),
            "verify-section4": _section4(found.cells),
        }
        paths = []
        for name, figure in drawn.items():
            path = folder / f"{name}.png"
            FigureCanvasAgg(figure)
            figure.savefig(path, dpi=80, metadata={"Software": None})
            paths.append(path)
    return paths


def _figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(4.3 * panels, 3.7), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(1, panels, squeeze=False)[0]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True)
    return figure, grid


def _least_squares(fits: Sequence[Fit]) -> Figure:
    figure, (axes,) = _figure(1)
    ends = (-1.0, 2.0)
    axes.plot(ends, [TRUE[0] * x + TRUE[1] for x in ends], color=INK, linewidth=2.2, label="true line")
    first = fits[0]
    target = [first.target_slope * x + first.target_intercept for x in ends]
    axes.plot(ends, target, color=MUTED, linewidth=2.2, linestyle="--", label="target's line")
    middle = [ends[0] + share * (ends[1] - ends[0]) for share in (0.15, 0.5, 0.85)]
    for number, fit in enumerate(fits):
        color = look(number).color
        axes.plot(
            ends, [fit.slope * x + fit.intercept for x in ends], color=color, linewidth=1.2, label=f"p = {fit.p:g}"
        )
        trained = [fit.trained_slope * x + fit.trained_intercept for x in middle]
        axes.plot(middle, trained, color=color, linestyle="none", marker=look(number).mark, markersize=5)
    axes.set_xlabel("x")
    axes.set_title("lines: closed form; marks: training")
    axes.legend()
    return figure


def _pull(points: Sequence[Point]) -> Figure:
    figure, (left, right) = _figure(2)
    ps = sorted({point.p for point in points})
    middle = ps[len(ps) // 2]
    at = [point for point in points if point.p == middle]
    steps = [point.step for point in at]
    measured, error = [point.measured for point in at], [2 * point.measured_error for point in at]
    left.errorbar(
        steps, measured, yerr=error, color=look(0).color, marker="o", markersize=5, capsize=3, label="measured"
    )
    left.plot(steps, [point.predicted for point in at], color=look(1).color, marker="s", markersize=4, linestyle="--",
              label="p/(2(1-p)) sum of d'Hd")  # fmt: skip
    left.plot(steps, [point.fixed for point in at], color=look(2).color, marker="^", markersize=4, linestyle=":",
              label="the same, curvature fixed")  # fmt: skip
    left.axhline(0.0, color=MUTED, linewidth=1)
    left.set_title(f"E L(Phi) - L(w), p = {middle:g}")
    for number, p in enumerate(ps):
        chosen = [point for point in points if point.p == p]
        ratios = [point.measured / point.predicted for point in chosen]
        right.plot([point.step for point in chosen], ratios, color=look(number).color, marker=look(number).mark,
                   markersize=5, linewidth=1.2, label=f"p = {p:g}")  # fmt: skip
    right.axhline(1.0, color=MUTED, linewidth=1)
    right.set_ylim(bottom=0)
    right.set_title("measured / second-order prediction")
    for axes in (left, right):
        axes.set_xscale("log")
        # The style does not parse mathematics, in which a logarithmic axis would label its powers.
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
        axes.set_xlabel("steps of fine-tuning")
        axes.legend()
    return figure


def _section4(cells: Sequence[Cell]) -> Figure:
    figure, panels = _figure(3)
    ways = list(dict.fromkeys((cell.optimizer, cell.treatment) for cell in cells if cell.p))
    for number, (optimizer, treatment) in enumerate(ways):
        plain = next(cell for cell in cells if cell.optimizer == optimizer and not cell.p)
        row = [plain, *(cell for cell in cells if (cell.optimizer, cell.treatment) == (optimizer, treatment))]
        ps = [cell.p for cell in row]
        shown = look(number)
        label = treatment if optimizer == "adam" else f"{treatment}, SGD"
        for axes, values in (
            (panels[0], [cell.distance / plain.distance for cell in row]),
            (panels[1], [cell.target for cell in row]),
            (panels[2], [cell.source for cell in row]),
        ):
            axes.plot(ps, values, color=shown.color, marker=shown.mark, linestyle=shown.line, markersize=5,
                      linewidth=1.2, label=label)  # fmt: skip
    ps = sorted(OF_THE_PAPER)
    paper = [OF_THE_PAPER[p][2] / OF_THE_PAPER[0.0][2] for p in ps]
    panels[0].plot(ps, paper, color=INK, linewidth=2.2, alpha=0.4, label="paper, mixout")
    panels[0].legend(loc="lower left", handles=panels[0].lines[-1:])
    panels[0].set_ylim(bottom=0)
    for axes, title in zip(
        panels, ("||w - w_pre||^2 / plain's", "target accuracy", "source accuracy after"), strict=True
    ):
        axes.set_title(title)
        axes.set_xlabel("p")
    panels[1].legend(fontsize=7, loc="lower left")
    return figure
