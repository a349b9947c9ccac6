"""Which runs belong together: a cell holds the runs that share task, method and factors.

Runs that failed before they had a score often do not know their metric and chance score; they get those of the other
runs of their cell, or of their task where that has only one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from mixout.errors import InputError
from mixout.study.analysis.runs import Run

T = TypeVar("T")


@dataclass(frozen=True)
class CellKey:
    """Task, method and factors: what the runs of one cell share. ``factors`` are sorted by name."""

    task: str
    method: str
    factors: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.method} on {place(self.task, self.factors)}"


def place(task: str, factors: Sequence[tuple[str, str]]) -> str:
    """Task and factors in words.

    Example:
        >>> place("RTE", [("epochs", "3")])
        'RTE (epochs 3)'
    """
    return task + (f" ({', '.join(f'{name} {value}' for name, value in factors)})" if factors else "")


def by_cell(runs: Iterable[Run]) -> dict[CellKey, list[Run]]:
    """The runs of each cell, cells in the order of their first run, runs in the order of their restarts.

    Raises:
        InputError: there is no run, a restart occurs twice in a cell, or the runs of a cell differ in their
            metric, their chance score or whether they are paired.

    Example:
        >>> cells = by_cell([Run(task="RTE", method="plain", restart=k, score=0.7) for k in (1, 0)])
        >>> [(str(key), [run.restart for run in cell]) for key, cell in cells.items()]
        [('plain on RTE', [0, 1])]
    """
    every = list(runs)
    if not every:
        raise InputError("expected at least one run, got none; run the study first")
    cells: dict[CellKey, list[Run]] = {}
    for run in every:
        cells.setdefault(CellKey(run.task, run.method, tuple(sorted(run.factors.items()))), []).append(run)
    for key, cell in cells.items():
        cell.sort(key=lambda run: run.restart)
        for one, other in pairwise(cell):
            if one.restart == other.restart:
                raise InputError(
                    f"expected each restart once, got restart {one.restart} of {key} twice; "
                    "name what differs in a column of its own"
                )
    of_task = {key.task: [run for run in every if run.task == key.task] for key in cells}
    return {key: _completed(key, cell, of_task[key.task]) for key, cell in cells.items()}


def _completed(key: CellKey, cell: list[Run], task: list[Run]) -> list[Run]:
    if len({run.paired for run in cell}) > 1:
        raise InputError(f"expected the runs of {key} to be all paired or all not, got both")
    metric = _only(key, "metric", [run.metric for run in cell if not math.isnan(run.score)])
    chance = _only(key, "chance", [run.chance for run in cell if run.chance is not None])
    metric = metric or _if_one([run.metric for run in task if not math.isnan(run.score)]) or cell[0].metric
    chance = _if_one([run.chance for run in task if run.chance is not None]) if chance is None else chance
    return [replace(run, metric=metric, chance=chance) for run in cell]


def _only(key: CellKey, name: str, values: Sequence[T]) -> T | None:
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1:
        raise InputError(f"expected one {name} for {key}, got {distinct[0]} and {distinct[1]}")
    return distinct[0] if distinct else None


def _if_one(values: Sequence[T]) -> T | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
