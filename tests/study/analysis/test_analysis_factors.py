"""Sweeps over numeric factors, against means worked out with NumPy and rules of what may stand on one line."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mixout.study.analysis.across import Sweep, sweeps
from mixout.study.analysis.cells import summarise
from mixout.study.analysis.runs import Run


def run(restart: int = 0, method: str = "plain", *, task: str = "RTE", score: float = 0.7, **factors: str) -> Run:
    return Run(task=task, method=method, restart=restart, score=score, factors=factors)


def swept(*runs: Run) -> list[Sweep]:
    return sweeps(summarise(runs))


def test_three_methods_at_six_sizes():
    draw = np.random.default_rng(0)
    sizes, methods = ("1000", "200", "50", "2000", "100", "500"), ("plain", "mixout(0.5)", "mixout(0.9)")
    scores = draw.uniform(0.5, 0.9, (3, 6, 5))
    found = swept(
        *(
            run(k, methods[m], score=float(scores[m, n, k]), train_size=sizes[n])
            for k, n, m in itertools.product(range(5), range(6), range(3))
        )
    )
    assert [(one.task, one.method, one.factor, one.factors) for one in found] == [
        ("RTE", method, "train_size", {}) for method in methods
    ]
    # As numbers 200 comes before 1000, as text after it.
    rising = np.argsort([int(size) for size in sizes])
    for one, of_method in zip(found, scores, strict=True):
        assert one.values == (50, 100, 200, 500, 1000, 2000)
        assert [cell.mean for cell in one.cells] == pytest.approx(of_method.mean(-1)[rising])
        assert [cell.factors for cell in one.cells] == [{"train_size": sizes[n]} for n in rising]


def test_the_other_factors_part_lines():
    found = swept(
        *(
            run(method=method, learning_rate=rate, optimizer=optimizer)
            for method in ("plain", "mixout(0.9)")
            for optimizer in ("adamw", "bertadam")
            for rate in ("3e-05", "0.0001", "1e-05", "0.0003")
        )
    )
    assert [(one.method, one.factors, one.values) for one in found] == [
        (method, {"optimizer": optimizer}, (1e-5, 3e-5, 1e-4, 3e-4))
        for method in ("plain", "mixout(0.9)")
        for optimizer in ("adamw", "bertadam")
    ]


def test_each_numeric_factor_is_swept_with_the_other_held():
    found = swept(*(run(epochs=epochs, rate=rate) for epochs in ("3", "20") for rate in ("1e-5", "1e-4")))
    assert [(one.factor, one.factors, one.values) for one in found] == [
        ("epochs", {"rate": "1e-5"}, (3, 20)),
        ("epochs", {"rate": "1e-4"}, (3, 20)),
        ("rate", {"epochs": "3"}, (1e-5, 1e-4)),
        ("rate", {"epochs": "20"}, (1e-5, 1e-4)),
    ]


def test_what_changes_together_is_on_no_line():
    assert swept(run(epochs="3", rate="1e-5"), run(epochs="20", rate="1e-4")) == []


def test_tasks_and_methods_are_not_joined():
    assert swept(run(size="100"), run(task="CoLA", size="200"), run(method="mixout(0.9)", size="200")) == []


@pytest.mark.parametrize(
    "values", [("adamw", "bertadam"), ("100", "all"), ("100", "nan"), ("100", "inf"), ("True", "False"), ("100",)]
)
def test_what_is_no_number_has_no_order(values):
    assert swept(*(run(factor=value) for value in values)) == []


def test_seeds_count_nothing():
    assert swept(*(run(init_seed=seed) for seed in "012")) == []


def test_a_method_with_one_value_has_no_line():
    found = swept(run(size="100"), run(size="200"), run(method="mixout(0.9)", size="200"), run(method="zero-shot"))
    assert [(one.method, one.values) for one in found] == [("plain", (100, 200))]


def test_without_factors_there_is_nothing():
    assert swept(run(), run(1)) == []
