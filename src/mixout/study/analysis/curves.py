"""Scores over p and over numeric factors: which cells make a line. And the front of score against what is kept.

A factor, such as a learning rate or a number of examples, is numeric where each of its values is a number. Seeds are
numbers that count nothing, so no score is shown over them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.runs import CellKey, Placed

_MIXING = re.compile(r"\b(?:mixout|mixconnect|dropconnect|dropout|gradient_mask)\((?P<inside>[^()]*)\)")
_STATED = re.compile(r"\bp=(?P<p>(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)$")
_NUMBER = re.compile(r"(?<![\w.])(?:p=)?(?P<p>(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)(?![\w.=])")


@dataclass(frozen=True, kw_only=True)
class Sweep(Placed):
    """Cells that differ in one numeric factor alone, or in their method's p, in the order of its values.

    ``factors`` are the other ones, which they share; of a sweep over p the method has ``p`` for its number.
    """

    factor: str  # in which they differ
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
    families: dict[CellKey, list[tuple[float, Cell]]] = {}
    for cell in cells:
        if (split := split_p(cell.method)) is not None:
            families.setdefault(CellKey(cell.task, split[0], cell.key.factors), []).append((split[1], cell))
    return _lines("p", families)


def split_p(method: str) -> tuple[str, float] | None:
    """A mixing method's label, or any that ends in ``p=`` and a number up to 1, without its p, and that p; else None.

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
    every = list(cells)
    found = []
    for factor in sorted({name for cell in every for name in cell.factors}):
        having = [cell for cell in every if factor in cell.factors]
        numbers = {text: _number(text) for text in {cell.factors[factor] for cell in having}}
        if factor.endswith("seed") or not all(map(math.isfinite, numbers.values())):
            continue
        lines: dict[CellKey, list[tuple[float, Cell]]] = {}
        for cell in having:
            others = tuple((name, value) for name, value in cell.key.factors if name != factor)
            lines.setdefault(CellKey(cell.task, cell.method, others), []).append((numbers[cell.factors[factor]], cell))
        found += _lines(factor, lines)
    return found


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
    tasks: dict[str, list[tuple[float, float, Cell]]] = {}
    for cell in cells:
        if cell.mean is not None and cell.original is not None:
            tasks.setdefault(cell.task, []).append((cell.mean, cell.original, cell))
    found = []
    for known in tasks.values():
        most = -math.inf
        for _, kept, cell in sorted(known, key=lambda one: (-one[0], -one[1])):
            if kept > most:
                found.append(cell)
                most = kept
    return found


def _lines(factor: str, groups: dict[CellKey, list[tuple[float, Cell]]]) -> list[Sweep]:
    found = []
    for key, members in groups.items():
        if len({value for value, _ in members}) > 1:
            values, cells = zip(*sorted(members, key=lambda member: member[0]), strict=True)
            found.append(Sweep(**key.named, factor=factor, values=values, cells=cells))
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
