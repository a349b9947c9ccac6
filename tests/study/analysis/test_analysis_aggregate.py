"""Across tasks: IQM against scipy, scales, strata."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mixout.study.analysis.aggregate import aggregate
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


def normalised(method: str) -> np.ndarray:
    parts = []
    for task, methods in SCORES.items():
        best = max(np.max(several) for several in methods.values())
        parts.append(100 * (methods[method] - CHANCE[task]) / (best - CHANCE[task]))
    return np.concatenate(parts)


@pytest.mark.parametrize("paired", [True, False])
def test_iqm_and_mean_of_normalised_scores(paired):
    (found,) = aggregate(runs(paired=paired))
    ours, theirs = normalised("mixout(0.9)"), normalised("plain")
    assert (found.tasks, found.n, found.normalised) == (("RTE", "CoLA", "MRPC"), 24, True)
    assert found.iqm.value == pytest.approx(stats.trim_mean(ours, 0.25))
    assert found.baseline_iqm.value == pytest.approx(stats.trim_mean(theirs, 0.25))
    assert found.iqm_difference.value == pytest.approx(found.iqm.value - found.baseline_iqm.value)
    assert found.mean.value == pytest.approx(ours.mean())
    assert found.mean_difference.value == pytest.approx(ours.mean() - theirs.mean())
    for estimate in (found.iqm, found.mean, found.baseline_iqm, found.mean_difference, found.iqm_difference):
        assert estimate.low < estimate.value < estimate.high


def test_the_interval_of_a_mean_difference_has_the_stratified_width():
    (found,) = aggregate(runs())
    gaps = (normalised("mixout(0.9)") - normalised("plain")).reshape(3, 8)
    # Restarts are drawn within their task: only the variance within tasks counts.
    error = np.sqrt(gaps.var(axis=1).mean() / 24)
    assert found.mean_difference.high - found.mean_difference.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_pairs_are_resampled_together():
    shifted = {task: {"plain": m["plain"], "mixout(0.9)": m["plain"] + 0.02} for task, m in SCORES.items()}
    (together,) = aggregate(runs(shifted, {}))
    assert (together.mean_difference.low, together.mean_difference.high) == pytest.approx((2.0, 2.0))
    (apart,) = aggregate(runs(shifted, {}, paired=False))
    assert apart.mean_difference.high - apart.mean_difference.low > 1.0


def test_an_unknown_chance_leaves_all_tasks_in_points():
    (found,) = aggregate(runs(chance={"RTE": 0.5}))
    assert not found.normalised
    assert found.mean.value == pytest.approx(100 * np.mean([m["mixout(0.9)"] for m in SCORES.values()]))


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
    assert (found.iqm.low, found.iqm.high) == (None, None)
    assert found.n == 6


def test_the_seed_decides():
    assert aggregate(runs(), seed=1) == aggregate(runs(), seed=1) != aggregate(runs(), seed=2)
