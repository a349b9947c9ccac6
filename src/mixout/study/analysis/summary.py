"""Everything that a study's runs show, as one value: numbers with intervals, the answer, and what could not be said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from mixout.study.analysis.across import Aggregate, aggregate
from mixout.study.analysis.cells import Cell, Comparison, summarise
from mixout.study.analysis.compare import MARGIN, choose_baseline, compare
from mixout.study.analysis.curves import Sweep, doses, front, sweeps
from mixout.study.analysis.leaders import Leader, answer, leaders
from mixout.study.analysis.predictions import Instability, instability
from mixout.study.analysis.restarts import Power, plan
from mixout.study.analysis.runs import Placed, Run
from mixout.study.analysis.stats import SMALLEST
from mixout.study.analysis.words import count

_FORMAT = 5


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The analysis of one study."""

    baseline: str  # with which methods are compared
    looks: int  # how often the data were to be looked at; intervals and p are corrected for it
    verdict: tuple[str, ...]  # the answer in a few sentences
    # the best method on each task with each set of factors, and what can't be told apart from it
    leaders: tuple[Leader, ...]
    cells: tuple[Cell, ...]  # each method on each task
    comparisons: tuple[Comparison, ...]  # with the baseline, task by task
    aggregates: tuple[Aggregate, ...]  # over tasks
    powers: tuple[Power, ...]  # restarts that the comparisons need
    instabilities: tuple[Instability, ...]  # of predictions
    doses: tuple[Sweep, ...]  # p against score
    sweeps: tuple[Sweep, ...]  # scores over each numeric factor
    front: tuple[Placed, ...]  # cells that no other of their task beats in both score and what is kept
    notes: tuple[str, ...]  # what was left out or could not be compared, in words

    def to_json(self) -> str:
        """One JSON object with the fields' names; unknown numbers are null."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, allow_nan=False, indent=1, ensure_ascii=False) + "\n"


def analyse(runs: Iterable[Run], *, baseline: str | None = None, looks: int = 1, margin: float = MARGIN) -> Summary:
    """Analyse the runs of a study. The same runs give the same summary, byte for byte.

    Args:
        runs: all of them, failed ones too.
        baseline: label of the method that the others are compared with; by default the first that is plain or dropout,
            else the first.
        looks: how often the data were to be looked at before more restarts were added.
        margin: in points, within which a method counts as good as the baseline.

    Raises:
        InputError: no run, runs that contradict each other, or an unknown baseline.

    Example:
        >>> runs = [
        ...     Run(task="RTE", method=method, restart=k, score=0.6 + 0.02 * k + gain, chance=0.5)
        ...     for method, gain in (("plain", 0.0), ("mixout(0.9)", 0.05))
        ...     for k in range(8)
        ... ]
        >>> analyse(runs).verdict[0]
        'Best on RTE: mixout(0.9) (score 0.720, mean of 8 runs).'
    """
    every = list(runs)
    cells = summarise(every)
    baseline = choose_baseline([cell.method for cell in cells], baseline)
    comparisons = compare(every, baseline, looks=looks, margin=margin)
    found, swept = leaders(every, cells, looks=looks), sweeps(cells)
    return Summary(
        baseline=baseline,
        looks=looks,
        verdict=answer(found, swept),
        leaders=tuple(found),
        cells=tuple(cells),
        comparisons=tuple(comparisons),
        aggregates=tuple(aggregate(comparisons, cells)),
        powers=tuple(plan(comparisons)),
        instabilities=tuple(instability(every)),
        doses=tuple(doses(cells)),
        sweeps=tuple(swept),
        front=tuple(Placed(**cell.key.named) for cell in front(cells)),
        notes=tuple(_notes(cells, comparisons, baseline)),
    )


def _notes(cells: list[Cell], comparisons: list[Comparison], baseline: str) -> list[str]:
    unknown = dict.fromkeys(cell.task for cell in cells if cell.chance is None)
    notes = [f"{task}: chance is not known, so only runs that did not finish count as failed." for task in unknown]
    done = {one.key for one in comparisons}
    for cell in cells:
        if cell.method != baseline and cell.key not in done:
            notes.append(f"{cell.key} was not compared: it or {baseline} has no scores there.")
        if cell.unscored:
            treated = "left out" if cell.chance is None else "counted as chance"
            notes.append(f"{cell.key}: {cell.unscored} of {cell.runs} runs without a score {treated}.")
        if cell.n < SMALLEST:
            notes.append(f"{cell.key}: {count(cell.n, 'score')}, too few for an interval.")
    for one in comparisons:
        if one.left_out:
            missing = "a counterpart or a score" if one.paired else "a score"
            notes.append(f"{one.key} against {baseline}: {count(one.left_out, 'run')} without {missing} left out.")
    return notes
