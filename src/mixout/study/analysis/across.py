"""Over several cells: means over tasks, lines over p and numeric factors, the front of score and what is kept.

Scores of tasks have different scales, so each is put on one: 0 is chance, 100 the best run of the study on that task,
``100 (score - chance) / (best - chance)``. Where chance is unknown for a task, all tasks enter in points as they are.
A task enters with as much weight as it has runs. The best run is taken as given.

The interval of the mean difference is a t interval with the variance within tasks (degrees of freedom by Welch and
Satterthwaite). The p-value flips the signs of all pairs of all tasks at once, so that few restarts a task can show a
method that is a little ahead everywhere.

A factor, such as a learning rate or a number of examples, is numeric if each of its values is a number. Seeds are
numbers without an order, so no score is shown over them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.compare import Comparison
from mixout.study.analysis.runs import CellKey, Placed, grouped
from mixout.study.analysis.stats import ALPHA, SMALLEST, sign_flips

_MIXING = re.compile(r"\b(?:mixout|mixconnect|dropconnect|dropout|gradient_mask)\((?P<inside>[^()]*)\)")
_STATED = re.compile(r"\bp=(?P<p>(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)$")
_NUMBER = re.compile(r"(?<![\w.])(?:p=)?(?P<p>(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)(?![\w.=])")
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
    scales = _scales(with_scores) if normalised else {c.task: (0.0, c.points) for c in comparisons}
    groups = grouped((c for c in comparisons if c.task in scales), lambda c: (c.method, c.key.factors))
    return [_aggregate(group, scales, normalised) for group in groups.values() if len(group) > 1]


def _scales(cells: Iterable[Cell]) -> _Scales:
    """A task on which nothing is above chance has no scale and does not enter."""
    scales = {}
    for task, group in grouped(cells, lambda cell: cell.task).items():
        chance, best = max(cell.chance or 0.0 for cell in group), max(cell.max or 0.0 for cell in group)
        if best > chance:
            scales[task] = (chance, 100.0 / (best - chance))
    return scales


def _aggregate(group: list[Comparison], scales: _Scales, normalised: bool) -> Aggregate:
    first, total = group[0], sum(c.n + c.n_baseline for c in group)
    # A task weighs as much on both sides: else a method with more runs on an easy task would look better.
    scaled = [(c, (c.n + c.n_baseline) / total, *scales[c.task]) for c in group]
    mean = math.fsum(weight * (c.mean - offset) * factor for c, weight, offset, factor in scaled)
    baseline = math.fsum(weight * (c.baseline_mean - offset) * factor for c, weight, offset, factor in scaled)
    differences = np.concatenate([factor * np.array(c.differences) for c, _, _, factor in scaled])
    half = _half([(c, weight * factor) for c, weight, _, factor in scaled])
    paired, family = all(c.paired for c in group), len(group) * first.looks
    return Aggregate(
        method=first.method,
        baseline=first.baseline,
        factors=first.factors,
        tasks=tuple(c.task for c in group),
        n=sum(c.n for c in group),
        normalised=normalised,
        mean=mean,
        baseline_mean=baseline,
        difference=mean - baseline,
        low=None if half is None else mean - baseline - half,
        high=None if half is None else mean - baseline + half,
        p=min(1.0, first.looks * sign_flips(differences, family=family)) if paired else None,
    )


def _half(weighted: list[tuple[Comparison, float]]) -> float | None:
    """Half the width of the interval: the variances of the tasks, each with its factor, add up."""
    if any(c.some_failed or min(c.n, c.n_baseline) < SMALLEST for c, _ in weighted):
        return None
    parts: list[tuple[float, int]] = []  # variance that a sample brings to the difference of means, and its freedom
    for c, factor in weighted:
        samples = [(c.sd, c.n), (c.baseline_sd, c.n_baseline)]
        if c.paired:
            samples = [(float(np.std(c.differences, ddof=1)), c.n)]
        parts += [((factor * (sd or 0.0)) ** 2 / size, size - 1) for sd, size in samples]
    variance = math.fsum(part for part, _ in parts)
    if variance <= 1e-20:
        return None
    freedom = 1 / math.fsum((part / variance) ** 2 / free for part, free in parts)
    return float(t.isf(ALPHA / 2 / weighted[0][0].looks, freedom)) * math.sqrt(variance)


@dataclass(frozen=True, kw_only=True)
class Sweep(Placed):
    """Cells that differ in one numeric factor alone, or in their method's p, in the order of its values.

    ``factors`` are the other ones, which they share; in a sweep over p the method's label has ``p`` for the number.
    """

    factor: str  # the factor in which they differ
    values: tuple[float, ...]  # of the factor, one for each cell
    cells: tuple[Cell, ...]


def doses(cells: Iterable[Cell]) -> list[Sweep]:
    """The families of methods that occur with two or more values of p on one task.

    Example:
        >>> from mixout.study.analysis.cells import summarise
        >>> from mixout.study.analysis.runs import Run
        >>> labels = ("mixout(0.9)", "mixout(0.5)", "plain")
        >>> runs = [Run(task="RTE", method=label, restart=0, score=0.7) for label in labels]
        >>> [(dose.method, dose.values) for dose in doses(summarise(runs))]
        [('mixout(p)', (0.5, 0.9))]
    """
    families = [(split, cell) for cell in cells if (split := split_p(cell.method)) is not None]
    return _lines("p", ((cell.key._replace(method=family), p, cell) for (family, p), cell in families))


def split_p(method: str) -> tuple[str, float] | None:
    """The label of a mixing method, or one that ends in ``p=`` and a number up to 1, without its p; and p. Else None.

    Example:
        >>> split_p("mixout(w_pre, 0.7)+anchor_decay(0.01)")
        ('mixout(w_pre, p)+anchor_decay(0.01)', 0.7)
        >>> split_p("plain, rate x sqrt(1-p), p=0.7")
        ('plain, rate x sqrt(1-p), p', 0.7)
        >>> split_p("plain") is None
        True
    """
    if (stated := _STATED.search(method)) and float(stated["p"]) <= 1:
        return f"{method[: stated.start()]}p", float(stated["p"])
    for call in _MIXING.finditer(method):
        number = _NUMBER.search(method, call.start("inside"), call.end("inside"))
        if number is not None:
            return f"{method[: number.start()]}p{method[number.end() :]}", float(number["p"])
    return None


def sweeps(cells: Iterable[Cell]) -> list[Sweep]:
    """For each numeric factor the methods that occur with two or more of its values, all else equal."""
    all_cells = list(cells)
    lines = []
    for factor in sorted({name for cell in all_cells for name in cell.factors}):
        with_factor = [cell for cell in all_cells if factor in cell.factors]
        try:
            values = [float(cell.factors[factor]) for cell in with_factor]
        except ValueError:
            continue
        if not factor.endswith("seed") and all(map(math.isfinite, values)):
            keys = (cell.key.without(factor) for cell in with_factor)
            lines += _lines(factor, zip(keys, values, with_factor, strict=True))
    return lines


def front(cells: Iterable[Cell]) -> list[Cell]:
    """The cells that no other of their task beats in both mean score and what is kept (Pareto); highest score first.

    Example:
        >>> from mixout.study.analysis.cells import summarise
        >>> from mixout.study.analysis.runs import Run
        >>> kept = {"plain": (0.8, 0.3), "worse": (0.7, 0.2), "decay": (0.7, 0.9)}
        >>> runs = [Run(task="RTE", method=m, restart=0, score=s, original=k) for m, (s, k) in kept.items()]
        >>> [cell.method for cell in front(summarise(runs))]
        ['plain', 'decay']
    """
    scored = [(cell.mean, cell.original, cell) for cell in cells if cell.mean is not None and cell.original is not None]
    front_cells = []
    for group in grouped(scored, lambda triple: triple[2].task).values():
        most_kept = -math.inf
        for _, kept, cell in sorted(group, key=lambda triple: (-triple[0], -triple[1])):
            if kept > most_kept:
                front_cells.append(cell)
                most_kept = kept
    return front_cells


def _lines(factor: str, members: Iterable[tuple[CellKey, float, Cell]]) -> list[Sweep]:
    """A line for each key that has two or more values."""
    lines = []
    for key, group in grouped(members, lambda member: member[0]).items():
        if len({value for _, value, _ in group}) > 1:
            _, values, cells = zip(*sorted(group, key=lambda member: member[1]), strict=True)
            lines.append(Sweep(**key.named, factor=factor, values=values, cells=cells))
    return lines
