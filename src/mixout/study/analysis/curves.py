"""Scores over something, and what training did beside the score: over steps, p, numeric factors; distance by layer.

A factor, such as a learning rate or a number of examples, is numeric where each of its values is a number. Seeds are
numbers that count nothing, so no score is shown over them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.runs import Run, by_cell

_MIXING = re.compile(r"\b(?:mixout|mixconnect|dropconnect|dropout|gradient_mask)\((?P<inside>[^()]*)\)")
_STATED = re.compile(r"\bp=(?P<p>(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)$")
_NUMBER = re.compile(r"(?<![\w.])(?:p=)?(?P<p>(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)(?![\w.=])")


@dataclass(frozen=True, kw_only=True)
class LayerDistance:
    """Distance of one layer, see :func:`layer_distances`, to its pretrained weights, over the restarts of a cell."""

    task: str
    method: str
    factors: dict[str, str]
    layer: str
    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Scores over the steps of a cell's runs; at each step over the runs that were evaluated there."""

    task: str
    method: str
    factors: dict[str, str]
    steps: tuple[int, ...]  # optimizer steps, ascending
    n: tuple[int, ...]  # runs at each step
    mean: tuple[float, ...]
    sd: tuple[float | None, ...]  # at each step; None of a single run
    min: tuple[float, ...]  # lowest at each step
    max: tuple[float, ...]  # highest at each step


@dataclass(frozen=True, kw_only=True)
class Dose:
    """Cells whose methods differ in p alone, in the order of p."""

    task: str
    family: str  # the method with its p written as ``p``
    factors: dict[str, str]
    p: tuple[float, ...]  # of each cell
    cells: tuple[Cell, ...]  # with means, intervals and failure rates


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Cells that differ in one numeric factor alone, in the order of its values."""

    task: str
    method: str
    factor: str  # in which they differ
    factors: dict[str, str]  # the other ones, which they share
    values: tuple[float, ...]  # of the factor, one for each cell
    cells: tuple[Cell, ...]  # with means, intervals and failure rates


def distances(runs: Iterable[Run]) -> list[LayerDistance]:
    """Distance to the pretrained weights for each cell and layer, layers in the order of the model.

    Example:
        >>> runs = [
        ...     Run(task="RTE", method="plain", restart=k, score=0.7, distance_by_layer={"layer.0": 1.0 + k})
        ...     for k in (0, 1)
        ... ]
        >>> [found] = distances(runs)
        >>> found.layer, found.mean
        ('layer.0', 1.5)
    """
    found = []
    for key, cell in by_cell(runs).items():
        layers: dict[str, list[float]] = {}
        for run in cell:
            for layer, distance in layer_distances(run.distance_by_layer).items():
                if math.isfinite(distance):
                    layers.setdefault(layer, []).append(distance)
        found += [
            LayerDistance(
                task=key.task,
                method=key.method,
                factors=dict(key.factors),
                layer=layer,
                n=len(values),
                mean=float(np.mean(values)),
                sd=_sd(values),
            )
            for layer, values in layers.items()
        ]
    return found


def layer_distances(distances: Mapping[str, float]) -> dict[str, float]:
    """Euclidean distance of each layer from those of its parameters.

    A layer is a numbered block of the model; what lies outside of the blocks goes by the module that holds it.

    Args:
        distances: name of a parameter -> its distance.

    Returns:
        Name of a layer -> the root of its parameters' sum of squares, in the order of their first parameters.

    Example:
        >>> parts = {"bert.embeddings.word.weight": 1.0, "bert.layer.0.key.weight": 3.0, "bert.layer.0.key.bias": 4.0}
        >>> layer_distances(parts)
        {'bert.embeddings': 1.0, 'bert.layer.0': 5.0}
    """
    paths = [name.split(".") for name in distances]
    # What all names begin with, such as "bert", tells nothing apart.
    shared = next((at for at, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), 0)
    squares: dict[str, float] = {}
    for path, distance in zip(paths, distances.values(), strict=True):
        number = next((at for at, part in enumerate(path) if part.isdecimal()), shared)
        layer = ".".join(path[: number + 1])
        squares[layer] = squares.get(layer, 0.0) + distance**2
    return {layer: math.sqrt(square) for layer, square in squares.items()}


def curves(runs: Iterable[Run]) -> list[Curve]:
    """Scores over the steps for each cell that has any; evaluations without a score are left out.

    Example:
        >>> courses = [((10, 0.5), (20, 0.7)), ((10, 0.6), (20, 0.9))]
        >>> runs = [Run(task="RTE", method="plain", restart=k, score=0.7, evaluations=e) for k, e in enumerate(courses)]
        >>> [found] = curves(runs)
        >>> found.steps, [round(mean, 2) for mean in found.mean]
        ((10, 20), [0.55, 0.8])
    """
    found = []
    for key, cell in by_cell(runs).items():
        at: dict[int, list[float]] = {}
        for run in cell:
            for step, score in run.evaluations:
                if math.isfinite(score):
                    at.setdefault(step, []).append(score)
        if at:
            ordered = sorted(at.items())
            found.append(
                Curve(
                    task=key.task,
                    method=key.method,
                    factors=dict(key.factors),
                    steps=tuple(step for step, _ in ordered),
                    n=tuple(len(scores) for _, scores in ordered),
                    mean=tuple(float(np.mean(scores)) for _, scores in ordered),
                    sd=tuple(_sd(scores) for _, scores in ordered),
                    min=tuple(min(scores) for _, scores in ordered),
                    max=tuple(max(scores) for _, scores in ordered),
                )
            )
    return found


def doses(cells: Iterable[Cell]) -> list[Dose]:
    """The families of methods that occur with two or more values of p on one task.

    Args:
        cells: from :func:`mixout.study.analysis.cells.summarise`.

    Example:
        >>> from mixout.study.analysis.cells import summarise
        >>> labels = ("mixout(0.9)", "mixout(0.5)", "plain")
        >>> runs = [Run(task="RTE", method=label, restart=0, score=0.7) for label in labels]
        >>> [(dose.family, dose.p) for dose in doses(summarise(runs))]
        [('mixout(p)', (0.5, 0.9))]
    """
    families: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[tuple[float, Cell]]] = {}
    for cell in cells:
        split = split_p(cell.method)
        if split is not None:
            family, p = split
            families.setdefault((cell.task, family, tuple(sorted(cell.factors.items()))), []).append((p, cell))
    found = []
    for (task, family, factors), members in families.items():
        if len({p for p, _ in members}) > 1:
            members.sort(key=lambda member: member[0])
            ps, several = zip(*members, strict=True)
            found.append(Dose(task=task, family=family, factors=dict(factors), p=ps, cells=several))
    return found


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
    """For each numeric factor the methods that occur with two or more of its values, all else equal.

    Args:
        cells: from :func:`mixout.study.analysis.cells.summarise`.

    Returns:
        Factor by factor in the order of their names; within a factor in the order of the first cells.

    Example:
        >>> from mixout.study.analysis.cells import summarise
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


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
