"""The whole analysis of a study as one value: numbers with intervals, the answer, and what could not be determined.

The answer: on each task, with each set of factors, every other method is compared with the one of the highest mean. The
best was chosen by the same runs, so part of its lead over a method that is shown to be lower may be luck; "can't be
told apart" errs on the safe side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from mixout._names import count
from mixout.study.analysis.across import Aggregate, Sweep, aggregate, doses, sweeps
from mixout.study.analysis.cells import Cell, Instability, instability, summarise
from mixout.study.analysis.compare import MARGIN, Comparison, choose_baseline, compare, points_of
from mixout.study.analysis.restarts import Power, detectable, fewest_restarts, needed, plan
from mixout.study.analysis.runs import Run, by_cell, grouped, place
from mixout.study.analysis.stats import ALPHA, SMALLEST
from mixout.study.analysis.words import figures, percent_of, rounded

_FORMAT = 7
_CHEAPER = 0.9  # below this share of the longest training time the cheapest method is named
_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Leader:
    """The best method on one task with one set of factors."""

    best: Cell  # the cell with the highest mean
    alike: tuple[Cell, ...]  # the other cells that are not shown to be lower, the highest first
    lower: tuple[Comparison, ...]  # comparisons of the lower cells with the best, the nearest first
    points: float  # factor from the score to points
    # methods that these runs could not show to differ from the best, however far they are: too few runs, or pairs
    few: tuple[str, ...]
    restarts: int  # fewest runs, or pairs, of the comparisons with the best; of those of ``few`` only, if any
    smallest: int  # the fewest restarts of each method with which any difference among them can be shown
    detectable: tuple[float, ...]  # differences in points that these restarts show with a power of 0.8, ascending
    needed: int | None  # restarts of each method that would show 1 point between the best and the next, if known


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The analysis of one study."""

    baseline: str  # with which methods are compared
    looks: int  # planned number of looks at the data; intervals and p are corrected for it
    verdict: tuple[str, ...]  # the answer in a few sentences
    leaders: tuple[Leader, ...]  # on each task with each set of factors
    cells: tuple[Cell, ...]  # each method on each task
    comparisons: tuple[Comparison, ...]  # with the baseline, task by task
    aggregates: tuple[Aggregate, ...]  # over tasks
    powers: tuple[Power, ...]  # restarts that the comparisons need
    instabilities: tuple[Instability, ...]  # of predictions
    doses: tuple[Sweep, ...]  # p against score
    sweeps: tuple[Sweep, ...]  # scores over each numeric factor
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
        looks: planned number of looks at the data before more restarts are added.
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
    all_runs = list(runs)
    cells = summarise(all_runs)
    baseline = choose_baseline([cell.method for cell in cells], baseline)
    comparisons = compare(all_runs, baseline, looks=looks, margin=margin)
    leader_list = leaders(all_runs, cells, looks=looks)
    return Summary(
        baseline=baseline,
        looks=looks,
        verdict=answer(leader_list),
        leaders=tuple(leader_list),
        cells=tuple(cells),
        comparisons=tuple(comparisons),
        aggregates=tuple(aggregate(comparisons, cells)),
        powers=tuple(plan(comparisons)),
        instabilities=tuple(instability(all_runs)),
        doses=tuple(doses(cells)),
        sweeps=tuple(sweeps(cells)),
        notes=tuple(_notes(cells, comparisons, baseline)),
    )


def _notes(cells: list[Cell], comparisons: list[Comparison], baseline: str) -> list[str]:
    unknown = dict.fromkeys(cell.task for cell in cells if cell.chance is None)
    notes = [f"{task}: chance is not known, so only runs that did not finish count as failed." for task in unknown]
    compared = {c.key for c in comparisons}
    for cell in cells:
        if cell.method != baseline and cell.key not in compared:
            notes.append(f"{cell.key} was not compared: it or {baseline} has no scores there.")
        if cell.unscored:
            treated = "left out" if cell.chance is None else "counted as chance"
            notes.append(f"{cell.key}: {cell.unscored} of {cell.runs} runs without a score {treated}.")
        if cell.n < SMALLEST:
            notes.append(f"{cell.key}: {count(cell.n, 'score')}, too few for an interval.")
    for c in comparisons:
        if c.left_out:
            missing = "a counterpart or a score" if c.paired else "a score"
            notes.append(f"{c.key} against {baseline}: {count(c.left_out, 'run')} without {missing} left out.")
    return notes


def leaders(runs: Sequence[Run], cells: Sequence[Cell], *, looks: int = 1) -> list[Leader]:
    """The best method on each task with each set of factors, where there are two or more with scores."""
    of_cell = by_cell(runs)
    points = points_of(of_cell)
    places = grouped((cell for cell in cells if cell.mean is not None), lambda cell: (cell.task, cell.key.factors))
    leader_list = []
    for (task, _), ranked in places.items():
        if len(ranked) < 2:
            continue
        ranked.sort(key=lambda cell: -(cell.mean or 0.0))
        place_runs = [run for cell in ranked for run in of_cell[cell.key]]
        for best in (*ranked, ranked[0]):
            compared = compare(place_runs, best.method, looks=looks)
            # Over the restarts that both methods have, another one may be ahead.
            if not any(c.shown and c.difference > 0 for c in compared):
                break
        ranked.remove(best)
        ranked.insert(0, best)
        lower = {c.method: c for c in compared if c.shown and c.difference < 0}
        shown = [difference for c in compared if (difference := detectable(c)) is not None]
        open_tests = sum(not c.shown for c in compared) * looks  # Holm's factor for the largest that is not shown
        testable = {c.method for c in compared if c.shown or c.p_smallest * open_tests <= ALPHA}
        few = tuple(cell.method for cell in ranked[1:] if cell.method not in testable)
        sizes = {c.method: min(c.n, c.n_baseline) for c in compared}
        runner_up = next((c for c in compared if c.method == ranked[1].method), None)
        leader_list.append(
            Leader(
                best=ranked[0],
                alike=tuple(cell for cell in ranked[1:] if cell.method not in lower),
                lower=tuple(sorted(lower.values(), key=lambda c: -c.difference)),
                points=points[task],
                few=few,
                restarts=min(sizes.get(name, 0) for name in few or [cell.method for cell in ranked[1:]]),
                smallest=fewest_restarts(len(ranked[1:]) * looks, independent=not any(c.paired for c in compared)),
                detectable=tuple(sorted(difference * points[task] for difference in shown)),
                needed=None if runner_up is None else needed(runner_up, 1.0),
            )
        )
    return leader_list


