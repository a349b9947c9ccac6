"""The answer says what the numbers show, and no more."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixout._names import count
from mixout.study.analysis.compare import compare
from mixout.study.analysis.restarts import detectable, restarts_needed
from mixout.study.analysis.runs import Run
from mixout.study.analysis.summary import analyse
from mixout.study.analysis.words import p_value


@given(st.floats(0, 1))
def test_p_is_rounded_to_its_side_of_the_level(p):
    text = p_value(p)
    shown = 0.0 if text == "< 0.001" else float(text)
    assert abs(shown - p) <= 0.005 + 1e-12
    if abs(p - 0.05) > 0.00006:
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
        "5 restarts can't show a difference by the test used here; 7 can.",
        "Next: run 2 more restarts, or take the cheapest method.",
    )
    found = analyse(scored(8, sd=0.02))
    low, high = found.leaders[0].detectable
    assert found.verdict[2] in (
        f"With 8 restarts a difference of about {high:.2g} points would have shown.",
        f"With 8 restarts a difference of {low:.2g} to {high:.2g} points would have shown, by method.",
    )


FAR = {  # scored restarts of each method, paired or not, and how many are too few, if any
    "unequal": (False, {"a": range(20), "b": range(3)}, None),
    "unequal, the other way": (False, {"a": range(3), "b": range(20)}, None),
    "few and many": (False, {"a": range(18), "b": range(1)}, 1),
    "few": (False, {"a": range(3), "b": range(3)}, 3),
    "pairs": (True, {"a": range(8), "b": range(4, 12)}, 4),
    "no pair": (True, {"a": range(6), "b": range(6, 12)}, 0),
    "pairs enough": (True, {"a": range(9), "b": range(3, 12)}, None),
    "one of three": (True, {"a": range(12), "b": range(4), "c": range(12)}, 4),
    "pairs of one of three": (True, {"a": range(8), "b": range(4, 12), "c": range(4, 12)}, 4),
    "two of three": (False, {"a": range(1), "b": range(2), "c": range(5)}, 1),
    "three of four": (False, {"a": range(1), "b": range(1), "c": range(1), "d": range(5)}, 1),
    "the next after Holm": (True, {"a": range(6), "b": range(12), "c": range(12)}, None),
}


@pytest.mark.parametrize("name", FAR)
def test_restarts_are_too_few_where_methods_far_apart_are_not_told_apart(name):
    """However far they are: no run of one scores as much as any of the next, so p is the smallest that it can be."""
    paired, restarts, lacking = FAR[name]
    runs = [
        Run(task="RTE", method=method, restart=k, score=score if k in scored else math.nan, paired=paired)
        for level, (method, scored) in enumerate(restarts.items())
        for k in range(12 if paired else len(scored))
        for score in [0.1 + 0.3 * level + 0.001 * (k * 7 % 5)]
    ]
    found = analyse(runs)
    [leader] = found.leaders
    others = {*restarts} - {leader.best.method}
    assert {*leader.few} == others - {one.method for one in leader.lower}
    said = [line.partition(" can't show")[0] for line in found.verdict if "can't show" in line]
    assert said == ([] if lacking is None else [count(lacking, "restart")])
    assert any("more restart" in line for line in found.verdict) == (lacking is not None)


def test_points_are_numbers_that_are_read():
    unstable = {"plain": [0.89, 0.0, 0.9, 0.02, 0.88, 0.01], "mixout(0.9)": [0.02, 0.89, 0.01, 0.9, 0.89, 0.9]}
    runs = [
        Run(task="STS-B", method=method, restart=k, score=score, points=100.0)
        for method, scores in unstable.items()
        for k, score in enumerate(scores)
    ]
    [said] = [line for line in analyse(runs).verdict if line.startswith("With 6")]
    assert float(said.split("about ")[1].split()[0]) == pytest.approx(100 * detectable(compare(runs)[0]), abs=0.5)
    assert "e+" not in " ".join(analyse([replace(run, points=1e4) for run in runs]).verdict)


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


def on(task: str, n: int, methods: int, lead: float) -> list[Run]:
    """A task on which the last of some methods leads by so much."""
    draw = np.random.default_rng(1)
    gains = [lead * (number == methods - 1) for number in range(methods)]
    return [
        Run(task=task, method=f"m{number}", restart=k, score=float(0.7 + gain + draw.normal(0, 1e-4)))
        for number, gain in enumerate(gains)
        for k in range(n)
    ]


def test_what_a_task_can_show_follows_from_its_own_restarts_and_methods():
    found = analyse(on("A", 6, 2, 0.05) + on("B", 9, 9, 0.05), baseline="m0")
    assert found.verdict[0] == "Methods differ on 2 of 2 tasks."
    assert not any("can't show" in line for line in found.verdict)
    assert found.verdict[-1] == "Next: use m1, m8."
    few = analyse(on("A", 10, 2, 0.05) + on("B", 3, 2, 0.05), baseline="m0").verdict
    assert "3 restarts on B can't show a difference by the test used here; 6 can." in few
    assert few[-1] == "Next: run 3 more restarts on B; use m1."


def test_nothing_that_is_shown_to_be_higher_is_not_told_apart():
    """Over the restarts that both have ``b`` is ahead; ``a`` has other restarts with higher scores."""
    draw = np.random.default_rng(0)
    scores = {"a": [0.6] * 8 + [0.9] * 8, "b": [0.65] * 8}
    runs = [
        Run(task="RTE", method=method, restart=k, score=float(score + draw.normal(0, 0.001)))
        for method, several in scores.items()
        for k, score in enumerate(several)
    ]
    assert analyse(runs).verdict[0].startswith("Best on RTE: b (score 0.650, mean of 8 runs)")
    assert [one.method for one in analyse(runs).leaders[0].lower] == ["a"]


def test_scores_that_differ_by_rounding_alone_are_equal():
    runs = [
        Run(task="RTE", method=method, restart=k, score=0.1 * 3 if method == "a" else 0.3)
        for method in ("a", "b")
        for k in range(8)
    ]
    assert [(one.p_permutation, one.shown) for one in analyse(runs).comparisons] == [(1.0, False)]


def test_one_is_singular():
    lines = [" ".join(analyse(scored(n, sd=sd)).verdict) for n in (5, 6, 8, 16) for sd in (0.001, 0.0095, 0.01, 0.02)]
    assert not re.search(r"(?<![.\d])1 (more restarts|points|methods|runs)\b", " ".join(lines))
    assert any("run 1 more restart," in line for line in lines)
