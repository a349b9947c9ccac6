"""Across tasks: means by hand, scales, strata."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mixout.study.analysis import across
from mixout.study.analysis.cells import summarise
from mixout.study.analysis.compare import compare
from mixout.study.analysis.runs import Run

DRAW = np.random.default_rng(0)
SCORES = {  # task -> method -> scores
    "RTE": {"plain": DRAW.uniform(0.5, 0.7, 8), "mixout(0.9)": DRAW.uniform(0.55, 0.75, 8)},
    "CoLA": {"plain": DRAW.uniform(0.0, 0.6, 8), "mixout(0.9)": DRAW.uniform(0.3, 0.6, 8)},
    "MRPC": {"plain": DRAW.uniform(0.8, 0.9, 8), "mixout(0.9)": DRAW.uniform(0.82, 0.9, 8)},
}
CHANCE = {"RTE": 0.5, "CoLA": 0.0, "MRPC": 0.8}


def runs(scores=SCORES, chance=CHANCE, **more) -> list[Run]:
    return [
        Run(task=task, method=method, restart=k, score=float(score), chance=chance.get(task), **more)
        for task, methods in scores.items()
        for method, several in methods.items()
        for k, score in enumerate(several)
    ]


def aggregate(of: list[Run], **options) -> list[across.Aggregate]:
    return across.aggregate(compare(of, **options), summarise(of))


def normalised(method: str) -> np.ndarray:
    parts = []
    for task, methods in SCORES.items():
        best = max(np.max(several) for several in methods.values())
        parts.append(100 * (methods[method] - CHANCE[task]) / (best - CHANCE[task]))
    return np.concatenate(parts)


@pytest.mark.parametrize("paired", [True, False])
def test_mean_of_normalised_scores(paired):
    (found,) = aggregate(runs(paired=paired))
    ours, theirs = normalised("mixout(0.9)"), normalised("plain")
    assert (found.tasks, found.n, found.normalised) == (("RTE", "CoLA", "MRPC"), 24, True)
    assert (found.mean, found.baseline_mean) == pytest.approx((ours.mean(), theirs.mean()))
    assert found.difference == pytest.approx(ours.mean() - theirs.mean())
    assert (found.p is not None) is paired


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_does_not_depend_on_the_unit(paired):
    (found,), scale = aggregate(runs(chance={}, paired=paired)), 2.0**320
    large = {task: {method: scale * several for method, several in own.items()} for task, own in SCORES.items()}
    (other,) = aggregate(runs(large, {}, paired=paired, points=100.0))
    assert (other.low, other.high) == pytest.approx((scale * found.low, scale * found.high), rel=1e-12)


def test_of_equal_spreads_the_interval_is_that_of_one_pooled_sample():
    # Three tasks with the same differences: the variance within tasks has 3 x 7 degrees of freedom.
    own = DRAW.normal(0, 0.02, 8)
    base = np.linspace(0.6, 0.7, 8)
    (found,) = aggregate(runs({task: {"plain": base, "mixout(0.9)": base + own} for task in "ABC"}, {}))
    half = stats.t.isf(0.025, 21) * 100 * own.std(ddof=1) / np.sqrt(24)
    assert (found.low, found.high) == pytest.approx((100 * own.mean() - half, 100 * own.mean() + half))


def test_the_interval_covers_the_mean_over_tasks():
    # Spreads of 1, 3 and 10 points, three restarts each; the bootstrap covered 77 to 93 % here.
    draw, hits = np.random.default_rng(0), []
    for _ in range(300):
        scores = {
            task: {"plain": base, "mixout(0.9)": base + draw.normal(0.02, sd, 3)}
            for task, sd in (("A", 0.01), ("B", 0.03), ("C", 0.1))
            for base in [draw.normal(0.6, 0.01, 3)]
        }
        (found,) = aggregate(runs(scores, {}))
        hits.append(found.low <= 2.0 <= found.high)
    assert 0.91 <= np.mean(hits) <= 0.99


def test_ahead_in_every_pair_of_every_task_is_shown():
    # Four restarts of three tasks: within a task the smallest p is 0.125, over all pairs 2 / 2^12.
    scores = {
        task: {"plain": base, "mixout(0.9)": base + DRAW.uniform(0.01, 0.02, 4)}
        for task in "ABC"
        for base in [DRAW.uniform(0.5, 0.6, 4)]
    }
    (found,) = aggregate(runs(scores, {}))
    assert found.p == pytest.approx(2 / 2**12)
    (looked,) = aggregate(runs(scores, {}), looks=5)
    assert looked.p == pytest.approx(5 * found.p)
    assert looked.low < found.low


def test_failures_leave_no_interval():
    failing = SCORES | {"RTE": SCORES["RTE"] | {"plain": np.append(SCORES["RTE"]["plain"][1:], 0.5)}}
    (found,) = aggregate(runs(failing))
    assert found.low is None
    assert found.p is not None


def test_an_unknown_chance_leaves_all_tasks_in_points():
    (found,) = aggregate(runs(chance={"RTE": 0.5}))
    assert not found.normalised
    assert found.mean == pytest.approx(100 * np.mean([m["mixout(0.9)"] for m in SCORES.values()]))


def test_one_task_is_no_aggregate():
    assert aggregate(runs({"RTE": SCORES["RTE"]})) == []
    partly = SCORES | {"CoLA": {"mixout(0.9)": SCORES["CoLA"]["mixout(0.9)"]}}
    (found,) = aggregate(runs(partly))
    assert found.tasks == ("RTE", "MRPC")  # where the baseline has runs too


def test_a_task_where_nothing_beats_chance_has_no_scale():
    (found,) = aggregate(
        runs(SCORES | {"SST-2": {"plain": np.full(4, 0.5), "mixout(0.9)": np.full(4, 0.5)}}, CHANCE | {"SST-2": 0.5})
    )
    assert found.tasks == ("RTE", "CoLA", "MRPC")


def test_two_restarts_have_a_value_and_no_interval():
    few = {task: {method: several[:2] for method, several in m.items()} for task, m in SCORES.items()}
    (found,) = aggregate(runs(few))
    assert (found.low, found.high) == (None, None)
    assert found.n == 6


@pytest.mark.parametrize("chance", [CHANCE, {}])
@pytest.mark.parametrize("sizes", [(3, 12, 12, 3), (12, 3, 3, 12), (5, 5, 5, 5)])
def test_tasks_weigh_as_much_for_both_methods(chance, sizes):
    """Unpaired and unequal in number, without any difference on each task: there is none over both (Simpson)."""
    draw = np.random.default_rng(3)
    noise = [draw.normal(0, 0.01, size) for size in sizes]
    centres = (0.6, 0.6, 0.9, 0.9)
    scores = [c + one - one.mean() for c, one in zip(centres, noise, strict=True)]
    both = {
        "RTE": {"plain": scores[0], "mixout(0.9)": scores[1]},
        "MRPC": {"plain": scores[2], "mixout(0.9)": scores[3]},
    }
    (found,) = aggregate(runs(both, chance, paired=False))
    assert found.difference == pytest.approx(0, abs=1e-9)
    assert found.low < 0 < found.high
    assert found.mean == pytest.approx(found.baseline_mean)
