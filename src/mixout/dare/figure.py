"""The curves as one figure. It only draws: every number comes from the rows that are in the CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixout.dare.scores import INTERPOLATION, Point, Score, points
from mixout.finetune.extras import needs

with needs("demo", "figures"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

_LOOKS = {
    "element": ("#009e73", "s", "DARE, a coin for each weight"),
    "input": ("#0072b2", "o", "a coin for each input neuron"),
    INTERPOLATION: ("#d55e00", "^", "interpolation (WiSE-FT), t = 1 - p"),
}


def draw(scores: Sequence[Score], folder: Path, *, metric: str, chance: float) -> list[Path]:
    """Draw mean and standard deviation over the share that is removed; return the files written, PNG and SVG."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(chance, color="0.6", linewidth=1, linestyle="--", label="chance")
    summed = points(scores)
    for curve in _LOOKS:
        _draw_curve(axes, [one for one in summed if one.curve == curve])
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share of the task delta removed: drop rate p, or 1 - t")
    axes.set_ylabel(metric)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    written = [folder / "dare.png", folder / "dare.svg"]
    for path in written:
        figure.savefig(path, dpi=150)
    return written


def _draw_curve(axes: Axes, found: Sequence[Point]) -> None:
    if found:
        color, mark, label = _LOOKS[found[0].curve]
        at, means = [one.removed for one in found], [one.mean for one in found]
        spread = [one.spread or 0.0 for one in found]
        axes.errorbar(at, means, yerr=spread, color=color, marker=mark, markersize=4, linewidth=1.2, capsize=3)
        axes.plot([], [], color=color, marker=mark, markersize=4, linewidth=1.2, label=label)
