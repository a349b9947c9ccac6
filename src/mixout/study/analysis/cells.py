"""A cell is one method on one task over its restarts: the whole distribution in numbers, not its best member.

Beside it the value of two cells compared, which :mod:`mixout.study.analysis.compare` fills.

Runs without a score enter as the chance score where that is known, and are otherwise left out and counted. Which runs
failed says :attr:`mixout.study.analysis.runs.Run.failed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mixout.study.analysis.runs import CellKey, Placed, Run, by_cell, if_one
from mixout.study.analysis.stats import ALPHA, Array, Interval, mean_interval, wilson


@dataclass(frozen=True, kw_only=True)
class Cell(Placed):
    """What the runs of one cell scored. Intervals are at 95 %, and take the dev set as given."""

    metric: str  # name of the score
    chance: float | None  # score of a constant answer; None if unknown
    runs: int  # number of runs, with or without a score
    n: int  # scores that enter the statistics below
    # runs without a score of their own. They count as chance where it is known and are left out elsewhere
    unscored: int
    scores: tuple[float, ...]  # those that enter, in the order of the restarts
    restarts: tuple[int, ...]  # their numbers
    mean: float | None  # arithmetic mean; None if nothing entered, as all the others
    sd: float | None  # sample standard deviation; None for fewer than two
    median: float | None  # the middle
    min: float | None  # lowest
    max: float | None  # highest; it grows with n, so compare ``best_of`` at equal k instead
    # lower end of Student's t interval of the mean; None for fewer than three scores, without any spread, and where a
    # run failed: then scores fall into two groups, and no interval of their mean covers what it says
    mean_low: float | None
    mean_high: float | None  # its upper end
    # standard error of the mean from the choice of dev examples, by the binomial law. It comes beside the interval,
    # which knows of restarts alone. Of accuracies only; None where the size of the dev set is unknown
    dev_error: float | None
    failed: int  # number of failed runs; where chance is unknown those that did not finish or have no score
    failure_rate: float  # share of failed runs
    failure_low: float  # lower end of its Wilson interval
    failure_high: float  # its upper end
    level: float | None  # mean of the runs that did not fail; None where there are none
    best_of: tuple[float, ...]  # expected best of k of these scores, for k = 1 to n
    seconds: float | None  # mean training time of the runs that know it
    peak_memory: int | None  # the largest, in bytes
    distance: float | None  # mean distance to the pretrained weights
    original: float | None  # mean score on text of the domain that the model knew before
    kl_to_base: float | None  # mean KL divergence from the answers before training, of a language model


@dataclass(frozen=True, kw_only=True)
class Comparison(Placed):
    """A method against the baseline, on one task with one set of factors."""

    baseline: str
    metric: str  # name of the score
    paired: bool  # whether restarts with the same number were compared; otherwise the samples are taken as independent
    n: int  # restarts of the method that enter; the number of pairs where ``paired``
    n_baseline: int  # restarts of the baseline that enter
    left_out: int  # runs of either that have no counterpart, or no score where chance is unknown
    mean: float
    baseline_mean: float  # of the baseline
    sd: float | None  # of the method; None for fewer than two restarts
    baseline_sd: float | None  # of the baseline
    differences: tuple[float, ...]  # method minus baseline for each pair; empty where not paired
    difference: float  # of the means
    # of the means over the runs that did not fail; in pairs, over those of which neither failed. None where there
    # are none
    level_difference: float | None
    confidence: float  # level of its interval: 0.95, or higher where the data were looked at repeatedly
    # lower end of its t interval, Welch's where not paired: it speaks of runs that do not fail, and what a failure
    # would change it cannot know. None for fewer than three such pairs, or runs on a side, and without any spread
    low: float | None
    high: float | None  # its upper end
    p_permutation: float  # two-sided permutation p of the difference
    p_smallest: float  # the smallest p that this number of restarts can reach
    p_holm: float  # p after Holm's correction over the family, times the number of looks
    family: int  # number of comparisons in the family
    looks: int  # how often the data were to be looked at before more restarts were added
    margin: float  # in points, within which the methods count as equally good
    # p of a difference within the margin (TOST), after Holm; None without an interval, and where a run failed
    p_equivalent: float | None
    improvement: float  # share of pairs of a run of each in which the method's scores higher; ties count half
    chance_known: bool  # whether runs at chance count as failed; else only those that did not finish
    failed: int  # failed runs of the method among those compared
    baseline_failed: int  # those of the baseline
    failure_runs: int  # runs of the method among which they were counted
    failure_runs_baseline: int  # those of the baseline
    failure_difference: float  # failure rate of the method minus that of the baseline
    failure_low: float  # lower end of its Newcombe interval
    failure_high: float  # its upper end
    failure_p: float  # exact p of equal rates (McNemar's in pairs, else Fisher's), not corrected
    points: float  # factor from the score's own unit to points: 100 where the task's scores are fractions, else 1

    @property
    def some_failed(self) -> bool:
        """Whether a run of either failed."""
        return self.failed + self.baseline_failed > 0

    @property
    def interval(self) -> Interval | None:
        """Of the difference of the means; None where a run failed, since then it is of the runs that did not."""
        return None if self.some_failed or self.low is None or self.high is None else (self.low, self.high)

    @property
    def shown(self) -> bool:
        """Whether the test shows a difference of the means, after correction."""
        return self.p_holm <= ALPHA


def summarise(runs: Iterable[Run]) -> list[Cell]:
    """One cell for each task, method and set of factors, in the order of their first run.

    Example:
        >>> runs = [Run(task="RTE", method="plain", restart=k, score=s, chance=0.5) for k, s in enumerate([0.5, 0.7])]
        >>> [cell] = summarise(runs)
        >>> cell.n, round(cell.mean, 3), cell.failed, [round(best, 3) for best in cell.best_of]
        (2, 0.6, 1, [0.6, 0.7])
    """
    return [_cell(key, cell) for key, cell in by_cell(runs).items()]


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


def _cell(key: CellKey, runs: list[Run]) -> Cell:
    counted = [run for run in runs if np.isfinite(run.counted)]
    scores = np.array([run.counted for run in counted], dtype=np.float64)
    working = np.array([run.score for run in runs if not run.failed], dtype=np.float64)
    n, failed = len(scores), sum(run.failed for run in runs)
    low, high = (None if failed else mean_interval(scores)) or (None, None)
    failure_low, failure_high = wilson(failed, len(runs))
    return Cell(
        **key.named,
        metric=runs[0].metric,
        chance=runs[0].chance,
        runs=len(runs),
        n=n,
        unscored=sum(bool(np.isnan(run.score)) for run in runs),
        scores=tuple(scores.tolist()),
        restarts=tuple(run.restart for run in counted),
        mean=float(scores.mean()) if n else None,
        sd=float(scores.std(ddof=1)) if n > 1 else None,
        median=float(np.median(scores)) if n else None,
        min=float(scores.min()) if n else None,
        max=float(scores.max()) if n else None,
        mean_low=low,
        mean_high=high,
        dev_error=_dev_error(runs, scores),
        failed=failed,
        failure_rate=failed / len(runs),
        failure_low=failure_low,
        failure_high=failure_high,
        level=float(working.mean()) if len(working) else None,
        best_of=expected_best(scores.tolist()),
        seconds=_mean(run.seconds for run in runs),
        peak_memory=max((run.peak_memory for run in runs if run.peak_memory is not None), default=None),
        distance=_mean(run.distance for run in runs),
        original=_mean(run.original for run in runs),
        kl_to_base=_mean(run.kl_to_base for run in runs),
    )


def _dev_error(runs: Sequence[Run], scores: Array) -> float | None:
    """Root of a (1 - a) / N for a mean accuracy a on N examples: all restarts answer the same ones."""
    size = if_one(run.dev_size for run in runs)
    if not size or not len(scores) or runs[0].metric != "accuracy":
        return None
    mean, one = float(scores.mean()), 1.0 if scores.max() <= 1 else 100.0
    return math.sqrt(max(0.0, mean * (one - mean)) / size)


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known and finite."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
