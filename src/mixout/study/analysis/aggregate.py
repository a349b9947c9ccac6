"""One number over several tasks: interquartile mean and mean of normalised scores, with stratified bootstrap.

Scores of tasks have different scales, so each is put on one: 0 is chance, 100 the best run of the study on that task,
``100 (score - chance) / (best - chance)``. Where chance is unknown for a task, all tasks enter in points as they are.
The interquartile mean (IQM) of the scores of all tasks is robust; for that very reason it hides failures that are fewer
than a quarter of the runs, so the mean stands beside it. Restarts are resampled within their task, together with their
counterpart where they are paired. R. Agarwal et al., Deep RL at the edge of the statistical precipice, NeurIPS 2021.

A task enters with as much weight as it has runs. The best run is taken as given, not resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import trim_mean

from mixout.study.analysis.bootstrap import Array, percentile
from mixout.study.analysis.compare import choose_baseline, counterparts, points_of, with_scores
from mixout.study.analysis.grouping import CellKey, by_cell
from mixout.study.analysis.runs import Run

_Statistic = Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval (95 %); the ends are None where a task has fewer than three restarts."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """A method over the tasks that it shares with the baseline.

    Args:
        method: label.
        baseline: label of what it is compared with.
        factors: of all the runs.
        tasks: that enter; two at least.
        n: runs of the method that enter.
        normalised: whether 0 is chance and 100 the best run; otherwise scores are in points.
        iqm: interquartile mean over all runs of all tasks.
        mean: over all runs of all tasks.
        baseline_iqm: the same of the baseline.
        baseline_mean: the same of the baseline.
        iqm_difference: of the IQMs, method minus baseline.
        mean_difference: of the means.
    """

    method: str
    baseline: str
    factors: dict[str, str]
    tasks: tuple[str, ...]
    n: int
    normalised: bool
    iqm: Estimate
    mean: Estimate
    baseline_iqm: Estimate
    baseline_mean: Estimate
    iqm_difference: Estimate
    mean_difference: Estimate


def aggregate(runs: Iterable[Run], baseline: str | None = None, *, seed: int = 0) -> list[Aggregate]:
    """Each method over all tasks that it shares with the baseline, if there are two or more.

    Args:
        runs: of a study.
        baseline: label; by default the first method that is plain or dropout, else the first.
        seed: of the bootstrap.

    Raises:
        InputError: no run, or an unknown baseline.

    Example:
        >>> runs = [
        ...     Run(task=task, method=method, restart=k, score=0.6 + 0.02 * k + gain)
        ...     for task in ("RTE", "CoLA")
        ...     for method, gain in (("plain", 0.0), ("mixout(0.9)", 0.05))
        ...     for k in range(4)
        ... ]
        >>> [found] = aggregate(runs)
        >>> found.tasks, round(found.iqm_difference.value, 2)
        (('RTE', 'CoLA'), 5.0)
    """
    cells = by_cell(runs)
    baseline = choose_baseline([key.method for key in cells], baseline)
    scale, normalised = _scales(cells)
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[CellKey]] = {}
    for key in cells:
        if key.method != baseline and CellKey(key.task, baseline, key.factors) in cells and key.task in scale:
            groups.setdefault((key.method, key.factors), []).append(key)
    found = []
    for (method, factors), keys in groups.items():
        strata, tasks = [], []
        for key in keys:
            stratum = _stratum(cells[key], cells[CellKey(key.task, baseline, factors)], scale[key.task])
            if stratum is not None:
                strata.append(stratum)
                tasks.append(key.task)
        if len(tasks) > 1:
            found.append(_aggregate(method, baseline, dict(factors), tasks, strata, normalised, seed))
    return found


def _scales(cells: dict[CellKey, list[Run]]) -> tuple[dict[str, tuple[float, float]], bool]:
    """Offset and factor of each task; a task on which nothing is above chance has no scale and does not enter."""
    by_task: dict[str, list[Run]] = {}
    for key, cell in cells.items():
        by_task.setdefault(key.task, []).extend(run for run in cell if np.isfinite(run.counted))
    by_task = {task: runs for task, runs in by_task.items() if runs}
    if any(run.chance is None for runs in by_task.values() for run in runs):
        points = points_of(cells)
        return {task: (0.0, points[task]) for task in by_task}, False
    scales = {}
    for task, runs in by_task.items():
        chance, best = max(run.chance or 0.0 for run in runs), max(run.counted for run in runs)
        if best > chance:
            scales[task] = (chance, 100.0 / (best - chance))
    return scales, True


def _stratum(cell: list[Run], other: list[Run], scale: tuple[float, float]) -> list[Array] | None:
    """Normalised scores of method and baseline: one (n, 2) where paired, else two of one column."""
    cell, other, paired = counterparts(cell, other)
    x, y = ((scores - scale[0]) * scale[1] for scores in with_scores(cell, other, paired))
    if not len(x) or not len(y):
        return None
    return [np.stack([x, y], axis=1)] if paired else [x[:, None], y[:, None]]


def _aggregate(
    method: str,
    baseline: str,
    factors: dict[str, str],
    tasks: Sequence[str],
    strata: Sequence[list[Array]],
    normalised: bool,
    seed: int,
) -> Aggregate:
    parts = [part for stratum in strata for part in stratum]
    first = [sum(len(stratum) for stratum in strata[:i]) for i in range(len(strata))]
    ours = [(position, 0) for position in first]
    theirs = [
        (position, 1) if len(stratum) == 1 else (position + 1, 0)
        for position, stratum in zip(first, strata, strict=True)
    ]

    def estimate(statistic: Callable[[Sequence[Array]], Array]) -> Estimate:
        low, high = percentile(parts, statistic, seed=seed)
        return Estimate(value=float(statistic(parts)), low=low, high=high)

    def of(places: Sequence[tuple[int, int]], reduce: _Statistic) -> Callable[[Sequence[Array]], Array]:
        return lambda drawn: reduce(np.concatenate([drawn[part][..., column] for part, column in places], axis=-1))

    def gap(reduce: _Statistic) -> Callable[[Sequence[Array]], Array]:
        return lambda drawn: of(ours, reduce)(drawn) - of(theirs, reduce)(drawn)

    return Aggregate(
        method=method,
        baseline=baseline,
        factors=factors,
        tasks=tuple(tasks),
        n=sum(len(parts[position]) for position in first),
        normalised=normalised,
        iqm=estimate(of(ours, _iqm)),
        mean=estimate(of(ours, _mean)),
        baseline_iqm=estimate(of(theirs, _iqm)),
        baseline_mean=estimate(of(theirs, _mean)),
        iqm_difference=estimate(gap(_iqm)),
        mean_difference=estimate(gap(_mean)),
    )


def _iqm(scores: Array) -> Array:
    return np.asarray(trim_mean(scores, 0.25, axis=-1), dtype=np.float64)


def _mean(scores: Array) -> Array:
    return np.asarray(scores.mean(axis=-1), dtype=np.float64)
