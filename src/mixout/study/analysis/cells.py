"""One method on one task over its restarts: the whole distribution in numbers, not its best member.

Runs without a score enter as the chance score where that is known, and are otherwise left out and counted. A run failed
if it did not finish or if its score is at most that of a constant answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import trim_mean

from mixout.study.analysis.bootstrap import Array, bca
from mixout.study.analysis.grouping import CellKey, by_cell
from mixout.study.analysis.proportions import wilson
from mixout.study.analysis.runs import Run


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What the runs of one cell scored.

    Args:
        task: of all the runs.
        method: of all the runs.
        factors: of all the runs.
        metric: name of the score.
        chance: score of a constant answer; None if unknown.
        runs: number of runs, with or without a score.
        n: scores that enter the statistics below.
        unscored: runs without a score of their own. They count as chance where it is known and are left out elsewhere.
        scores: those that enter, in the order of the restarts.
        restarts: their numbers.
        mean: arithmetic mean; None if nothing entered, as all the others.
        sd: sample standard deviation; None for fewer than two.
        median: the middle.
        iqm: mean of the middle half: a quarter, rounded down, is cut at each end.
        min: lowest.
        max: highest; it grows with n, so compare ``best_of`` at equal k instead.
        mean_low: lower end of the BCa interval (95 %) of the mean; None for fewer than three scores.
        mean_high: its upper end.
        failed: number of failed runs; None where chance is unknown.
        failure_rate: share of failed runs.
        failure_low: lower end of its Wilson interval (95 %).
        failure_high: its upper end.
        best_of: expected best of k of these scores, for k = 1 to n.
        seconds: mean training time of the runs that know it.
        peak_memory: the largest, in bytes.
        distance: mean distance to the pretrained weights.
        original: mean score on text of the domain that the model knew before.
    """

    task: str
    method: str
    factors: dict[str, str]
    metric: str
    chance: float | None
    runs: int
    n: int
    unscored: int
    scores: tuple[float, ...]
    restarts: tuple[int, ...]
    mean: float | None
    sd: float | None
    median: float | None
    iqm: float | None
    min: float | None
    max: float | None
    mean_low: float | None
    mean_high: float | None
    failed: int | None
    failure_rate: float | None
    failure_low: float | None
    failure_high: float | None
    best_of: tuple[float, ...]
    seconds: float | None
    peak_memory: int | None
    distance: float | None
    original: float | None


def summarise(runs: Iterable[Run], *, seed: int = 0) -> list[Cell]:
    """One cell for each task, method and set of factors, in the order of their first run.

    Args:
        runs: of a study.
        seed: of the bootstrap.

    Raises:
        InputError: no run, a restart twice in a cell, or a cell with several metrics.

    Example:
        >>> runs = [Run(task="RTE", method="plain", restart=k, score=s, chance=0.5) for k, s in enumerate([0.5, 0.7])]
        >>> [cell] = summarise(runs)
        >>> cell.n, round(cell.mean, 3), cell.failed, [round(best, 3) for best in cell.best_of]
        (2, 0.6, 1, [0.6, 0.7])
    """
    return [_cell(key, cell, seed) for key, cell in by_cell(runs).items()]


def expected_best(scores: Sequence[float]) -> tuple[float, ...]:
    """Expected largest of k of the scores, drawn without replacement, for k = 1 to n.

    Without bias for the expected best of k new runs: ``sum_i x_(i) C(i-1, k-1) / C(n, k)`` over the ordered scores.

    Example:
        >>> [round(best, 2) for best in expected_best([1.0, 2.0, 4.0])]
        [2.33, 3.33, 4.0]
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(ordered)
    position = np.arange(1, n + 1)
    weights, expected = np.full(n, 1.0 / max(n, 1)), []
    for k in range(1, n + 1):
        expected.append(float(np.sum(weights * ordered)))
        # C(i-1, k) / C(n, k+1) from C(i-1, k-1) / C(n, k), without numbers that overflow.
        weights = weights * (position - k) * (k + 1) / (k * max(n - k, 1))
    return tuple(expected)


def interquartile_mean(scores: Array) -> float:
    """Mean of the middle half."""
    return float(trim_mean(scores, 0.25))


def _cell(key: CellKey, runs: list[Run], seed: int) -> Cell:
    counted = [run for run in runs if np.isfinite(run.counted)]
    scores = np.array([run.counted for run in counted], dtype=np.float64)
    n, chance = len(scores), runs[0].chance
    low, high = bca([scores], lambda x: x.mean(-1), seed=seed)
    failed = None if chance is None else sum(run.failed for run in runs)
    failure_low, failure_high = (None, None) if failed is None else wilson(failed, len(runs))
    return Cell(
        task=key.task,
        method=key.method,
        factors=dict(key.factors),
        metric=runs[0].metric,
        chance=chance,
        runs=len(runs),
        n=n,
        unscored=sum(bool(np.isnan(run.score)) for run in runs),
        scores=tuple(scores.tolist()),
        restarts=tuple(run.restart for run in counted),
        mean=float(scores.mean()) if n else None,
        sd=float(scores.std(ddof=1)) if n > 1 else None,
        median=float(np.median(scores)) if n else None,
        iqm=interquartile_mean(scores) if n else None,
        min=float(scores.min()) if n else None,
        max=float(scores.max()) if n else None,
        mean_low=low,
        mean_high=high,
        failed=failed,
        failure_rate=None if failed is None else failed / len(runs),
        failure_low=failure_low,
        failure_high=failure_high,
        best_of=expected_best(scores.tolist()),
        seconds=_mean(run.seconds for run in runs),
        peak_memory=max((run.peak_memory for run in runs if run.peak_memory is not None), default=None),
        distance=_mean(run.distance for run in runs),
        original=_mean(run.original for run in runs),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known and finite."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
