"""One number over several tasks: the mean of normalised scores, and a test over all pairs.

Scores of tasks have different scales, so each is put on one: 0 is chance, 100 the best run of the study on that task,
``100 (score - chance) / (best - chance)``. Where chance is unknown for a task, all tasks enter in points as they are.
A task enters with as much weight as it has runs. The best run is taken as given.

The interval of the mean difference is a t interval whose variance is that within tasks (degrees of freedom by Welch and
Satterthwaite). The p flips the signs of all pairs of all tasks at once, so that a method that is a little ahead
everywhere can be shown from few restarts a task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from mixout.study.analysis.cells import Cell, Comparison
from mixout.study.analysis.stats import ALPHA, SMALLEST, sign_flips

_Scales = dict[str, tuple[float, float]]  # task -> offset and factor


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """A method over the tasks that it shares with the baseline."""

    method: str
    baseline: str  # label of what it is compared with
    factors: dict[str, str]
    tasks: tuple[str, ...]  # that enter; two at least
    n: int  # runs of the method that enter
    normalised: bool  # whether 0 is chance and 100 the best run; otherwise scores are in points
    mean: float  # over all runs of all tasks
    baseline_mean: float  # the same of the baseline
    difference: float  # of the means, method minus baseline
    # lower end of its interval (95 %); None where a task has fewer than three restarts, or a failed run
    low: float | None
    high: float | None  # its upper end
    # sign-flip p over all pairs of all tasks, not corrected; None where a task's restarts are not paired
    p: float | None


def aggregate(comparisons: Sequence[Comparison], cells: Iterable[Cell]) -> list[Aggregate]:
    """Each method over all tasks on which it was compared with the baseline, if there are two or more."""
    with_scores = [cell for cell in cells if cell.n]
    normalised = all(cell.chance is not None for cell in with_scores)
    scales = _scales(with_scores) if normalised else {one.task: (0.0, one.points) for one in comparisons}
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Comparison]] = {}
    for one in comparisons:
        if one.task in scales:
            groups.setdefault((one.method, one.key.factors), []).append(one)
    return [_aggregate(several, scales, normalised) for several in groups.values() if len(several) > 1]


def _scales(cells: Iterable[Cell]) -> _Scales:
    """A task on which nothing is above chance has no scale and does not enter."""
    by_task: dict[str, list[Cell]] = {}
    for cell in cells:
        by_task.setdefault(cell.task, []).append(cell)
    scales = {}
    for task, several in by_task.items():
        chance, best = max(cell.chance or 0.0 for cell in several), max(cell.max or 0.0 for cell in several)
        if best > chance:
            scales[task] = (chance, 100.0 / (best - chance))
    return scales


def _aggregate(several: list[Comparison], scales: _Scales, normalised: bool) -> Aggregate:
    first, n, m = several[0], sum(one.n for one in several), sum(one.n_baseline for one in several)
    scaled = [(one, *scales[one.task]) for one in several]
    mean = math.fsum(one.n * (one.mean - offset) * factor for one, offset, factor in scaled) / n
    baseline = math.fsum(one.n_baseline * (one.baseline_mean - offset) * factor for one, offset, factor in scaled) / m
    differences = np.concatenate([factor * np.array(one.differences) for one, _, factor in scaled])
    half = _half(several, scales, n, m)
    return Aggregate(
        method=first.method,
        baseline=first.baseline,
        factors=first.factors,
        tasks=tuple(one.task for one in several),
        n=n,
        normalised=normalised,
        mean=mean,
        baseline_mean=baseline,
        difference=mean - baseline,
        low=None if half is None else mean - baseline - half,
        high=None if half is None else mean - baseline + half,
        p=min(1.0, first.looks * sign_flips(differences)) if all(one.paired for one in several) else None,
    )


def _half(several: list[Comparison], scales: _Scales, n: int, m: int) -> float | None:
    """Half the width of the interval: the variances of the tasks' sums add up."""
    if any(one.some_failed or min(one.n, one.n_baseline) < SMALLEST for one in several):
        return None
    parts: list[tuple[float, int]] = []  # variance that a sample brings to the difference of means, and its freedom
    for one in several:
        factor = scales[one.task][1]
        samples = [(one.sd, one.n, n), (one.baseline_sd, one.n_baseline, m)]
        if one.paired:
            samples = [(float(np.std(one.differences, ddof=1)), one.n, n)]
        parts += [(size * (factor * (sd or 0.0) / total) ** 2, size - 1) for sd, size, total in samples]
    variance = math.fsum(part for part, _ in parts)
    if variance <= 1e-20:
        return None
    freedom = variance**2 / math.fsum(part**2 / free for part, free in parts)
    return float(t.isf(ALPHA / 2 / several[0].looks, freedom)) * math.sqrt(variance)
