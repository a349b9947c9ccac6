"""A cell is one method on one task over its restarts: the whole distribution in numbers, not its best member.

Runs without a score enter as the chance score where that is known, and are otherwise left out and counted.
:attr:`mixout.study.analysis.runs.Run.failed` says which runs failed.

Equal scores can hide different answers. For classes the disagreement of two runs is the share of dev examples that they
answer differently; for values it is the mean absolute difference. Over all pairs of restarts of a cell it estimates the
same for two new restarts. It has no interval: the jackknife's covers 91 % with five restarts. M. Milani Fard et al.,
Launch and iterate: reducing prediction churn, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import mode

from mixout.errors import InputError
from mixout.study.analysis.runs import CellKey, Placed, Run, by_cell, grouped, if_one
from mixout.study.analysis.stats import Array, Interval, mean_interval, wilson


@dataclass(frozen=True, kw_only=True)
class Cell(Placed):
    """What the runs of one cell scored. Intervals are at 95 %, and take the dev set as given."""

    metric: str  # name of the score
    chance: float | None  # score of a constant answer; None if unknown
    runs: int  # number of runs, with or without a score
    n: int  # scores that enter the statistics below
    unscored: int  # runs without a score of their own: chance where it is known, else left out
    scores: tuple[float, ...]  # those that enter, in the order of the restarts
    restarts: tuple[int, ...]  # their numbers
    mean: float | None  # arithmetic mean; None if no score entered, like all the others
    sd: float | None  # sample standard deviation; None for fewer than two
    median: float | None  # the middle
    min: float | None  # lowest
    max: float | None  # highest; it grows with n, so compare ``best_of`` at equal k instead
    # lower end of Student's t interval of the mean; None for fewer than three scores, without any spread, and where a
    # run failed: then scores fall into two groups, and no interval of their mean has its nominal coverage
    mean_low: float | None
    mean_high: float | None  # its upper end
    dev_error: float | None  # standard error of the mean by the choice of dev examples, which all restarts share
    failed: int  # number of failed runs; where chance is unknown those that did not finish or have no score
    failure_rate: float  # share of failed runs
    failure_low: float  # lower end of its Wilson interval
    failure_high: float  # its upper end
    best_of: tuple[float, ...]  # expected best of k of these scores, for k = 1 to n
    seconds: float | None  # mean training time of the runs that know it
    peak_memory: int | None  # the largest, in bytes
    distance: float | None  # mean distance to the pretrained weights
    original: float | None  # mean score on text of the domain that the model knew before
    kl_to_base: float | None  # mean KL divergence from the answers before training, of a language model

    @property
    def interval(self) -> Interval | None:
        """Of the mean."""
        return None if self.mean_low is None or self.mean_high is None else (self.mean_low, self.mean_high)


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
        best_of=expected_best(scores.tolist()),
        seconds=_mean(run.seconds for run in runs),
        peak_memory=max((run.peak_memory for run in runs if run.peak_memory is not None), default=None),
        distance=_mean(run.distance for run in runs),
        original=_mean(run.original for run in runs),
        kl_to_base=_mean(run.kl_to_base for run in runs),
    )


def _dev_error(runs: Sequence[Run], scores: Array) -> float | None:
    """The mean of the runs' own: all restarts answer the same examples. Of accuracies also without these: binomial."""
    own = [run.standard_error for run in runs if np.isfinite(run.score)]
    if (mean_error := _mean(own)) is not None and None not in own:
        return mean_error
    size = if_one(run.dev_size for run in runs)
    if not size or not len(scores) or runs[0].metric != "accuracy":
        return None
    mean, full = float(scores.mean()), 1.0 if scores.max() <= 1 else 100.0
    return math.sqrt(max(0.0, mean * (full - mean)) / size)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known and finite."""
    finite = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


@dataclass(frozen=True, kw_only=True)
class Instability(Placed):
    """How much the restarts of one cell disagree."""

    kind: str  # ``"classes"`` where every prediction of the task is a whole number, else ``"values"``
    n: int  # restarts with predictions, two at least
    examples: int  # in the dev set
    disagreement: float  # mean over the pairs of restarts
    working: float | None  # the same among the runs that did not fail; None for fewer than two
    # for each example the share of restarts without the most frequent answer; for values the standard deviation
    spread: tuple[float, ...]
    flipping: tuple[int, ...]  # numbers of the examples on which restarts differ, the least stable first


def instability(runs: Iterable[Run]) -> list[Instability]:
    """One value for each cell with two or more runs that have predictions; runs with nan predictions are left out.

    Raises:
        InputError: runs of one task differ in their number of predictions.
    """
    cells = {
        key: [run for run in cell if run.predictions and np.isfinite(run.predictions).all()]
        for key, cell in by_cell(runs).items()
    }
    classes: dict[tuple[str, Any], bool] = {}
    for task_factors, group in grouped(chain(*cells.values()), lambda run: (run.task, run.key.factors)).items():
        examples = len(group[0].predictions)
        for run in group:
            if len(run.predictions) != examples:
                raise InputError(
                    f"expected {examples} predictions from every run on {run.task}, got "
                    f"{len(run.predictions)} from restart {run.restart} of {run.method}"
                )
        classes[task_factors] = all(float(value).is_integer() for run in group for value in run.predictions)
    return [_instability(key, cell, classes[key.task, key.factors]) for key, cell in cells.items() if len(cell) > 1]


def _instability(key: CellKey, cell: list[Run], classes: bool) -> Instability:
    predictions = np.array([run.predictions for run in cell], dtype=np.float64)
    n, examples = predictions.shape
    works = np.array([not run.failed for run in cell])

    def disagreement(some: Array) -> float:
        """The mean over pairs of different runs."""
        return float((pdist(some, "hamming") if classes else pdist(some, "cityblock") / examples).mean())

    spread = 1.0 - mode(predictions).count / n if classes else predictions.std(axis=0, ddof=1)
    order = np.argsort(-spread, kind="stable")
    return Instability(
        **key.named,
        kind="classes" if classes else "values",
        n=n,
        examples=examples,
        disagreement=disagreement(predictions),
        working=disagreement(predictions[works]) if works.sum() > 1 else None,
        spread=tuple(spread.tolist()),
        flipping=tuple(int(i) for i in order if np.ptp(predictions[:, i]) > 0.0),
    )
