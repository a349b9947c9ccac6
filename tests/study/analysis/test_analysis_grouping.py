"""Cells: what belongs together, and what must not."""

from __future__ import annotations

import math
import random

import pytest

from mixout.errors import InputError
from mixout.study.analysis.runs import CellKey, Run, by_cell


def run(restart: int, method: str = "plain", score: float = 0.7, **more) -> Run:
    return Run(**({"task": "RTE", "method": method, "restart": restart, "score": score} | more))


def test_factors_part_cells_whatever_their_order():
    runs = [run(0, factors={"a": "1", "b": "2"}), run(1, factors={"b": "2", "a": "1"}), run(0, factors={"a": "2"})]
    cells = by_cell(runs)
    assert list(cells) == [
        CellKey("RTE", "plain", (("a", "1"), ("b", "2"))),
        CellKey("RTE", "plain", (("a", "2"),)),
    ]
    assert [len(cell) for cell in cells.values()] == [2, 1]


def test_the_order_of_the_runs_within_a_cell_does_not_matter():
    runs = [run(k) for k in range(9)]
    shuffled = random.Random(0).sample(runs, len(runs))
    assert by_cell(shuffled) == by_cell(runs)


def test_a_crashed_run_gets_metric_and_chance_of_its_cell():
    crashed = run(1, score=math.nan, status="failed")
    cell = by_cell([run(0, metric="accuracy", chance=0.5), crashed])[CellKey("RTE", "plain")]
    assert [(one.metric, one.chance) for one in cell] == [("accuracy", 0.5)] * 2
    assert cell[1].counted == 0.5


def test_a_cell_of_crashed_runs_gets_them_from_its_task():
    runs = [run(0, metric="accuracy", chance=0.5), run(0, "mixout(0.9)", math.nan, status="failed")]
    (crashed,) = by_cell(runs)[CellKey("RTE", "mixout(0.9)")]
    assert (crashed.metric, crashed.chance) == ("accuracy", 0.5)


def test_but_not_from_another_task():
    runs = [run(0, chance=0.5), run(0, score=math.nan, task="CoLA")]
    (crashed,) = by_cell(runs)[CellKey("CoLA", "plain")]
    assert crashed.chance is None


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "expected at least one run"),
        ([run(0), run(0)], "got restart 0 of plain on RTE twice"),
        ([run(0, factors={"lr": "1"}), run(0, factors={"lr": "1"})], r"of plain on RTE \(lr 1\) twice"),
        ([run(0, metric="f1"), run(1, metric="accuracy")], "expected one metric for plain on RTE, got f1 and accuracy"),
        ([run(0, chance=0.5), run(1, chance=0.6)], "expected one chance for plain on RTE, got 0.5 and 0.6"),
        ([run(0), run(1, paired=False)], "all paired or all not"),
    ],
)
def test_what_cannot_be_one_cell_is_refused(runs, message):
    with pytest.raises(InputError, match=message):
        by_cell(runs)
