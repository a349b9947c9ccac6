"""Sentences say what the numbers show, and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixout.study.analysis.compare import compare
from mixout.study.analysis.comparison import Comparison
from mixout.study.analysis.runs import Run
from mixout.study.analysis.sentences import describe, overall, p_value

SEEN = Comparison(
    task="RTE",
    method="mixout(0.7)",
    baseline="dropout(0.1)",
    factors={},
    metric="accuracy",
    paired=True,
    n=20,
    n_baseline=20,
    left_out=0,
    at_chance=0,
    mean=0.616,
    baseline_mean=0.565,
    sd=0.097,
    baseline_sd=0.082,
    differences=(0.0,) * 20,
    difference=0.051,
    low=0.009,
    high=0.092,
    p_permutation=0.031,
    p_smallest=2**-19,
    p_holm=0.08,
    family=3,
    improvement=0.7,
    improvement_low=0.5,
    improvement_high=0.8,
    failed=0,
    baseline_failed=0,
    failure_runs=20,
    failure_runs_baseline=20,
    failure_difference=0.0,
    failure_low=-0.16,
    failure_high=0.16,
    level_difference=0.051,
    level_low=0.009,
    level_high=0.092,
    p_variance=0.4,
    points=100.0,
    sentence="",
)


def test_not_enough_after_correction():
    assert describe(SEEN) == (
        "mixout(0.7) scored 5.1 points higher than dropout(0.1) on RTE over 20 paired restarts (95 % interval 0.9 to "
        "9.2; permutation p = .03, .08 after Holm): this is not evidence enough after correction. No run failed."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"p_holm": 0.04}, "evidence that mixout(0.7) scores higher on average here."),
        ({"p_holm": 0.04, "difference": -0.051}, "5.1 points lower than dropout(0.1)"),
        ({"p_holm": 0.04, "difference": -0.051}, "evidence that mixout(0.7) scores lower on average here."),
        (
            {"p_permutation": 0.3, "p_holm": 0.9, "low": -0.1},
            "shows no difference, and does not show that there is none.",
        ),
        ({"p_permutation": 0.07, "p_holm": 0.9}, "interval and test disagree, so no difference is taken as shown."),
        ({"p_holm": 0.04, "low": -0.01}, "higher on average here, by the test, though the interval includes 0."),
        ({"p_permutation": 0.125, "p_smallest": 0.125}, "cannot show a difference by this test (p is at least .12)"),
        ({"p_permutation": 0.03, "p_smallest": 0.03}, "can hardly show a difference among 3 comparisons"),
        ({"low": None, "high": None, "n": 2}, "over 2 paired restarts: too few restarts for an interval or a test"),
        ({"family": 1, "p_holm": 0.031}, "permutation p = .03): evidence"),
        ({"difference": 1e-15}, "scored the same on RTE on average over 20 paired restarts"),
        ({"difference": -0.0001}, "scored 0.01 points lower than"),
        ({"paired": False, "n_baseline": 17}, "over 20 against 17 unpaired restarts"),
        ({"points": 1.0, "difference": 5.1, "low": 0.9, "high": 9.2}, "5.1 points higher"),
        ({"factors": {"lr": "1e-5", "epochs": "3"}}, "on RTE (epochs 3, lr 1e-5) over"),
        ({"failed": None}, "Chance is not known, so failed runs were not counted."),
        ({"left_out": 1}, "1 run without a counterpart or a score was left out."),
        ({"left_out": 3, "paired": False}, "3 runs without a score were left out."),
        ({"at_chance": 2}, "2 runs without a score were counted as chance."),
        ({"n": 9}, "From so few restarts the interval is likely to be too narrow."),
        (
            {"p_variance": 0.02},
            "spread more (standard deviation 9.7 against 8.2; Brown-Forsythe p = .02, uncorrected).",
        ),
    ],
)
def test_each_case_has_its_words(changes, words):
    assert words in describe(replace(SEEN, **changes))


FAILURES = {"failed": 1, "baseline_failed": 9, "failure_difference": -0.4, "failure_low": -0.62, "failure_high": -0.12}


def test_failure_rates_differ_and_levels_are_not_seen_to():
    said = describe(replace(SEEN, **FAILURES, level_difference=0.003, level_low=-0.021, level_high=0.025))
    assert (
        "mixout(0.7) failed in 1 of 20 restarts, dropout(0.1) in 9 of 20 (difference of rates -62.0 to -12.0 points): "
        "evidence of a lower failure rate, uncorrected. Among runs that did not fail the means differ by 0.3 points "
        "(-2.1 to 2.5): a difference of failure rates is seen, one of the level that is reached is not."
    ) in said


def test_failure_rates_and_levels_differ():
    assert "the level that is reached differs as well." in describe(replace(SEEN, **FAILURES))


def test_failures_that_show_nothing():
    said = describe(replace(SEEN, failed=3, baseline_failed=4, failure_low=-0.28, failure_high=0.2))
    assert "this shows no difference of failure rates." in said
    assert "evidence of" not in said


def test_too_few_working_runs_for_a_level():
    said = describe(replace(SEEN, **FAILURES, level_difference=None, level_low=None, level_high=None))
    assert "Too few runs did not fail to compare their level." in said


@given(p_holm=st.floats(0.0501, 1), share=st.floats(0.05, 1), difference=st.floats(-1, 1))
def test_no_evidence_is_claimed_above_the_level(p_holm, share, difference):
    said = describe(replace(SEEN, p_holm=p_holm, p_permutation=p_holm * share, difference=difference))
    assert "evidence that" not in said
    assert "equal" not in said


@given(st.floats(0, 1))
def test_p_is_rounded_to_its_side_of_the_level(p):
    text = p_value(p)
    shown = {"< .001": 0.0, "= 1": 1.0}.get(text) if text in ("< .001", "= 1") else float(text.removeprefix("= "))
    assert abs(shown - p) <= 0.005 + 1e-12
    if abs(p - 0.05) > 0.0006:
        assert (shown <= 0.05) == (p <= 0.05)


def test_all_together():
    others = [replace(SEEN, p_holm=0.01, difference=d, method=m) for d, m in ((0.1, "a"), (-0.1, "b"))]
    assert overall([SEEN, *others]) == (
        "Of 3 comparisons with dropout(0.1), 2 show a difference of means after correction. Higher: a on RTE. "
        "Lower: b on RTE. The other 1 shows none, which does not mean that there is none."
    )


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", range(2, 9))
def test_a_failure_rate_is_shown_only_where_an_exact_test_can_show_it(paired, n):
    chance = {"chance": 0.5, "paired": paired}
    runs = [Run(task="RTE", method="plain", restart=k, score=0.5, **chance) for k in range(n)]
    runs += [Run(task="RTE", method="mixout(0.7)", restart=k, score=0.7 + k / 100, **chance) for k in range(n)]
    [found] = compare(runs)
    p = stats.binomtest(n, n).pvalue if paired else stats.fisher_exact([[0, n], [n, 0]]).pvalue
    assert ("evidence of a lower failure rate" in found.sentence) == (p <= 0.05)
    assert ("so few restarts cannot show a difference of failure rates" in found.sentence) == (p > 0.05)
