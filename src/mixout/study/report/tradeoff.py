"""The chart of score against what is kept of the original domain: what fine-tuning gains, and what it costs.

It computes no statistics: what is drawn stands in the summary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.curves import Sweep
from mixout.study.analysis.runs import CellKey, Run, by_cell
from mixout.study.report.canvas import Chart
from mixout.study.report.curves import Curve, curves
from mixout.study.report.factor_charts import apart
from mixout.study.report.labels import Label, Labels
from mixout.study.report.row_charts import chart, key, tasks
from mixout.study.report.wording import Scores, number

_CAPTION = (
    "What is gained against what is lost: the score on the task over the score on text of the domain that the model "
    "knew before, of an encoder the cosine of its mean hidden states before and after, of a language model the "
    "log-likelihood. Up and to the right is better. Each dot is a run, each cross a failed one; {lines}, bars are the "
    "scores' t intervals (95 %)."
)


def tradeoff(cells: Sequence[Cell], sweeps: Sequence[Sweep], runs: Sequence[Run]) -> Chart | None:
    """Score over what is kept; along the values of the first numeric factor where there is one."""
    of_cell = by_cell(runs)
    lines = [sweep for sweep in sweeps if sweep.factor == sweeps[0].factor]
    labels = Labels(lines or cells)
    groups = [(apart(labels.of(sweep), 1), sweep.task, sweep.cells) for sweep in lines] or [
        (labels.of(cell), cell.task, (cell,)) for cell in cells
    ]
    panels = []
    for task in tasks(cells):
        here = [(label, _known(members)) for label, where, members in groups if where == task]
        drawn = [(label, _curve(label, members, of_cell), members) for label, members in here if members]
        if drawn:
            first = drawn[0][2][0]
            chances = {cell.chance for _, _, members in drawn for cell in members}
            said = "; ".join(_said(label, members) for label, _, members in drawn)
            panels.append(
                curves(task, [line for _, line, _ in drawn], axis="original domain", value=first.metric,
                       description=said, chance=chances.pop() if len(chances) == 1 else None)
            )  # fmt: skip
    joined = f"lines join the means along {lines[0].factor}" if lines else "larger marks are the means"
    every = [apart(label, 1) for label in labels.all()] if lines else labels.all()
    return chart("tradeoff", "Score against what is kept", _CAPTION.format(lines=joined), panels, every)


def _known(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.original is not None and cell.mean is not None]


def _curve(label: Label, cells: Sequence[Cell], of_cell: Mapping[CellKey, list[Run]]) -> Curve:
    dots = [
        (run.original, run.counted, run.failed)
        for cell in cells
        for run in of_cell[key(cell)]
        if run.original is not None and math.isfinite(run.original) and math.isfinite(run.counted)
    ]
    return Curve(
        number=label.number,
        label=label.text,
        x=tuple(cell.original or 0.0 for cell in cells),
        y=tuple(cell.mean or 0.0 for cell in cells),
        low=tuple(cell.mean_low for cell in cells),
        high=tuple(cell.mean_high for cell in cells),
        dots=tuple((x, y) for x, y, _ in dots),
        failed=tuple(failed for _, _, failed in dots),
    )


def _said(label: Label, cells: Sequence[Cell]) -> str:
    text = Scores(cell.mean or 0.0 for cell in cells)
    means = ", ".join(f"{text.value(cell.mean)} at {number(cell.original, 3)}" for cell in cells)
    return f"{label.text}, mean score at what is kept: {means}"
