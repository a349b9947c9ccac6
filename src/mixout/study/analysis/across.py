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

from mixout.study.analysis.compare import choose_baseline, counterparts, points_of, with_scores
from mixout.study.analysis.runs import CellKey, Run, by_cell
from mixout.study.analysis.stats import SMALLEST, Array, sign_flips


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


@dataclass(frozen=True, kw_only=True)
class _Stratum:
    """Normalised scores of method and baseline on one task."""

    task: str
    ours: Array
    theirs: Array
    paired: bool
    measured: bool  # enough for an interval: three runs or more of each, and none failed


def aggregate(runs: Iterable[Run], baseline: str | None = None, *, seed: int = 0, looks: int = 1) -> list[Aggregate]:
    """Each method over all tasks that it shares with the baseline, if there are two or more."""
    cells = by_cell(runs)
    baseline = choose_baseline([key.method for key in cells], baseline)
    scale, normalised = _scales(cells)
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[CellKey]] = {}
    for key in cells:
        if key.method != baseline and CellKey(key.task, baseline, key.factors) in cells and key.task in scale:
            groups.setdefault((key.method, key.factors), []).append(key)
    found = []
    for (method, factors), keys in groups.items():
        several = [
            _stratum(key.task, cells[key], cells[CellKey(key.task, baseline, factors)], scale[key.task]) for key in keys
        ]
        strata = [stratum for stratum in several if len(stratum.ours) and len(stratum.theirs)]
        if len(strata) > 1:
            found.append(_aggregate(method, baseline, dict(factors), strata, normalised, seed, looks))
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


def _stratum(task: str, cell: list[Run], other: list[Run], scale: tuple[float, float]) -> _Stratum:
    cell, other, paired = counterparts(cell, other)
    ours, theirs = ((scores - scale[0]) * scale[1] for scores in with_scores(cell, other, paired))
    enough = min(len(ours), len(theirs)) >= SMALLEST
    measured = enough and not any(run.failed for run in (*cell, *other))
    return _Stratum(task=task, ours=ours, theirs=theirs, paired=paired, measured=measured)


def _aggregate(
    method: str,
    baseline: str,
    factors: dict[str, str],
    strata: Sequence[_Stratum],
    normalised: bool,
    seed: int,
    looks: int,
) -> Aggregate:
    ours = np.concatenate([stratum.ours for stratum in strata])
    theirs = np.concatenate([stratum.theirs for stratum in strata])
    paired = all(stratum.paired for stratum in strata)
    difference = float(ours.mean() - theirs.mean())
    half = _half(strata, len(ours), len(theirs), looks) if all(stratum.measured for stratum in strata) else None
    return Aggregate(
        method=method,
        baseline=baseline,
        factors=factors,
        tasks=tuple(stratum.task for stratum in strata),
        n=len(ours),
        normalised=normalised,
        mean=float(ours.mean()),
        baseline_mean=float(theirs.mean()),
        difference=difference,
        low=None if half is None else difference - half,
        high=None if half is None else difference + half,
        p=min(1.0, looks * sign_flips(ours - theirs, seed=seed)) if paired else None,
    )


def _half(strata: Sequence[_Stratum], n: int, m: int, looks: int) -> float | None:
    """Half the width of the interval: the variances of the tasks' sums add up."""
    parts: list[tuple[float, int]] = []  # variance that a sample brings to the difference of means, and its freedom
    for stratum in strata:
        samples = [(stratum.ours - stratum.theirs, n)] if stratum.paired else [(stratum.ours, n), (stratum.theirs, m)]
        parts += [(len(x) * float(x.var(ddof=1)) / total**2, len(x) - 1) for x, total in samples]
    variance = math.fsum(part for part, _ in parts)
    if variance <= 1e-20:
        return None
    freedom = variance**2 / math.fsum(part**2 / free for part, free in parts)
    return float(t.isf(0.025 / looks, freedom)) * math.sqrt(variance)
