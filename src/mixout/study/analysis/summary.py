"""Everything that a study's runs show, as one value: numbers with intervals, the answer, and what could not be said.

The answer: on each task, with each set of factors, every other method is compared with the one of the highest mean. It
was chosen by the same runs, so a method that is shown to be lower is lower by the luck of the best as well; "can't be
told apart" errs on the safe side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from mixout._names import count
from mixout.study.analysis.across import Aggregate, Sweep, aggregate, doses, front, sweeps
from mixout.study.analysis.cells import Cell, Instability, instability, summarise
from mixout.study.analysis.compare import MARGIN, Comparison, choose_baseline, compare, points_of
from mixout.study.analysis.restarts import Power, detectable, fewest_restarts, needed, plan
from mixout.study.analysis.runs import Placed, Run, by_cell, grouped, place, spoken
from mixout.study.analysis.stats import ALPHA, SMALLEST
from mixout.study.analysis.words import figures, percent_of, rounded

_FORMAT = 6
_CHEAPER = 0.9  # of the training time: less than that is worth a word
_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Leader:
    """The best method on one task with one set of factors."""

    best: Cell  # the cell with the highest mean
    alike: tuple[Cell, ...]  # the other cells that are not shown to be lower, the highest first
    lower: tuple[Comparison, ...]  # comparisons with the best of those that are, the nearest first
    points: float  # factor from the score to points
    # methods that these runs could not show to differ from the best, however far they are: too few runs, or pairs
    few: tuple[str, ...]
    restarts: int  # runs, or pairs, of the comparison with the best that has the fewest; of those with ``few``, if any
    smallest: int  # the fewest restarts of each method with which any difference among them can be shown
    detectable: tuple[float, ...]  # differences in points that these restarts show with a power of 0.8, ascending
    needed: int | None  # restarts of each method that would show 1 point between the best and the next, if known


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The analysis of one study."""

    baseline: str  # with which methods are compared
    looks: int  # how often the data were to be looked at; intervals and p are corrected for it
    verdict: tuple[str, ...]  # the answer in a few sentences
    leaders: tuple[Leader, ...]  # on each task with each set of factors
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


def leaders(runs: Sequence[Run], cells: Sequence[Cell], *, looks: int = 1) -> list[Leader]:
    """The best method on each task with each set of factors, where there are two or more with scores."""
    of_cell = by_cell(runs)
    points = points_of(of_cell)
    places = grouped((cell for cell in cells if cell.mean is not None), lambda cell: (cell.task, cell.key.factors))
    found = []
    for (task, _), several in places.items():
        if len(several) < 2:
            continue
        several.sort(key=lambda cell: -(cell.mean or 0.0))
        here = [run for cell in several for run in of_cell[cell.key]]
        for best in (*several, several[0]):
            compared = compare(here, best.method, looks=looks)
            # Over the restarts that both have another one may be ahead.
            if not any(one.shown and one.difference > 0 for one in compared):
                break
        several.remove(best)
        several.insert(0, best)
        lower = {one.method: one for one in compared if one.shown and one.difference < 0}
        shown = [difference for one in compared if (difference := detectable(one)) is not None]
        left = sum(not one.shown for one in compared) * looks  # Holm's correction of the largest that is not shown
        able = {one.method for one in compared if one.shown or one.p_smallest * left <= ALPHA}
        few = tuple(cell.method for cell in several[1:] if cell.method not in able)
        sizes = {one.method: min(one.n, one.n_baseline) for one in compared}
        runner_up = next((one for one in compared if one.method == several[1].method), None)
        found.append(
            Leader(
                best=several[0],
                alike=tuple(cell for cell in several[1:] if cell.method not in lower),
                lower=tuple(sorted(lower.values(), key=lambda one: -one.difference)),
                points=points[task],
                few=few,
                restarts=min(sizes.get(name, 0) for name in few or [cell.method for cell in several[1:]]),
                smallest=fewest_restarts(len(several[1:]) * looks, independent=not any(one.paired for one in compared)),
                detectable=tuple(sorted(difference * points[task] for difference in shown)),
                needed=None if runner_up is None else needed(runner_up, 1.0),
            )
        )
    return found


def answer(found: Sequence[Leader], sweeps: Sequence[Sweep] = ()) -> tuple[str, ...]:
    """The answer in a few sentences: the best, what can't be told apart from it, what would have shown, what to do.

    Example:
        >>> answer([])
        ('Nothing was compared: a comparison needs two methods with scores on the same task.',)
    """
    if not found:
        return ("Nothing was compared: a comparison needs two methods with scores on the same task.",)
    of_task = grouped(found, lambda one: one.best.task)
    chosen = [max(several, key=lambda one: one.best.mean or 0.0) for several in of_task.values()]
    if len(chosen) == 1:
        sentences = [*_winner(chosen[0]), *_steadiest(sweeps, chosen[0])]
    else:
        won, tasks = sum(bool(one.lower) for one in chosen), f"of {len(chosen)} tasks"
        first = f"Methods differ on {won} {tasks}." if won else f"No winner on any {tasks}."
        sentences = [first, *(" ".join(_winner(one)) for one in chosen)]
    return (*sentences, *_next(chosen))


