"""How much restarts disagree on single examples: equal scores can hide different answers.

For classes the disagreement of two runs is the share of dev examples that they answer differently; for values it is the
mean absolute difference. Over all pairs of restarts of a cell it estimates the same for two new restarts. It has no
interval: the jackknife's covers 91 % with five restarts. M. Milani Fard et al., Launch and iterate: reducing prediction
churn, 2016.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mixout.errors import InputError
from mixout.study.analysis.runs import CellKey, Placed, Run, by_cell
from mixout.study.analysis.stats import Array


@dataclass(frozen=True, kw_only=True)
class Instability(Placed):
    """How much the restarts of one cell disagree."""

    kind: str  # ``"classes"`` where every prediction of the task is a whole number, else ``"values"``
    n: int  # restarts with predictions, two at least
    examples: int  # in the dev set
    disagreement: float  # mean over the pairs of restarts
    # disagreement among the runs that did not fail; None for fewer than two. A failed run that gives one answer to
    # all disagrees with every other for a reason of its own
    working: float | None
    # for each example, the share of restarts that do not give the most frequent answer; for values, the standard
    # deviation
    spread: tuple[float, ...]
    # numbers of the examples that do not get the same answer from all restarts, the least stable first
    flipping: tuple[int, ...]


def instability(runs: Iterable[Run]) -> list[Instability]:
    """One value for each cell with two or more runs that have predictions; runs with nan among theirs are left out.

    Raises:
        InputError: runs of one task differ in their number of predictions.
    """
    with_predictions: dict[CellKey, list[Run]] = {}
    for key, cell in by_cell(runs).items():
        with_predictions[key] = [run for run in cell if run.predictions and np.isfinite(run.predictions).all()]
    classes = _classes(with_predictions)
    return [_cell(key, cell, classes[key.task]) for key, cell in with_predictions.items() if len(cell) > 1]


def pairwise_disagreement(predictions: Array, *, classes: bool) -> Array:
    """Disagreement of each pair of runs: (runs, examples) -> (runs, runs), symmetric, 0 on the diagonal."""
    rows = [(predictions != one if classes else np.abs(predictions - one)).mean(axis=1) for one in predictions]
    return np.stack(rows).astype(np.float64)


def _classes(cells: dict[CellKey, list[Run]]) -> dict[str, bool]:
    whole: dict[str, bool] = {}
    examples: dict[str, int] = {}
    for key, cell in cells.items():
        for run in cell:
            if examples.setdefault(key.task, len(run.predictions)) != len(run.predictions):
                raise InputError(
                    f"expected {examples[key.task]} predictions from every run on {key.task}, got "
                    f"{len(run.predictions)} from restart {run.restart} of {key.method}"
                )
            whole[key.task] = whole.get(key.task, True) and all(float(value).is_integer() for value in run.predictions)
    return whole


def _cell(key: CellKey, cell: list[Run], classes: bool) -> Instability:
    predictions = np.array([run.predictions for run in cell], dtype=np.float64)
    pairs = pairwise_disagreement(predictions, classes=classes)
    works = np.array([not run.failed for run in cell])
    spread = _off_mode(predictions) if classes else predictions.std(axis=0, ddof=1)
    order = np.argsort(-spread, kind="stable")
    return Instability(
        **key.named,
        kind="classes" if classes else "values",
        n=len(cell),
        examples=predictions.shape[1],
        disagreement=_mean(pairs),
        working=_mean(pairs[np.ix_(works, works)]) if works.sum() > 1 else None,
        spread=tuple(spread.tolist()),
        flipping=tuple(int(i) for i in order if np.ptp(predictions[:, i]) > 0.0),
    )


def _mean(pairs: Array) -> float:
    """Over the pairs of different runs."""
    n = len(pairs)
    return float(pairs.sum() / (n * (n - 1)))


def _off_mode(predictions: Array) -> Array:
    counts = np.stack([(predictions == value).sum(axis=0) for value in np.unique(predictions)])
    return np.asarray(1.0 - counts.max(axis=0) / len(predictions), dtype=np.float64)