def answer(found: Sequence[Leader]) -> tuple[str, ...]:
    """The answer in a few sentences: the best, what can't be told apart from it, what would have shown, what to do.

    Example:
        >>> answer([])
        ('Nothing was compared: a comparison needs two methods with scores on the same task.',)
    """
    if not found:
        return ("Nothing was compared: a comparison needs two methods with scores on the same task.",)
    if all(cell.failed == cell.runs and not leader.lower for leader in found for cell in (leader.best, *leader.alike)):
        return (
            "Every run failed: none has learned more than a constant answer.",
            "Next: more steps, or another learning rate. More restarts would show nothing.",
        )
    of_task = grouped(found, lambda leader: leader.best.task)
    chosen = [max(task_leaders, key=lambda leader: leader.best.mean or 0.0) for task_leaders in of_task.values()]
    if len(chosen) == 1:
        sentences = _winner(chosen[0])
    else:
        won, tasks = sum(bool(leader.lower) for leader in chosen), f"of {len(chosen)} tasks"
        first = f"Methods differ on {won} {tasks}." if won else f"No winner on any {tasks}."
        sentences = [first, *(" ".join(_winner(leader)) for leader in chosen)]
    return (*sentences, *_next(chosen))


def _winner(leader: Leader) -> list[str]:
    where = place(leader.best.task, leader.best.key.factors)
    mean = f"{leader.best.metric} {leader.best.mean or 0.0:.{3 if leader.points > 1 else 1}f}"
    runs = f"mean of {leader.best.n} runs" if leader.best.n > 1 else "one run"
    failed = f", {leader.best.failed} of {leader.best.runs} failed" if leader.best.failed else ""
    best = f"{leader.best.method} ({mean}, {runs}{failed})"
    if not leader.lower:
        lowest = min(cell.mean or 0.0 for cell in leader.alike)
        width = rounded(((leader.best.mean or 0.0) - lowest) * leader.points)
        return [
            f"No winner on {where}: the {len(leader.alike) + 1} methods lie within {width} points.",
            f"Highest: {best}.",
        ]
    top = f"Best on {where}: {best}."
    if leader.alike:
        names = [
            cell.method + (f" ({cell.failed} of {cell.runs} failed)" if cell.failed else "") for cell in leader.alike
        ]
        return [top, f"Not told apart from it: {_list(names)}."]
    second = leader.lower[0]
    ends = [rounded(-end * leader.points) for end in second.interval or ()]
    interval = f" ({percent_of(second.confidence)} interval {ends[1]} to {ends[0]})" if ends else ""
    return [top, f"The next, {second.method}, is {rounded(-second.difference * leader.points)} points lower{interval}."]


def _next(chosen: Sequence[Leader]) -> list[str]:
    """What would have shown, and what to do."""
    few, clear = [leader for leader in chosen if leader.few], [leader for leader in chosen if not leader.few]
    sentences, steps = [], []
    for (n, fewest), group in grouped(few, lambda leader: (leader.restarts, leader.smallest)).items():
        where = "" if len(group) == len(chosen) else f" on {_list([leader.best.task for leader in group])}"
        sentences.append(f"{count(n, 'restart')}{where} can't show a difference by the test used here; {fewest} can.")
        steps.append(f"run {count(fewest - n, 'more restart')}{where}")
    if not clear:
        these = "of those that can't be told apart" if any(leader.lower for leader in few) else "method"
        return [*sentences, f"Next: {' and '.join(steps)}, or take the cheapest {these}{_cheapest(chosen)}."]
    if shown := sorted(points for leader in clear for points in leader.detectable):
        least, most = shown[0], shown[-1]
        about, by = f"about {figures(most)} point{'' if figures(most) == '1' else 's'}", ""
        if most >= 1.5 * least:
            about, by = f"{figures(least)} to {figures(most)} points", ", by method"
        restarts = count(min(leader.restarts for leader in clear), "restart")
        sentences.append(f"With {restarts} a difference of {about} would have shown{by}.")
    if not (open_ := [leader for leader in clear if leader.alike]):
        use = f"use {_list(list(dict.fromkeys(leader.best.method for leader in clear)))}"
        return [*sentences, f"Next: {'; '.join([*steps, use])}."]
    steps.append(f"take the cheapest of those that can't be told apart{_cheapest(open_)}")
    more = max((leader.needed - leader.restarts for leader in open_ if leader.needed is not None), default=0)
    if 0 < more <= 1000:
        steps.append(f"{count(more, 'more restart')} would show 1 point between the two best")
    return [*sentences, f"Next: {'; '.join(steps)}."]


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
