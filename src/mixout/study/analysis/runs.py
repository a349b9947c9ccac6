"""A run as the analysis sees it, whoever made it: its place in the study, its score, and what was observed.

A run has a task, a method, a restart number and perhaps further factors; a cell holds the runs that share all but the
restart. Scores are such that higher is better. Tables of scores are read by :mod:`mixout.study.analysis.table`,
ledgers by :mod:`mixout.study.ledger`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from mixout._names import nearest
from mixout.errors import InputError

STATUSES = ("finished", "diverged", "failed")
COLUMNS = (
    *("task", "method", "restart", "score", "metric", "chance", "seconds", "distance", "original"),
    *("kl_to_base", "peak_memory", "dev_size", "standard_error", "status", "error", "collapsed", "paired", "between"),
    *("id", "looks"),
)  # of a table of runs; any other column is a factor

_LARGEST = 1e100  # a score beyond has a square that is not finite

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class CellKey(NamedTuple):
    """Task, method and factors, which are sorted by name: what the runs of one cell share."""

    task: str
    method: str
    factors: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.method} on {place(self.task, self.factors)}"

    @property
    def named(self) -> dict[str, Any]:
        """The keyword arguments that give an object this place."""
        return {"task": self.task, "method": self.method, "factors": dict(self.factors)}

    def without(self, factor: str) -> CellKey:
        """The same without one of its factors."""
        return self._replace(factors=tuple(pair for pair in self.factors if pair[0] != factor))


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An object with a place in a study: a run, a cell, a comparison."""

    task: str
    method: str  # label of the compared thing, such as ``"mixout(0.9)"``
    factors: dict[str, str] = field(default_factory=dict)  # further coordinates in the grid, name to value

    @property
    def key(self) -> CellKey:
        """The cell that it belongs to."""
        return CellKey(self.task, self.method, tuple(sorted(self.factors.items())))

    @property
    def label(self) -> str:
        """The method with its factors."""
        return ", ".join([self.method, *named(sorted(self.factors.items()))])


@dataclass(frozen=True, kw_only=True)
class Restart(Placed):
    """One run, planned or made, with its place."""

    restart: int  # runs of several methods with the same number have the same seeds

    def __str__(self) -> str:
        return f"{self.task}, {self.label}, restart {self.restart}"


@dataclass(frozen=True, kw_only=True)
class Run(Restart):
    """One run of a study.

    Raises:
        InputError: a value that no run can have.
    """

    score: float  # on the dev set, higher is better; nan where the run did not get as far as a score
    metric: str = "score"  # name of the score
    chance: float | None = None  # what a constant answer scores on the dev set; None where that is unknown
    status: str = "finished"  # ``"finished"``, ``"diverged"`` or ``"failed"``
    error: str | None = None  # why it failed
    seconds: float | None = None  # of training
    peak_memory: int | None = None  # in bytes
    distance: float | None = None  # to the pretrained weights
    original: float | None = None  # score on text of the domain that the model knew before
    kl_to_base: float | None = None  # KL divergence of a language model's answers on the dev set from before, in nats
    evaluations: tuple[tuple[int, float], ...] = ()  # pairs of step and score
    losses: tuple[tuple[int, float], ...] = ()  # pairs of step and training loss
    predictions: tuple[float, ...] = ()  # for the dev set, in its order
    dev_size: int | None = None  # examples in the dev set; None where that is unknown
    standard_error: float | None = None  # of the score, by the choice of dev examples
    collapsed: bool = False  # nearly all its answers are the same, see :func:`is_collapsed`
    points: float | None = None  # factor to points: 100 for fractions, 1 for percentages; None to infer it from scores
    # whether the restart number identifies the seeds: published scores come sorted, and pairing them invents agreement
    paired: bool = True
    between: bool = False  # a model between the start and the end of a run (``interpolate``), not a run of its own
    id: str = ""  # the run's identity; empty for runs made elsewhere
    looks: int = 1  # planned number of looks at the study that the run belongs to

    def __post_init__(self) -> None:
        if not self.task or not self.method:
            raise InputError(f"expected a task and a method, got task {self.task!r} and method {self.method!r}")
        for name, least in (("restart", 0), ("looks", 1)):
            if getattr(self, name) < least:
                raise InputError(f"expected {name} >= {least}, got {getattr(self, name)}")
        if abs(self.score) > _LARGEST:
            raise InputError(
                f"expected a score within {_LARGEST:g}, or nan for a run without one, got {self.score}; leave it empty "
                "if the run diverged"
            )
        if self.chance is not None and not math.isfinite(self.chance):
            raise InputError(f"expected chance to be a finite number or None, got {self.chance}")
        if self.status not in STATUSES:
            close = nearest(self.status, STATUSES)
            raise InputError(f"expected a status among {', '.join(STATUSES)}, got {self.status!r}{close}")
        taken = sorted(set(self.factors) & set(COLUMNS))
        if taken:
            raise InputError(f"expected factors with names of their own, got {taken[0]!r}; rename it")

    @property
    def failed(self) -> bool:
        """The run did not finish, has no score, scores no more than a constant answer, or has collapsed."""
        # Two ways to compute the same score may differ in the last bits.
        at_chance = self.chance is not None and self.score <= self.chance + 1e-9
        return self.status != "finished" or math.isnan(self.score) or at_chance or self.collapsed

    @property
    def counted(self) -> float:
        """The score as it enters means: nan counts as chance where that is known, and stays nan where it is not.

        A method that crashes must not look better for it. Chance is what the user gets without any training.
        """
        return self.chance if math.isnan(self.score) and self.chance is not None else self.score


