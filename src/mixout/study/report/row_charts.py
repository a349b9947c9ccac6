"""The charts with a row for each method: which panels there are, with which values, and how each reads in words.

It computes no statistics: what is drawn stands in the summary. A chart without data is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from mixout.study.analysis.cells import Cell, Comparison
from mixout.study.analysis.predictions import Instability
from mixout.study.analysis.runs import CellKey, Run, by_cell
from mixout.study.analysis.stats import ALPHA
from mixout.study.report.canvas import Chart, Panel
from mixout.study.report.rows import Estimate, Strip, forest, strips
from mixout.study.report.wording import Label, Labels, Placed, Scores, interval, number, percent, percentages


class OnTask(Protocol):
    """What belongs to a task."""

    @property
    def task(self) -> str:
        """Its name."""


class OfCell(OnTask, Placed, Protocol):
    """What belongs to a cell."""


def scores(cells: Sequence[Cell], runs: Sequence[Run], labels: Labels) -> Chart:
    """The scores of all restarts, as in the paper's figure 3."""
    of_cell = by_cell(runs)
    panels = []
    for task in tasks(cells):
        here = [cell for cell in cells if cell.task == task]
        text = Scores(score for cell in here for score in cell.scores)
        rows = []
        for cell in here:
            entered = [run for run in of_cell[key(cell)] if math.isfinite(run.counted)]
            label = labels.of(cell)
            rows.append(
                Strip(
                    number=label.number,
                    label=label.text,
                    note=_failed(cell),
                    scores=tuple(run.counted for run in entered),
                    failed=tuple(run.failed for run in entered),
                    mean=cell.mean,
                    low=cell.mean_low,
                    high=cell.mean_high,
                )
            )
        said = [
            f"{row.label}: mean {text.value(row.mean)}, interval {text.interval(row.low, row.high)}, {row.note}"
            for row in rows
        ]
        panels.append(strips(task, rows, axis=here[0].metric, chance=here[0].chance, description="; ".join(said)))
    return Chart(
        name="scores",
        title="Every restart",
        caption=(
            "Each dot is a run, each cross a failed one: it ended at or below chance, collapsed or did not finish. The "
            "diamond is the mean, the bar its t interval (95 %). The dashed line is chance, the score of a constant "
            "answer, where runs without a score stand; it is left out where it lies far below all scores."
        ),
        panels=tuple(panels),
    )


def differences(comparisons: Sequence[Comparison], labels: Labels) -> Chart | None:
    """Each method against the baseline."""
    panels = []
    for task in tasks(comparisons):
        here = [one for one in comparisons if one.task == task]
        text = Scores(score for one in here for score in (one.mean, one.baseline_mean))
        rows = []
        for one in here:
            label = labels.of(one)
            note = f"{text.difference(one.difference)} {text.interval(one.low, one.high, sign=True)}"
            shown = one.p_holm <= ALPHA
            rows.append(
                Estimate(
                    number=label.number,
                    label=label.text,
                    note=note,
                    value=one.difference,
                    low=one.low,
                    high=one.high,
                    sure=shown,
                )
            )
        said = [f"{row.label}: {row.note}{'' if row.sure else ', not shown'}" for row in rows]
        against = here[0].baseline
        axis = f"{here[0].metric}, difference"
        panels.append(forest(task, rows, axis=axis, description="; ".join(said), line=(0.0, against)))
    pairing = (
        "paired by restart" if all(one.paired for one in comparisons) else "of independent samples where not paired"
    )
    return chart(
        "differences",
        "Differences",
        f"Difference of the means, {pairing}, with its t interval. The mark is filled where the "
        "permutation test shows a difference after Holm's correction, hollow where it does not.",
        panels,
    )


def disagreement(instabilities: Sequence[Instability], labels: Labels) -> Chart | None:
    """How much the predictions of restarts differ."""
    panels = []
    for task in tasks(instabilities):
        here = [one for one in instabilities if one.task == task]
        classes = here[0].kind == "classes"
        rows = []
        for one in here:
            label = labels.of(one)
            note = (
                f"{percent(one.disagreement)} {percentages(one.low, one.high)}" if classes
                else f"{number(one.disagreement, 3)} {interval(one.low, one.high, 3)}"
            )  # fmt: skip
            rows.append(
                Estimate(
                    number=label.number,
                    label=label.text,
                    note=note,
                    value=one.disagreement,
                    low=one.low,
                    high=one.high,
                )
            )
        axis = "share of examples answered differently" if classes else "mean absolute difference"
        said = "; ".join(f"{row.label}: {row.note}" for row in rows)
        panels.append(forest(task, rows, axis=axis, description=said, line=None))
    return chart(
        "disagreement",
        "Instability of predictions",
        "How differently two restarts of one method answer the dev set, averaged over all pairs of restarts, with its "
        "jackknife interval (95 %). Equal scores can hide different answers.",
        panels,
    )


def tasks(items: Iterable[OnTask]) -> list[str]:
    """The tasks, in the order in which they come."""
    return list(dict.fromkeys(item.task for item in items))


def key(item: OfCell) -> CellKey:
    """The cell that it belongs to."""
    return CellKey(item.task, item.method, tuple(sorted(item.factors.items())))


def _failed(cell: Cell) -> str:
    return f"{cell.failed} of {cell.runs} failed"


def chart(name: str, title: str, caption: str, panels: Sequence[Panel], labels: Iterable[Label] = ()) -> Chart | None:
    """The chart; None without panels."""
    legend = tuple((label.number, label.text) for label in labels)
    return Chart(name=name, title=title, caption=caption, panels=tuple(panels), legend=legend) if panels else None
