"""Scores over a numeric factor of a study, such as a learning rate or a number of examples: few-sample curves, sweeps.

A factor is numeric where each of its values is a number. Seeds are numbers that count nothing, so no score is shown
over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mixout.study.analysis.cells import Cell


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Cells that differ in one numeric factor alone, in the order of its values.

    Args:
        task: of the cells.
        method: of the cells.
        factor: in which they differ.
        factors: the other ones, which they share.
        values: of the factor, one for each cell.
        cells: with means, intervals and failure rates.
    """

    task: str
    method: str
    factor: str
    factors: dict[str, str]
    values: tuple[float, ...]
    cells: tuple[Cell, ...]


def sweeps(cells: Iterable[Cell]) -> list[Sweep]:
    """For each numeric factor the methods that occur with two or more of its values, all else equal.

    Args:
        cells: from :func:`mixout.study.analysis.cells.summarise`.

    Returns:
        Factor by factor in the order of their names; within a factor in the order of the first cells.

    Example:
        >>> from mixout.study.analysis.cells import summarise
        >>> from mixout.study.analysis.runs import Run
        >>> runs = [
        ...     Run(task="RTE", method="plain", restart=0, score=score, factors={"train_size": size})
        ...     for size, score in (("1000", 0.7), ("200", 0.6))
        ... ]
        >>> [(sweep.factor, sweep.values) for sweep in sweeps(summarise(runs))]
        [('train_size', (200.0, 1000.0))]
    """
    every = list(cells)
    found = []
    for factor in sorted({name for cell in every for name in cell.factors}):
        having = [cell for cell in every if factor in cell.factors]
        texts = {cell.factors[factor] for cell in having}
        numbers = {text: value for text in texts if (value := _number(text)) is not None}
        if factor.endswith("seed") or len(numbers) < len(texts):
            continue
        lines: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[tuple[float, Cell]]] = {}
        for cell in having:
            others = tuple(sorted((name, value) for name, value in cell.factors.items() if name != factor))
            lines.setdefault((cell.task, cell.method, others), []).append((numbers[cell.factors[factor]], cell))
        for (task, method, others), members in lines.items():
            if len({value for value, _ in members}) > 1:
                members.sort(key=lambda member: member[0])
                values, several = zip(*members, strict=True)
                place = {"task": task, "method": method, "factor": factor}
                found.append(Sweep(**place, factors=dict(others), values=values, cells=several))
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
