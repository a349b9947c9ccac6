"""Comparisons, against scipy, and the rules of what is compared with what."""

from __future__ import annotations

import math
import random
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from mixout.errors import InputError
from mixout.study.analysis.compare import Comparison, choose_baseline, compare
from mixout.study.analysis.runs import Run
from mixout.study.analysis.stats import holm, newcombe

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(0.7, 0.05, 12).round(3), DRAW.normal(0.66, 0.09, 12).round(3)


def runs(method: str, scores, *, task: str = "RTE", restarts=None, **more) -> list[Run]:
    numbers = range(len(scores)) if restarts is None else restarts
    return [
        Run(task=task, method=method, restart=k, score=float(score), **more)
        for k, score in zip(numbers, scores, strict=True)
    ]


def one(*parts: list[Run], baseline: str | None = None, **more) -> Comparison:
    (found,) = compare([run for part in parts for run in part], baseline, **more)
    return found


def test_paired_numbers_equal_scipy():
    found = one(runs("plain", Y, chance=0.4), runs("mixout(0.9)", X, chance=0.4))
    assert (found.paired, found.n, found.n_baseline, found.left_out, found.family) == (True, 12, 12, 0, 1)
    assert found.difference == pytest.approx(np.mean(X - Y))
    assert found.differences == pytest.approx(X - Y)
    interval = stats.ttest_rel(X, Y).confidence_interval()
    assert (found.low, found.high, found.confidence) == pytest.approx((interval.low, interval.high, 0.95))
    oracle = stats.permutation_test((X - Y,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.p_permutation == found.p_holm == pytest.approx(oracle.pvalue)
    assert found.improvement == pytest.approx(stats.mannwhitneyu(X, Y).statistic / 144)
    assert (found.mean, found.baseline_mean) == pytest.approx((X.mean(), Y.mean()))
    assert (found.sd, found.baseline_sd) == pytest.approx((X.std(ddof=1), Y.std(ddof=1)))


def test_failures_and_levels():
    found = one(runs("plain", Y, chance=0.6), runs("mixout(0.9)", X, chance=0.6))
    assert (found.failed, found.baseline_failed) == ((X <= 0.6).sum(), (Y <= 0.6).sum())
    assert found.failure_difference == pytest.approx((X <= 0.6).mean() - (Y <= 0.6).mean())
    assert (found.failure_low, found.failure_high) == newcombe(X <= 0.6, Y <= 0.6, paired=True)
    both = (X > 0.6) & (Y > 0.6)
    assert found.level_difference == pytest.approx(np.mean((X - Y)[both]))
    interval = stats.ttest_rel(X[both], Y[both]).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.interval is None  # of the mean of two groups of runs
    assert found.p_equivalent is None
    pairs = list(zip(X <= 0.6, Y <= 0.6, strict=True))
    differ = [pairs.count((True, False)), pairs.count((False, True))]
    assert found.failure_p == pytest.approx(stats.binomtest(differ[0], sum(differ)).pvalue)


def test_where_nothing_fails_the_level_is_the_mean():
    found = one(runs("plain", Y, chance=0.1), runs("mixout(0.9)", X, chance=0.1))
    assert (found.level_difference, found.interval) == (pytest.approx(found.difference), (found.low, found.high))


def test_looks_widen_intervals_and_raise_p():
    parts = runs("plain", Y), runs("mixout(0.9)", X)
    once, thrice = one(*parts), one(*parts, looks=3)
    interval = stats.ttest_rel(X, Y).confidence_interval(1 - 0.05 / 3)
    assert (thrice.low, thrice.high, thrice.confidence) == pytest.approx((interval.low, interval.high, 1 - 0.05 / 3))
    assert thrice.p_holm == pytest.approx(min(1.0, 3 * once.p_holm))


def test_as_good_as_needs_the_margin():
    near = X + np.random.default_rng(1).normal(0, 0.003, 12)
    parts = runs("plain", near), runs("mixout(0.9)", X)
    assert one(*parts).p_equivalent < 0.05 < one(*parts, margin=0.1).p_equivalent
    with pytest.raises(InputError, match="expected a margin > 0 in points"):
        one(*parts, margin=0.0)


def test_without_chance_failures_are_unknown():
    found = one(runs("plain", Y), runs("mixout(0.9)", X))
    assert (found.chance_known, found.failed, found.baseline_failed) == (False, 0, 0)
    crashed = one(runs("plain", Y), runs("mixout(0.9)", [math.nan, *X[1:]]))
    assert (crashed.failed, crashed.baseline_failed) == (1, 0)


def test_pairs_go_by_restart_not_by_order():
    there = runs("mixout(0.9)", X)
    found = one(runs("plain", Y), random.Random(1).sample(there, len(there)))
    assert found == one(runs("plain", Y), there)


def test_restarts_without_counterpart_are_left_out_and_counted():
    found = one(runs("plain", Y), runs("mixout(0.9)", X[:9], restarts=range(5, 14)))
    assert (found.paired, found.n, found.left_out) == (True, 7, 12 + 9 - 14)
    assert found.difference == pytest.approx(np.mean(X[:7] - Y[5:]))


def test_no_common_restart_makes_samples_independent():
    found = one(runs("plain", Y[:6]), runs("mixout(0.9)", X[:5], restarts=range(20, 25)))
    assert (found.paired, found.n, found.n_baseline, found.differences) == (False, 5, 6, ())
    oracle = stats.permutation_test(
        (X[:5], Y[:6]), lambda a, b: abs(a.mean() - b.mean()), n_resamples=np.inf, alternative="greater"
    )
    assert found.p_permutation == pytest.approx(oracle.pvalue)


def test_scores_that_came_sorted_are_never_paired():
    # Pairing by rank would show a tiny difference with great confidence.
    x = np.linspace(0.5, 0.9, 10)
    better = x + np.linspace(0.009, 0.011, 10)
    found = one(runs("plain", x, paired=False), runs("mixout(0.9)", better, paired=False))
    assert not found.paired
    assert found.low < 0 < found.high
    assert one(runs("plain", x), runs("mixout(0.9)", better)).low > 0


def test_a_crash_counts_as_chance_and_is_reported():
    found = one(runs("plain", Y, chance=0.5), runs("mixout(0.9)", [math.nan, *X[1:]], chance=0.5))
    assert (found.n, found.left_out, found.failed) == (12, 0, 1)
    assert found.difference == pytest.approx(np.mean(np.array([0.5, *X[1:]]) - Y))


def test_a_crash_without_known_chance_takes_its_pair_along():
    found = one(runs("plain", Y), runs("mixout(0.9)", [math.nan, *X[1:]]))
    assert (found.n, found.left_out) == (11, 2)
    assert found.difference == pytest.approx(np.mean(X[1:] - Y[1:]))


def test_nothing_but_crashes_is_not_compared():
    assert compare([*runs("plain", Y), *runs("mixout(0.9)", [math.nan] * 3)]) == []


def test_holm_goes_over_all_tasks_and_factors():
    several = [
        run
        for task, shift in (("RTE", 0.1), ("CoLA", 0.0))
        for lr in ("1e-5", "2e-5")
        for method, scores in (("plain", Y), ("mixout(0.9)", X + shift), ("mixout(0.5)", X))
        for run in runs(method, scores, task=task, factors={"lr": lr})
    ]
    found = compare(several)
    assert [(c.task, c.factors["lr"], c.method) for c in found[:3]] == [
        ("RTE", "1e-5", "mixout(0.9)"),
        ("RTE", "1e-5", "mixout(0.5)"),
        ("RTE", "2e-5", "mixout(0.9)"),
    ]
    assert {c.family for c in found} == {8}
    assert [c.p_holm for c in found] == holm([c.p_permutation for c in found])


def test_only_cells_of_one_task_and_factors_meet():
    elsewhere = [*runs("plain", Y, factors={"lr": "1"}), *runs("mixout(0.9)", X, factors={"lr": "2"})]
    assert compare(elsewhere) == []


@pytest.mark.parametrize(
    ("methods", "baseline"),
    [
        (["mixout(0.9)", "dropout(0.1)", "plain"], "dropout(0.1)"),
        (["mixout(0.9)", "plain, lr x 0.3"], "plain, lr x 0.3"),
        (["mixout(0.9)", "dropouts", "mixout(0.5)"], "mixout(0.9)"),
        (["mixconnect(0.9)"], "mixconnect(0.9)"),
    ],
)
def test_the_usual_baseline(methods, baseline):
    assert choose_baseline(methods) == baseline


def test_another_baseline_mirrors_the_difference():
    parts = runs("plain", Y), runs("mixout(0.9)", X)
    there, back = one(*parts), one(*parts, baseline="mixout(0.9)")
    assert (back.method, back.baseline) == ("plain", "mixout(0.9)")
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-there.difference, -there.high, -there.low), abs=1e-12
    )
    assert back.p_permutation == there.p_permutation


