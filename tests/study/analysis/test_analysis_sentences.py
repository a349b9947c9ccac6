"""Sentences say what the numbers show, and no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixout.study.analysis.cells import Comparison
from mixout.study.analysis.compare import compare
from mixout.study.analysis.restarts import restarts_needed
from mixout.study.analysis.runs import Run
from mixout.study.analysis.summary import analyse
from mixout.study.analysis.words import describe, p_value

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
    confidence=0.95,
    low=0.009,
    high=0.092,
    p_permutation=0.031,
    p_smallest=2**-19,
    p_holm=0.08,
    family=3,
    looks=1,
    margin=1.0,
    p_equivalent=0.99,
    improvement=0.7,
    improvement_low=0.5,
    improvement_high=0.8,
    chance_known=True,
    failed=0,
    baseline_failed=0,
    failure_runs=20,
    failure_runs_baseline=20,
    failure_difference=0.0,
    failure_low=-0.16,
    failure_high=0.16,
    failure_p=1.0,
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
        "9.2; permutation p = 0.03, 0.08 after Holm): not enough evidence after correction. No run failed; with 20 "
        "restarts a failure rate of up to 16 % may go unseen."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"p_holm": 0.04}, "evidence that mixout(0.7) scores higher on average here."),
        ({"p_holm": 0.04, "difference": -0.051}, "5.1 points lower than dropout(0.1)"),
        ({"p_holm": 0.04, "difference": -0.051}, "evidence that mixout(0.7) scores lower on average here."),
        (
            {"p_permutation": 0.3, "p_holm": 0.9, "low": -0.1},
            "no difference is shown, which does not show that there is none.",
        ),
        ({"p_permutation": 0.07, "p_holm": 0.9}, "interval and test disagree, so no difference is taken as shown."),
        ({"p_holm": 0.04, "low": -0.01}, "higher on average here, by the test, though the interval includes 0."),
        ({"p_permutation": 0.125, "p_smallest": 0.125}, "cannot show a difference by this test (p is at least 0.12)"),
        ({"p_permutation": 0.03, "p_smallest": 0.03}, "can hardly show a difference among 3 comparisons"),
        ({"p_smallest": 0.015, "looks": 5}, "can hardly show a difference among 3 comparisons"),
        ({"low": None, "high": None, "n": 2}, "over 2 paired restarts: too few restarts for an interval or a test"),
        ({"low": None, "high": None}, "over 20 paired restarts (permutation p = 0.03, 0.08 after Holm): "),
        (
            {"confidence": 0.99, "looks": 5},
            "(99 % interval 0.9 to 9.2; permutation p = 0.03, 0.08 after Holm and 5 looks)",
        ),
        ({"family": 1, "p_holm": 0.031}, "permutation p = 0.03): evidence"),
        ({"difference": 1e-15}, "scored the same on RTE on average over 20 paired restarts"),
        ({"difference": -0.0001}, "scored 0.01 points lower than"),
        ({"paired": False, "n_baseline": 17}, "over 20 against 17 unpaired restarts"),
        ({"points": 1.0, "difference": 5.1, "low": 0.9, "high": 9.2}, "5.1 points higher"),
        ({"factors": {"lr": "1e-5", "epochs": "3"}}, "on RTE (epochs 3, lr 1e-5) over"),
        ({"chance_known": False}, "Chance is not known, so only runs that did not finish count as failed."),
        ({"left_out": 1}, "1 run without a counterpart or a score was left out."),
        ({"left_out": 3, "paired": False}, "3 runs without a score were left out."),
        ({"at_chance": 2}, "2 runs without a score were counted as chance."),
        ({"n": 9, "failed": 1}, "With failures among fewer than 10 restarts no interval of the means holds."),
        (
            {"p_equivalent": 0.02, "p_holm": 0.5},
            "mixout(0.7) is as good as dropout(0.1) within 1 point (equivalence test, p = 0.02 after Holm).",
        ),
        (
            {"p_variance": 0.02},
            "spread more (standard deviation 9.7 against 8.2; Brown-Forsythe p = 0.02, uncorrected).",
        ),
    ],
)
def test_each_case_has_its_words(changes, words):
    assert words in describe(replace(SEEN, **changes))


FAILURES = {
    "failed": 1, "baseline_failed": 9, "failure_difference": -0.4, "failure_low": -0.62, "failure_high": -0.12,
    "failure_p": 0.008,
}  # fmt: skip


def test_failure_rates_differ_and_levels_are_not_seen_to():
    said = describe(replace(SEEN, **FAILURES, level_difference=0.003, level_low=-0.021, level_high=0.025))
    assert (
        "mixout(0.7) failed in 1 of 20 restarts, dropout(0.1) in 9 of 20 (difference of rates -62.0 to -12.0 points; "
        "McNemar p = 0.008): evidence of a lower failure rate, uncorrected. The means above mix failed runs with "
        "others and describe neither. Among runs that did not fail the means differ by 0.3 points (-2.1 to 2.5): no "
        "difference is shown there."
    ) in said


def test_failure_rates_and_levels_differ():
    assert "there is a difference there as well." in describe(replace(SEEN, **FAILURES))


def test_an_interval_of_rates_alone_is_no_evidence():
    # 3 of 6 against 0: Newcombe's interval excludes 0, McNemar's exact p is 0.25.
    said = describe(replace(SEEN, **FAILURES | {"failure_p": 0.25}))
    assert "no difference of failure rates is shown." in said
    assert "evidence of" not in said


def test_too_few_working_runs_for_a_level():
    none = {"level_difference": None, "level_low": None, "level_high": None}
    assert "No runs are left to compare among those" in describe(replace(SEEN, **FAILURES, **none))
    few = {"level_low": None, "level_high": None}
    assert "differ by 5.1 points, of too few runs for an interval." in describe(replace(SEEN, **FAILURES, **few))


@given(p_holm=st.floats(0.0501, 1), share=st.floats(0.05, 1), difference=st.floats(-1, 1))
def test_no_evidence_is_claimed_above_the_level(p_holm, share, difference):
    said = describe(replace(SEEN, p_holm=p_holm, p_permutation=p_holm * share, difference=difference))
    assert "evidence that" not in said
    assert "as good" not in said


@given(st.floats(0, 1))
def test_p_is_rounded_to_its_side_of_the_level(p):
    text = p_value(p)
    shown = {"< 0.001": 0.0, "= 1": 1.0}.get(text) if text in ("< 0.001", "= 1") else float(text.removeprefix("= "))
    assert abs(shown - p) <= 0.005 + 1e-12
    if abs(p - 0.05) > 0.0006:
        assert (shown <= 0.05) == (p <= 0.05)


def scored(n: int, gains=(0.0, 0.004, 0.011), sd: float = 0.01) -> list[Run]:
    draw = np.random.default_rng(0)
    methods = ("dropout(0.1)", "mixout(0.7)", "mixout(0.9)")
    noise = {method: draw.normal(0, sd, n) for method in methods}
    return [
        Run(task="RTE", method=method, restart=k, score=float(0.7 + gain + (noise[method] - noise[method].mean())[k]))
        for method, gain in zip(methods, gains, strict=True)
        for k in range(n)
    ]


def test_the_best_and_what_cannot_be_told_apart_from_it():
    found = analyse(scored(12, gains=(0.0, 0.05, 0.055)))
    [leader] = found.leaders
    assert (leader.best.method, [cell.method for cell in leader.alike]) == ("mixout(0.9)", ["mixout(0.7)"])
    assert [one.method for one in leader.lower] == ["dropout(0.1)"]
    assert found.verdict[:2] == (
        "Best on RTE: mixout(0.9) (score 0.755, mean of 12 runs).",
        "Not told apart from it: mixout(0.7).",
    )
    needed = restarts_needed(0.01, float(np.std(leader_gaps(12), ddof=1)), family=2)
    assert found.verdict[-1] == (
        "Next: take the cheapest of those that can't be told apart; "
        f"{needed - 12} more restarts would show 1 point between the two best."
    )


def leader_gaps(n: int) -> np.ndarray:
    """Differences of the two best, restart by restart."""
    runs = scored(n, gains=(0.0, 0.05, 0.055))
    of = {method: np.array([run.score for run in runs if run.method == method]) for method in {r.method for r in runs}}
    return of["mixout(0.9)"] - of["mixout(0.7)"]


def test_a_clear_winner_is_named_with_its_lead():
    found = analyse(scored(12, gains=(0.0, 0.05, 0.1)))
    gap = compare(scored(12, gains=(0.0, 0.05, 0.1)), "mixout(0.9)")[-1]
    assert found.verdict[1] == (
        f"The next, mixout(0.7), is 5.0 points lower (95 % interval {-100 * gap.high:.1f} to {-100 * gap.low:.1f})."
    )
    assert found.verdict[-1] == "Next: use mixout(0.9)."


def test_the_lead_has_the_level_of_its_interval():
    runs = scored(12, gains=(0.0, 0.05, 0.1))
    of = {
        method: np.array([run.score for run in runs if run.method == method])
        for method in ("mixout(0.9)", "mixout(0.7)")
    }
    known = stats.ttest_1samp(100 * (of["mixout(0.9)"] - of["mixout(0.7)"]), 0.0).confidence_interval(0.99)
    assert f"(99 % interval {known.low:.1f} to {known.high:.1f})" in analyse(runs, looks=5).verdict[1]


def test_without_a_winner_the_answer_says_how_far_it_is():
    assert analyse(scored(5)).verdict == (
        "No winner on RTE: the 3 methods lie within 1.1 points.",
        "Highest: mixout(0.9) (score 0.711, mean of 5 runs).",
        "5 restarts of each method can't show a difference by the test used here; 7 can.",
        "Next: run 2 more restarts, or take the cheapest method.",
    )
    found = analyse(scored(8, sd=0.02))
    low, high = found.leaders[0].detectable
    assert found.verdict[2] in (
        f"With 8 restarts a difference of about {high:.2g} points would have shown.",
        f"With 8 restarts a difference of {low:.2g} to {high:.2g} points would have shown, by method.",
    )


def test_the_cheapest_is_named_where_times_are_known():
    runs = [replace(run, seconds={"dropout(0.1)": 10.0}.get(run.method, 20.0)) for run in scored(5)]
    assert (
        analyse(runs).verdict[-1]
        == "Next: run 2 more restarts, or take the cheapest method (dropout(0.1), by training time)."
    )


def test_several_tasks_have_a_line_each():
    tasks = [replace(run, task=task) for task in ("RTE", "MRPC") for run in scored(3)]
    verdict = analyse(tasks).verdict
    assert verdict[0] == "No winner on any of 2 tasks."
    assert [line.split(":")[0] for line in verdict[1:3]] == ["No winner on RTE", "No winner on MRPC"]


def test_what_a_factor_costs_each_method_is_said():
    costs = {"plain": 0.2, "mixout(0.7)": 0.02}
    runs = [
        Run(task="RTE", method=method, restart=k, score=0.7 - cost * (rate == "1e-3"), factors={"learning_rate": rate})
        for method, cost in costs.items()
        for rate in ("1e-4", "1e-3")
        for k in range(2)
    ]
    assert (
        "Over learning_rate the mean of mixout(0.7) changes least, by 2.0 points, that of plain most, by 20.0."
        in analyse(runs).verdict
    )


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", range(2, 9))
def test_a_failure_rate_is_shown_only_where_an_exact_test_can_show_it(paired, n):
    chance = {"chance": 0.5, "paired": paired}
    runs = [Run(task="RTE", method="plain", restart=k, score=0.5, **chance) for k in range(n)]
    runs += [Run(task="RTE", method="mixout(0.7)", restart=k, score=0.7 + k / 100, **chance) for k in range(n)]
    [found] = compare(runs)
    p = stats.binomtest(n, n).pvalue if paired else stats.fisher_exact([[0, n], [n, 0]]).pvalue
    assert ("evidence of a lower failure rate" in describe(found)) == (p <= 0.05)
    assert ("no difference of failure rates is shown" in describe(found)) == (p > 0.05)
