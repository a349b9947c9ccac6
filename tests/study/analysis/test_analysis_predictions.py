"""Disagreement of restarts, against counting by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixout.errors import InputError
from mixout.study.analysis.cells import Instability, instability
from mixout.study.analysis.runs import Run


def runs(answers, *, method: str = "plain", task: str = "RTE", scores=None, **more) -> list[Run]:
    scores = [0.7] * len(answers) if scores is None else scores
    return [
        Run(task=task, method=method, restart=k, score=score, predictions=tuple(map(float, given)), **more)
        for k, (given, score) in enumerate(zip(answers, scores, strict=True))
    ]


def one(answers, **more) -> Instability:
    (found,) = instability(runs(answers, **more))
    return found


tables = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1, max_size=9)
)


@given(tables)
def test_disagreement_by_counting(columns):
    answers = list(zip(*columns, strict=True))  # (runs, examples)
    found = one(answers)
    share = [np.mean([a != b for a, b in zip(x, y, strict=True)]) for x, y in combinations(answers, 2)]
    assert found.disagreement == pytest.approx(np.mean(share))
    assert set(found.flipping) == {i for i, column in enumerate(columns) if len(set(column)) > 1}
    off = [1 - max(column.count(c) for c in column) / len(column) for column in columns]
    assert found.spread == pytest.approx(off)
    assert [off[i] for i in found.flipping] == pytest.approx(sorted((off[i] for i in found.flipping), reverse=True))


def test_values_disagree_by_their_distance():
    answers = [(0.5, 3.0, 5.0), (1.5, 3.0, 4.5), (0.5, 3.0, 2.5)]
    found = one(answers)
    assert found.kind == "values"
    assert found.disagreement == pytest.approx(np.mean([1.5 / 3, 2.5 / 3, 3.0 / 3]))
    assert found.spread == pytest.approx(np.std(answers, axis=0, ddof=1))
    assert found.flipping == (2, 0)


def test_whole_numbers_among_values_are_values():
    # One method happens to predict whole numbers only; the task is the same, and so is the kind.
    both = instability([*runs([(1, 2), (1, 3)]), *runs([(1.5, 2.0), (1.0, 3.0)], method="mixout(0.9)")])
    assert [found.kind for found in both] == ["values", "values"]
    others = instability([*runs([(1, 2), (1, 3)]), *runs([(1.5, 2.0), (1.0, 3.0)], task="STS-B")])
    assert [found.kind for found in others] == ["classes", "values"]


def test_failed_runs_stand_apart():
    answers = [(0, 1, 0, 1), (0, 1, 0, 0), (1, 1, 1, 1)]
    found = one(answers, scores=[0.9, 0.8, 0.5], chance=0.5)
    assert found.working == pytest.approx(0.25)
    assert found.disagreement == pytest.approx((0.25 + 0.5 + 0.75) / 3)
    assert one(answers, scores=[0.9, 0.5, 0.5], chance=0.5).working is None


def test_runs_without_predictions_do_not_count():
    crashed = Run(task="RTE", method="plain", restart=9, score=math.nan, status="failed")
    diverged = Run(task="RTE", method="plain", restart=8, score=0.5, predictions=(math.nan, 1.0))
    (found,) = instability([*runs([(0, 1), (1, 1)]), crashed, diverged])
    assert found.n == 2
    assert instability([*runs([(0, 1)]), crashed]) == []


def test_runs_of_another_dev_set_are_refused():
    with pytest.raises(InputError, match="expected 2 predictions from every run on RTE, got 3 from restart 1 of plain"):
        instability(runs([(0, 1), (0, 1, 1)]))
