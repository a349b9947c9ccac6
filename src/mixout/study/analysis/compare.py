"""Every method against one baseline, restart by restart, with one correction over all of these comparisons.

Only the difference of means is tested in the family. The other numbers are descriptive: each of their intervals and p
values holds by itself. Scores of runs that crashed enter as chance (see ``Run.counted``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from mixout._names import nearest
from mixout.errors import InputError
from mixout.study.analysis import stats
from mixout.study.analysis.runs import CellKey, Placed, Run, by_cell, grouped
from mixout.study.analysis.stats import ALPHA, Array, Interval

MARGIN = 1.0  # points within which a method counts as good as the baseline
_NO_DIFFERENCE = 1e-12  # relative to the scores
_USUAL_BASELINE = re.compile(r"(plain|dropout)\b")


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
    level_difference: float | None  # of the means over the runs, or pairs, that did not fail
    confidence: float  # level of its interval: 0.95, or higher where the data were looked at repeatedly
    # lower end of the t interval of ``level_difference``, Welch's where not paired; it does not include the effect of
    # failures. None for fewer than three such pairs, or runs on a side, and without any spread
    low: float | None
    high: float | None  # its upper end
    p_permutation: float  # two-sided permutation p of the difference
    p_smallest: float  # the smallest p that this number of restarts can reach
    p_holm: float  # p after Holm's correction over the family, times the number of looks
    family: int  # number of comparisons in the family
    looks: int  # planned number of looks at the data before more restarts are added
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
        """Of the difference of the means; None where a run failed, since ``low`` and ``high`` leave failed runs out."""
        return None if self.some_failed or self.low is None or self.high is None else (self.low, self.high)

    @property
    def shown(self) -> bool:
        """Whether the test shows a difference of the means, after correction."""
        return self.p_holm <= ALPHA


def compare(
    runs: Iterable[Run], baseline: str | None = None, *, looks: int = 1, margin: float = MARGIN
) -> list[Comparison]:
    """Compare each method with the baseline on the same task and with the same factors.

    Paired by restart number over the restarts that both have; as independent samples where the runs are not paired or
    have no restart in common. Cells without the baseline's counterpart, or without any score, are not compared.
    The arguments are those of :func:`mixout.study.analysis.summary.analyse`.

    Returns:
        One comparison for each cell that is not the baseline's, in the order of their first run.

    Raises:
        InputError: no run, an unknown baseline, or a task with several metrics.
    """
    if not 0 < margin < math.inf:
        raise InputError(f"expected a margin > 0 in points, got {margin}")
    cells = by_cell(runs)
    baseline = choose_baseline([key.method for key in cells], baseline)
    points = points_of(cells)
    comparisons: list[Comparison] = []
    tests = looks * sum(key.method != baseline for key in cells)
    for key, cell in cells.items():
        base = cells.get(CellKey(key.task, baseline, key.factors))
        if key.method == baseline or base is None:
            continue
        if cell[0].metric != base[0].metric:
            raise InputError(f"expected one metric on {key.task}, got {base[0].metric} and {cell[0].metric}")
        if (comparison := _compare(key, baseline, cell, base, points[key.task], looks, margin, tests)) is not None:
            comparisons.append(comparison)
    equivalence_ps = [c.p_equivalent for c in comparisons if c.p_equivalent is not None]
    different, equivalent = stats.holm([c.p_permutation for c in comparisons]), iter(stats.holm(equivalence_ps))
    return [
        replace(
            c,
            p_holm=min(1.0, looks * p),
            family=len(comparisons),
            p_equivalent=None if c.p_equivalent is None else min(1.0, looks * next(equivalent)),
        )
        for c, p in zip(comparisons, different, strict=True)
    ]


def choose_baseline(methods: Sequence[str], baseline: str | None = None) -> str:
    """The label of the baseline: the user's choice, else the first that is plain or dropout, else the first.

    Raises:
        InputError: the choice is none of the methods.

    Example:
        >>> choose_baseline(["mixout(0.9)", "dropout(0.1)", "plain"])
        'dropout(0.1)'
    """
    if baseline is None:
        return next((method for method in methods if _USUAL_BASELINE.match(method)), methods[0])
    if baseline not in methods:
        labels = list(dict.fromkeys(methods))
        raise InputError(f"expected a baseline among {', '.join(labels)}, got {baseline!r}{nearest(baseline, labels)}")
    return baseline


def points_of(cells: dict[CellKey, list[Run]]) -> dict[str, float]:
    """Factor from scores to points for each task: the runs' own, else 100 where none of its scores exceeds 1, else 1.

    So a point is a hundredth of an accuracy or correlation; for a language model a hundredth of the log-likelihood,
    about one per cent of the perplexity.
    """
    points = {}
    for task, runs in grouped(chain(*cells.values()), lambda run: run.task).items():
        stated = [run.points for run in runs if run.points is not None]
        points[task] = stated[-1] if stated else 1.0 if any(1.0 < run.counted < math.inf for run in runs) else 100.0
    return points


def _scores(cell: list[Run], base: list[Run], paired: bool, holds: Callable[[Run], bool]) -> list[Array]:
    """The scores of the runs for which ``holds`` is true; of pairs, of those where it is true for both runs."""
    if paired:
        pairs = [pair for pair in zip(cell, base, strict=True) if all(map(holds, pair))]
        cell, base = [run for run, _ in pairs], [run for _, run in pairs]
    return [np.array([run.counted for run in runs if holds(run)], dtype=np.float64) for runs in (cell, base)]


def _compare(
    key: CellKey, baseline: str, cell: list[Run], base: list[Run], points: float, looks: int, margin: float, tests: int
) -> Comparison | None:
    total, common = len(cell) + len(base), {run.restart for run in cell} & {run.restart for run in base}
    paired = cell[0].paired and base[0].paired and bool(common)
    if paired:
        cell, base = ([run for run in runs if run.restart in common] for runs in (cell, base))
    failed, baseline_failed = [run.failed for run in cell], [run.failed for run in base]
    x, y = _scores(cell, base, paired, lambda run: math.isfinite(run.counted))
    if not len(x) or not len(y):
        return None
    confidence = 1 - ALPHA / looks
    level_x, level_y = _scores(cell, base, paired, lambda run: not run.failed)
    sample, second = (level_x - level_y, None) if paired else (level_x, level_y)
    low, high = stats.mean_interval(sample, second, level=confidence) or (None, None)
    failure_low, failure_high = stats.newcombe(failed, baseline_failed, paired=paired)
    differences = x - y if paired else np.empty(0)
    if paired:  # equal scores may differ in their last bits
        differences[np.abs(differences) <= _NO_DIFFERENCE * np.maximum(np.abs(x), np.abs(y))] = 0.0
    p = stats.sign_flips(differences, family=tests) if paired else stats.exchanged_labels(x, y, family=tests)
    return Comparison(
        **key.named,
        baseline=baseline,
        metric=cell[0].metric,
        paired=paired,
        n=len(x),
        n_baseline=len(y),
        left_out=total - len(x) - len(y),
        mean=float(x.mean()),
        baseline_mean=float(y.mean()),
        sd=float(x.std(ddof=1)) if len(x) > 1 else None,
        baseline_sd=float(y.std(ddof=1)) if len(y) > 1 else None,
        differences=tuple(differences.tolist()),
        difference=float(differences.mean() if paired else x.mean() - y.mean()),
        level_difference=float(level_x.mean() - level_y.mean()) if len(level_x) and len(level_y) else None,
        confidence=confidence,
        low=low,
        high=high,
        p_permutation=p,
        p_smallest=stats.smallest_p(len(x), None if paired else len(y), family=tests),
        p_holm=p,
        family=1,
        looks=looks,
        margin=margin,
        p_equivalent=None if any((*failed, *baseline_failed)) else stats.equivalence_p(sample, second, margin / points),
        improvement=stats.superiority(x, y),
        chance_known=cell[0].chance is not None and base[0].chance is not None,
        failed=sum(failed),
        baseline_failed=sum(baseline_failed),
        failure_runs=len(cell),
        failure_runs_baseline=len(base),
        failure_difference=sum(failed) / len(cell) - sum(baseline_failed) / len(base),
        failure_low=failure_low,
        failure_high=failure_high,
        failure_p=stats.rates_p(failed, baseline_failed, paired=paired),
        points=points,
    )