def test_an_unknown_baseline_is_named_with_the_nearest():
    with pytest.raises(
        InputError, match=r"among plain, mixout\(0.9\), got 'mixuot\(0.9\)'; did you mean 'mixout\(0.9\)'"
    ):
        one(runs("plain", Y), runs("mixout(0.9)", X), baseline="mixuot(0.9)")


def test_two_metrics_on_one_task_are_refused():
    with pytest.raises(InputError, match="expected one metric on RTE, got f1 and accuracy"):
        one(runs("plain", Y, metric="f1"), runs("mixout(0.9)", X, metric="accuracy"))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_and_equal_restarts_need_no_warning(n):
    found = one(runs("plain", [0.5] * n, chance=0.5), runs("mixout(0.9)", [0.5] * n, chance=0.5))
    assert (found.difference, found.p_permutation, found.improvement) == (0.0, 1.0, 0.5)
    assert found.low is None
    assert found.failed == n
    assert found.level_difference is None


def test_points_are_hundredths_of_fractions():
    assert one(runs("plain", Y), runs("mixout(0.9)", X)).points == 100.0
    assert one(runs("plain", Y * 100), runs("mixout(0.9)", X * 100)).points == 1.0


def test_the_same_runs_give_the_same_numbers():
    parts = runs("plain", np.tile(Y, 2), chance=0.6), runs("mixout(0.9)", np.tile(X, 2)[::-1], chance=0.6)
    assert asdict(one(*parts)) == asdict(one(*parts))
