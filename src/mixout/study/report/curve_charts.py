"""The charts with a line for each method: which panels there are, with which values, and how each reads in words.

It computes no statistics: what is drawn stands in the summary. A chart without data is None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mixout.study.analysis import curves as analysis_curves
from mixout.study.analysis.cells import Cell
from mixout.study.analysis.curves import Dose, LayerDistance
from mixout.study.analysis.runs import Run, by_cell
from mixout.study.report.canvas import Chart
from mixout.study.report.curves import Curve, curves
from mixout.study.report.row_charts import chart, key, tasks
from mixout.study.report.wording import Label, Labels, Scores, number

# Families at the same p stand side by side.
_SHIFT = 0.014
_BLOCK = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def best_of(cells: Sequence[Cell], labels: Labels) -> Chart | None:
    """The expected best score of k restarts."""
    panels = []
    for task in tasks(cells):
        here = [cell for cell in cells if cell.task == task and len(cell.best_of) > 1]
        text = Scores(score for cell in here for score in cell.best_of)
        lines = []
        for cell in here:
            label = labels.of(cell)
            k = tuple(float(k) for k in range(1, len(cell.best_of) + 1))
            lines.append(Curve(number=label.number, label=label.text, x=k, y=cell.best_of))
        if lines:
            said = [
                f"{line.label}: {text.value(line.y[0])} of one, {text.value(line.y[-1])} of {len(line.y)}"
                for line in lines
            ]
            panels.append(curves(task, lines, axis="restarts k", value=here[0].metric, description="; ".join(said)))
    return chart(
        "best-of",
        "Best of k restarts",
        "What the best of k restarts scores on average, estimated without bias from all of them. A maximum over more "
        "restarts is higher by itself: compare methods at equal k.",
        panels,
        labels.all(),
    )


def over_p(doses: Sequence[Dose]) -> Chart | None:
    """Scores against p, as in the paper's figure 4."""
    names = dict.fromkeys(_family(dose) for dose in doses)
    families = {name: Label(at, name) for at, name in enumerate(names)}
    panels = []
    for task in tasks(doses):
        here = [dose for dose in doses if dose.task == task]
        first = here[0].cells[0]
        text = Scores(score for dose in here for cell in dose.cells for score in cell.scores)
        lines, said = [], []
        for at, dose in enumerate(here):
            known = [(p, cell) for p, cell in zip(dose.p, dose.cells, strict=True) if cell.mean is not None]
            shift = _SHIFT * (at - (len(here) - 1) / 2)
            dots = [(p + shift, score) for p, cell in known for score in cell.scores]
            family = families[_family(dose)]
            lines.append(
                Curve(
                    number=family.number,
                    label=family.text,
                    x=tuple(p + shift for p, _ in known),
                    y=tuple(cell.mean or 0.0 for _, cell in known),
                    low=tuple(cell.mean_low for _, cell in known),
                    high=tuple(cell.mean_high for _, cell in known),
                    dots=tuple(dots),
                    failed=tuple(first.chance is not None and score <= first.chance for _, score in dots),
                )
            )
            means = ", ".join(f"{p:g} {text.value(cell.mean)}" for p, cell in known)
            said.append(f"{family.text}, mean at each p: {means}")
        ticks = {p: f"{p:g}" for p in sorted({p for dose in here for p in dose.p})}
        panels.append(
            curves(task, lines, axis="p", value=first.metric, description="; ".join(said), chance=first.chance,
                   ticks=ticks)
        )  # fmt: skip
    return chart(
        "over-p",
        "Score against p",
        "Each dot is a run, each cross one at or below chance. Lines join the means, bars are their "
        "t intervals (95 %). Methods that differ in p alone are one line.",
        panels,
        families.values(),
    )


def over_steps(summarised: Sequence[analysis_curves.Curve], runs: Sequence[Run], labels: Labels) -> Chart | None:
    """Scores in the course of training."""
    of_cell = by_cell(runs)
    panels = []
    for task in tasks(summarised):
        here = [one for one in summarised if one.task == task and len(one.steps) > 1]
        text = Scores(score for one in here for score in (*one.min, *one.max))
        lines = []
        for one in here:
            threads = [
                (tuple(float(step) for step, _ in run.evaluations), tuple(score for _, score in run.evaluations))
                for run in of_cell[key(one)]
                if len(run.evaluations) > 1
            ]
            label = labels.of(one)
            steps = tuple(map(float, one.steps))
            lines.append(Curve(number=label.number, label=label.text, x=steps, y=one.mean, threads=tuple(threads)))
        if lines:
            said = [
                f"{line.label}: {text.value(line.y[0])} at step {line.x[0]:.0f}, {text.value(line.y[-1])} at step "
                f"{line.x[-1]:.0f}"
                for line in lines
            ]
            first = of_cell[key(here[0])][0]
            panels.append(
                curves(task, lines, axis="optimizer steps", value=first.metric, description="; ".join(said),
                       chance=first.chance)
            )  # fmt: skip
    return chart(
        "over-steps",
        "Scores over steps",
        "The mean over the restarts that were evaluated at a step; thin lines are single restarts.",
        panels,
        labels.all(),
    )


def over_layers(distances: Sequence[LayerDistance], labels: Labels) -> Chart | None:
    """Distance to the pretrained weights, layer by layer."""
    panels = []
    for task in tasks(distances):
        here = [one for one in distances if one.task == task]
        layers = list(dict.fromkeys(one.layer for one in here))
        place = {layer: float(at) for at, layer in enumerate(layers)}
        lines = []
        for label in dict.fromkeys(map(labels.of, here)):
            own = sorted((place[one.layer], one.mean) for one in here if labels.of(one) == label)
            x, y = zip(*own, strict=True)
            lines.append(Curve(number=label.number, label=label.text, x=x, y=y))
        said = [
            f"{line.label}: largest {number(max(line.y), 2)} in {layers[int(line.x[line.y.index(max(line.y))])]}"
            for line in lines
        ]
        panels.append(
            curves(task, lines, axis="layers, in the order of the model", value="distance",
                   description="; ".join(said), ticks=_blocks(layers))
        )  # fmt: skip
    return chart(
        "over-layers",
        "Distance by layer",
        "How far training went from the pretrained weights (Euclidean norm), averaged over restarts. The numbers are "
        "the model's blocks; left of them are its embeddings, right of them what lies above.",
        panels,
        labels.all(),
    )


def _family(dose: Dose) -> str:
    return ", ".join([dose.family, *(f"{name} {value}" for name, value in sorted(dose.factors.items()))])


def _blocks(layers: Sequence[str]) -> dict[float, str]:
    """Where each numbered block of the model begins."""
    ticks: dict[float, str] = {}
    for at, layer in enumerate(layers):
        found = _BLOCK.search(layer)
        if found and found[1] not in ticks.values():
            ticks[float(at)] = found[1]
    return ticks
