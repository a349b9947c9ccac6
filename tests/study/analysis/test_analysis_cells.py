"""Numbers of a cell, against numpy, scipy and enumeration of every subset."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixout.study.analysis.cells import Cell, expected_best, summarise
from mixout.study.analysis.runs import Run

SPREAD = np.random.default_rng(0).uniform(0.4, 0.9, 12).tolist()


def runs(scores, *, method: str = "plain", chance: float | None = 0.5, **more) -> list[Run]:
    return [
        Run(**({"task": "RTE", "method": method, "restart": k, "score": score, "chance": chance} | more))
        for k, score in enumerate(scores)
    ]


def cell(scores, **more) -> Cell:
    (found,) = summarise(runs(scores, **more))
    return found


@given(st.lists(st.integers(0, 100), min_size=1, max_size=25))
def test_statistics_equal_numpy_and_scipy(hundredths):
    scores = np.array(hundredths) / 100
    found = cell(scores)
    assert (found.n, found.runs, found.unscored) == (len(scores), len(scores), 0)
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.median == pytest.approx(np.median(scores))
    assert (found.min, found.max) == (scores.min(), scores.max())
    assert found.failed == np.sum(scores <= 0.5)
    oracle = stats.binomtest(found.failed, found.n).proportion_ci(method="wilson")
    assert (found.failure_low, found.failure_high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    if len(scores) > 1:
        assert found.sd == pytest.approx(np.std(scores, ddof=1))
    else:
        assert found.sd is None
    if len(scores) > 2 and np.ptp(scores) > 0 and found.failed == 0:
        oracle = stats.ttest_1samp(scores, 0.0).confidence_interval()
        assert (found.mean_low, found.mean_high) == pytest.approx((oracle.low, oracle.high))
    else:
        assert found.mean_low is found.mean_high is None


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=8))
def test_best_of_k_by_all_subsets(scores):
    expected = [np.mean([max(subset) for subset in combinations(scores, k)]) for k in range(1, len(scores) + 1)]
    assert expected_best(scores) == pytest.approx(expected)


def test_best_of_k_has_no_bias():
    # 20 uniform scores: the expected largest of k is k / (k + 1), whatever the number that was observed.
    drawn = np.random.default_rng(0).uniform(size=(4000, 20))
    means = np.mean([expected_best(row) for row in drawn], axis=0)
    assert means == pytest.approx([k / (k + 1) for k in range(1, 21)], abs=0.005)


def test_best_of_k_of_many_runs_does_not_overflow():
    scores = np.random.default_rng(0).normal(size=1500)
    best = expected_best(scores)
    assert best[0] == pytest.approx(scores.mean())
    assert best[-1] == pytest.approx(scores.max())
    assert np.all(np.diff(best) >= -1e-12)
    assert len(expected_best([])) == 0


def test_a_run_without_score_counts_as_chance():
    found = cell([0.9, math.nan, 0.7])
    assert (found.n, found.runs, found.unscored, found.failed) == (3, 3, 1, 1)
    assert found.scores == (0.9, 0.5, 0.7)
    assert found.mean == pytest.approx(0.7)


def test_where_chance_is_unknown_it_is_left_out_and_counted():
    found = cell([0.9, math.nan, 0.7], chance=None)
    assert (found.n, found.runs, found.unscored) == (2, 3, 1)
    assert found.restarts == (0, 2)
    assert found.mean == pytest.approx(0.8)
    assert (found.failed, found.failure_rate) == (1, pytest.approx(1 / 3))


def test_a_diverged_run_keeps_its_score_and_counts_as_failed():
    found = summarise([*runs([0.9, 0.8]), Run(task="RTE", method="plain", restart=2, score=0.7, status="diverged")])[0]
    assert (found.failed, found.failure_rate, found.mean) == (1, pytest.approx(1 / 3), pytest.approx(0.8))


def test_nothing_but_crashes():
    found = cell([math.nan, math.nan], chance=None)
    assert (found.n, found.mean, found.sd, found.max, found.best_of) == (0, None, None, None, ())


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_equal_scores_need_no_warning(n):
    found = cell([0.527] * n)
    assert found.mean == pytest.approx(0.527)
    assert found.best_of == pytest.approx([0.527] * n)
    assert found.mean_low is None  # without any spread nothing is known of it
    if n > 1:
        assert found.sd == pytest.approx(0.0, abs=1e-12)


def test_costs():
    found = cell([0.6, 0.7], seconds=3.0, peak_memory=7, distance=2.0)
    assert (found.seconds, found.peak_memory, found.distance) == (3.0, 7, 2.0)
    without = cell([0.6, 0.7])
    assert (without.seconds, without.peak_memory, without.distance) == (None, None, None)


def test_a_cell_does_not_depend_on_the_others():
    alone = summarise(runs(SPREAD))
    together = summarise([*runs([0.1, 0.2, 0.5, 0.4], method="other"), *runs(SPREAD)])
    assert together[1:] == alone


def test_the_dev_sets_own_error_stands_beside_that_of_restarts():
    # 872 examples at 80 %: the root of 0.8 x 0.2 / 872.
    found = cell([0.79, 0.81], metric="accuracy", dev_size=872)
    assert found.dev_error == pytest.approx(0.013546, abs=1e-6)
    percent = cell([79.0, 81.0], metric="accuracy", dev_size=872, chance=50.0)
    assert percent.dev_error == pytest.approx(1.3546, abs=1e-4)
    assert cell([0.79, 0.81], metric="f1", dev_size=872).dev_error is None
    assert cell([0.79, 0.81], metric="accuracy").dev_error is None
    # What the runs know counts; a run without a score knows nothing.
    known = [
        replace(run, standard_error=error)
        for run, error in zip(runs([0.7, 0.8], metric="f1"), (0.02, 0.04), strict=True)
    ]
    lost = replace(known[0], restart=2, score=math.nan, status="failed", standard_error=None)
    assert summarise([*known, lost])[0].dev_error == pytest.approx(0.03)
    assert summarise([*known, replace(lost, score=0.7)])[0].dev_error is None