def _winner(one: Leader) -> list[str]:
    where = place(one.best.task, one.best.key.factors)
    mean = f"{one.best.metric} {one.best.mean or 0.0:.{3 if one.points > 1 else 1}f}"
    runs = f"mean of {one.best.n} runs" if one.best.n > 1 else "one run"
    failed = f", {one.best.failed} of {one.best.runs} failed" if one.best.failed else ""
    best = f"{one.best.method} ({mean}, {runs}{failed})"
    if not one.lower:
        lowest = min(cell.mean or 0.0 for cell in one.alike)
        width = rounded(((one.best.mean or 0.0) - lowest) * one.points)
        return [
            f"No winner on {where}: the {len(one.alike) + 1} methods lie within {width} points.",
            f"Highest: {best}.",
        ]
    said = f"Best on {where}: {best}."
    if one.alike:
        names = [cell.method + (f" ({cell.failed} of {cell.runs} failed)" if cell.failed else "") for cell in one.alike]
        return [said, f"Not told apart from it: {_list(names)}."]
    nearest = one.lower[0]
    ends = [rounded(-end * one.points) for end in nearest.interval or ()]
    interval = f" ({percent_of(nearest.confidence)} interval {ends[1]} to {ends[0]})" if ends else ""
    return [said, f"The next, {nearest.method}, is {rounded(-nearest.difference * one.points)} points lower{interval}."]


def _steadiest(sweeps: Sequence[Sweep], leader: Leader) -> list[str]:
    """What a wrong value of the first factor costs each method: a range that was seen, not a test."""
    ranges = []
    for sweep in sweeps:
        means = [cell.mean for cell in sweep.cells if cell.mean is not None]
        if sweep.factor == sweeps[0].factor and not sweep.factors and len(means) > 1:
            ranges.append(((max(means) - min(means)) * leader.points, sweep.method))
    if len(ranges) < 2:
        return []
    (least, steady), *_, (most, other) = sorted(ranges)
    return [
        f"Over the values of {spoken(sweeps[0].factor)} the mean of {steady} changes least, by {rounded(least)} "
        f"points, that of {other} most, by {rounded(most)}."
    ]


def _next(chosen: Sequence[Leader]) -> list[str]:
    """What would have shown, and what to do."""
    few, known = [one for one in chosen if one.few], [one for one in chosen if not one.few]
    said, take = [], []
    for (n, smallest, what, of), several in grouped(few, lambda one: (one.restarts, one.smallest, *_few(one))).items():
        where = "" if len(several) == len(chosen) else f" on {_list([one.best.task for one in several])}"
        said.append(f"{what}{where} can't show a difference by the test used here; {smallest} can.")
        take.append(f"run {count(smallest - n, 'more restart')}{of}{where}")
    if not known:
        these = "of those that can't be told apart" if any(one.lower for one in few) else "method"
        return [*said, f"Next: {' and '.join(take)}, or take the cheapest {these}{_cheapest(chosen)}."]
    if shown := sorted(points for one in known for points in one.detectable):
        least, most = shown[0], shown[-1]
        about, by = f"about {figures(most)} point{'' if figures(most) == '1' else 's'}", ""
        if most >= 1.5 * least:
            about, by = f"{figures(least)} to {figures(most)} points", ", by method"
        restarts = count(min(one.restarts for one in known), "restart")
        said.append(f"With {restarts} a difference of {about} would have shown{by}.")
    if not (open_ := [one for one in known if one.alike]):
        use = f"use {_list(list(dict.fromkeys(one.best.method for one in known)))}"
        return [*said, f"Next: {'; '.join([*take, use])}."]
    take.append(f"take the cheapest of those that can't be told apart{_cheapest(open_)}")
    more = max((one.needed - one.restarts for one in open_ if one.needed is not None), default=0)
    if 0 < more <= 1000:
        take.append(f"{count(more, 'more restart')} would show 1 point between the two best")
    return [*said, f"Next: {'; '.join(take)}."]


def _few(one: Leader) -> tuple[str, str]:
    """What is too few, in words, and of which methods more are needed; empty where of all."""

    def named(methods: Sequence[str]) -> str:
        return ", ".join(methods) if len(methods) < 3 else f"{len(methods)} methods"

    cells = [one.best, *(cell for cell in one.alike if cell.method in one.few)]
    if one.restarts < min(cell.n for cell in cells):
        names = "" if len(one.few) == len(one.alike) + len(one.lower) else named(one.few)
        return f"{count(one.restarts, 'pair')} of restarts{names and f' with {names}'}", names and f" of {names}"
    short = [cell for cell in cells if cell.n < one.smallest]
    most = max(cell.n for cell in short)
    number = count(most, "restart") if most == one.restarts else f"{one.restarts} to {most} restarts"
    of = "" if len(short) == 1 + len(one.alike) + len(one.lower) else f" of {named([cell.method for cell in short])}"
    return f"{number}{of or ' of each method'}", of


def _cheapest(chosen: Sequence[Leader]) -> str:
    if len(chosen) != 1:
        return ""
    cells = [cell for cell in (chosen[0].best, *chosen[0].alike) if not cell.failed]
    times = [cell.seconds for cell in cells if cell.seconds is not None and math.isfinite(cell.seconds)]
    if not cells or len(times) < len(cells) or min(times) >= _CHEAPER * max(times):
        return ""
    return f" ({cells[times.index(min(times))].method}, by training time)"


def _list(names: Sequence[str]) -> str:
    named = ", ".join(names[:_NAMED])
    return named if len(names) <= _NAMED else f"{named} and {len(names) - _NAMED} more"
