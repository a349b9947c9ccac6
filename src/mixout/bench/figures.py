"""Figures of finished benchmarks. They only draw: every number comes from the rows that are in the CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mixout.bench.table import Row
from mixout.finetune.extras import needs

with needs("demo", "figures"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

Axis = Literal["p", "tokens"]
Panels = dict[str, list[Row]]

# A method has its color and its mark in every figure.
_LOOKS = {
    "mixout": ("#0072b2", "o"),
    "mixconnect": ("#009e73", "s"),
    "dropout": ("#e69f00", "X"),
    "authors": ("#d55e00", "^"),
}


def draw(rows: Sequence[Row], folder: Path, suffix: str = "") -> list[Path]:
    """Draw every figure that ``rows`` hold numbers for: time over p, time over tokens per step, memory over p.

    Args:
        rows: of any kind, mixed.
        folder: where the figures go.
        suffix: ends the names of the files.

    Returns:
        The files written.
    """
    training = [row for row in rows if row.mode == "train" and not row.anchor]
    steps = [row for row in training if row.what == "step"]
    # What autograd keeps is not all that a method costs: drawn with the anchors, and on a GPU as the peak.
    memory = [row for row in training if row.what == "memory" and row.quantity != "saved"]
    time = "time of a training step / plain"
    written = []
    for name, panels, x, label in (
        ("ratio-over-p", _panels(_full(steps)), "p", time),
        ("ratio-over-tokens", _panels(_swept(steps)), "tokens", time),
        ("memory-over-p", _panels(memory), "p", "memory / plain"),
    ):
        if panels:
            path = folder / f"{name}{suffix}.png"
            _draw(panels, "tokens" if x == "tokens" else "p", label, path)
            written.append(path)
    return written


def _full(steps: Sequence[Row]) -> list[Row]:
    """The rows of each case with its largest batch."""
    return [row for row in steps if row.tokens == _most(row, steps)]


def _swept(steps: Sequence[Row]) -> list[Row]:
    """The rows of the case that was measured with several batches, of the methods that were."""
    wanted = {(row.case, row.label) for row in steps if row.tokens < _most(row, steps)}
    return [row for row in steps if (row.case, row.label) in wanted]


def _most(row: Row, steps: Sequence[Row]) -> int:
    return max(other.tokens for other in steps if other.case == row.case)


def _panels(rows: Sequence[Row]) -> Panels:
    """The rows by case and quantity."""
    words = {"time": "", "saved+anchor": "\nkept for backward, and anchors", "peak": "\npeak"}
    panels: Panels = {}
    for row in rows:
        panels.setdefault(f"{row.case}, {row.precision}{words[row.quantity]}", []).append(row)
    return panels


def _draw(panels: Panels, x: Axis, label: str, path: Path) -> None:
    figure = Figure(figsize=(1.8 + 3.2 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        axes.axhline(1.0, color="0.6", linewidth=1)
        for method in dict.fromkeys(row.method for row in rows):
            _draw_method(axes, [row for row in rows if row.method == method], x)
        if x == "p":
            axes.set_xlim(0, 1)
            axes.set_xlabel("p")
        else:
            ticks = sorted({row.tokens for row in rows})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.set_xlabel("tokens per step")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel(label)
    # The first panel has every method that another has.
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_method(axes: Axes, rows: Sequence[Row], x: Axis) -> None:
    color, mark = _LOOKS[rows[0].method]
    name = rows[0].method if x == "p" else rows[0].label
    rows = sorted(rows, key=lambda row: getattr(row, x))
    at = [getattr(row, x) for row in rows]
    ratios = [row.ratio for row in rows]
    spread = [[row.ratio - row.low for row in rows], [row.high - row.ratio for row in rows]]
    axes.errorbar(at, ratios, yerr=spread, color=color, marker=mark, markersize=5, linewidth=1.2, capsize=3, label=name)
    floors = [row.floor for row in rows if row.floor is not None]
    if rows[0].method == "mixout" and floors:
        start = ([0.0], [1.0]) if x == "p" else ([], [])  # without mixing nothing is spared
        axes.plot(start[0] + at, start[1] + floors, color=color, linestyle="--", linewidth=1, label="floor of mixout")
