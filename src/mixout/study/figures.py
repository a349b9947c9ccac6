"""Figures of finished runs. They only draw: every number comes from the records and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixout.finetune.extras import needs
from mixout.finetune.record import Record
from mixout.study.summary import summarise

with needs("demo", "figures"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure


def strip_plot(records: Sequence[Record], path: Path) -> None:
    """Each restart a dot, its method a column; mean and standard deviation beside it.

    Chance is a dashed line where it lies near the scores; further away it would squeeze them together. The
    form of the paper's figure 3.
    """
    rows = summarise(records)
    figure = Figure(figsize=(1.6 + 1.5 * len(rows), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for column, row in enumerate(rows):
        scores = [record.score for record in records if record.settings.method == row.method]
        # A small fixed shift by restart keeps equal scores apart, and the same restart in the same place.
        shifts = [0.16 * (k / max(len(scores) - 1, 1) - 0.5) for k in range(len(scores))]
        axes.scatter([column - 0.12 + s for s in shifts], scores, s=28, color="#0072b2", alpha=0.8, linewidths=0)
        axes.errorbar(column + 0.18, row.mean, yerr=row.sd, fmt="D", color="#d55e00", markersize=6, capsize=4)
    _draw_chance(axes, records)
    axes.set_xticks(range(len(rows)), [row.method for row in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylabel(f"{records[0].metric} on {records[0].dev_size:,} dev examples (chance {records[0].chance:.3f})")
    axes.set_title(
        f"{records[0].settings.task}, {records[0].train_size} training examples: each dot a restart,\n"
        "diamond and bar mean and standard deviation",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _draw_chance(axes: Axes, records: Sequence[Record]) -> None:
    chance, scores = records[0].chance, [record.score for record in records]
    if chance < min(scores) - 2 * (max(scores) - min(scores)):
        return
    axes.axhline(chance, color="0.4", linestyle="--", linewidth=1)