def is_collapsed(
    predictions: Sequence[float],
    loss: float,
    *,
    accuracy: float | None = None,
    classes: int | None = None,
    correlation: float = 0.0,
) -> bool:
    """Whether a run gives nearly the same answer to all examples, and its loss is that of a constant answer.

    Of a classifier: the share of examples that do not get the most frequent answer is below a fifth of its errors,
    and its loss (cross entropy) at least 0.95 of the entropy of a constant answer with as many errors. Of a regression,
    which has neither accuracy nor classes: the variance of the predictions is below 5 % of the mean squared error, and
    however they are scaled they explain less than a tenth of the truth's (``correlation``, Pearson's r: r^2 < 0.1).
    Predictions of a model half way back to its start may be small, and in the right order.

    Example:
        >>> is_collapsed([1.0] * 98 + [0.0] * 2, 0.69, accuracy=0.53, classes=2)
        True
        >>> is_collapsed([1.0] * 98 + [0.0] * 2, 0.06, accuracy=0.99, classes=2)
        False
    """
    n = len(predictions)
    if n < 2 or not math.isfinite(loss):
        return False
    if accuracy is None or classes is None:
        mean = math.fsum(predictions) / n
        narrow = math.fsum((value - mean) ** 2 for value in predictions) / n < 0.05 * loss
        return narrow and not correlation**2 >= 0.1  # nan, of a constant, explains nothing
    minority = 1 - max(predictions.count(value) for value in set(predictions)) / n
    errors = 1 - accuracy
    if not 0 < errors < 1 or classes < 2:
        return False
    entropy = -accuracy * math.log(accuracy) - errors * math.log(errors / (classes - 1))
    return minority < errors / 5 and loss >= 0.95 * entropy


def place(task: str, factors: Sequence[tuple[str, str]]) -> str:
    """Task and factors in words.

    Example:
        >>> place("RTE", [("learning_rate", "1e-04")])
        'RTE (learning rate 1e-4)'
    """
    return task + (f" ({', '.join(named(factors))})" if factors else "")


def named(factors: Iterable[tuple[str, str]]) -> list[str]:
    """Factors in words, with their values."""
    return [f"{spoken(name)} {spoken(value)}" for name, value in factors]


def spoken(text: str) -> str:
    """A factor's name or value for readers: learning rate for ``learning_rate``, 1e-4 for ``1e-04``."""
    return re.sub(r"(?<=\de)-0(?=\d)", "-", text.replace("_", " "))


def text_of(value: object) -> str:
    """A value as results show it: 3.0 and 3 are the same number.

    Example:
        >>> text_of(3.0), text_of(2e-5), text_of("adamw")
        ('3', '2e-05', 'adamw')
    """
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def by_cell(runs: Iterable[Run]) -> dict[CellKey, list[Run]]:
    """The runs of each cell, cells in the order of their first run, runs in the order of their restarts.

    Raises:
        InputError: there is no run, a restart occurs twice in a cell, or the runs of a cell differ in their
            metric, their chance score or whether they are paired.
    """
    all_runs = list(runs)
    if not all_runs:
        raise InputError("expected at least one run, got none; run the study first")
    tasks = grouped(all_runs, lambda run: run.task)
    return {key: _completed(key, cell, tasks[key.task]) for key, cell in grouped(all_runs, lambda run: run.key).items()}


def _completed(key: CellKey, cell: list[Run], task: list[Run]) -> list[Run]:
    """The runs of a cell in order; a run without metric or chance score gets that of its cell, else of its task."""
    cell.sort(key=lambda run: run.restart)
    for previous, current in pairwise(cell):
        if previous.restart == current.restart:
            raise InputError(
                f"expected each restart once, got restart {previous.restart} of {key} twice; "
                "name what differs in a column of its own"
            )
    if len({run.paired for run in cell}) > 1:
        raise InputError(f"expected the runs of {key} to be all paired or all not, got both")
    metric = _only(key, "metric", [run.metric for run in cell if not math.isnan(run.score)])
    chance = _only(key, "chance", [run.chance for run in cell if run.chance is not None])
    metric = metric or if_one([run.metric for run in task if not math.isnan(run.score)]) or cell[0].metric
    chance = if_one([run.chance for run in task if run.chance is not None]) if chance is None else chance
    shared = (metric, chance)  # nearly all runs have it already; copying thousands of them takes seconds
    return [run if (run.metric, run.chance) == shared else replace(run, metric=metric, chance=chance) for run in cell]


def _only(key: CellKey, name: str, values: Sequence[T]) -> T | None:
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1:
        raise InputError(f"expected one {name} for {key}, got {distinct[0]} and {distinct[1]}")
    return distinct[0] if distinct else None


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items grouped by ``key``, groups and members in order of first occurrence."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def between_name(method: str, t: float) -> str:
    """What a model between the start and the end of a run of ``method`` is called."""
    return f"{method} at t={t:g}"


def if_one(values: Iterable[T]) -> T | None:
    """The value that all of them have; None if they differ, or if there are none.

    Example:
        >>> if_one([3, 3]), if_one([3, 4]), if_one([])
        (3, None, None)
    """
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
