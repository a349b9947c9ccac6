"""Runs as values and as CSV, against the standard library's csv."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from mixout.errors import InputError
from mixout.study.analysis.runs import Run, read_scores, to_csv_rows


def run(**changes) -> Run:
    return Run(**({"task": "RTE", "method": "plain", "restart": 0, "score": 0.7} | changes))


@pytest.fixture
def write(tmp_path: Path):
    def writing(text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "scores.csv"
        path.write_text(text, encoding=encoding)
        return path

    return writing


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, False),
        ({"chance": 0.6}, False),
        ({"chance": 0.7}, True),  # at chance
        ({"chance": 0.1 + 0.2, "score": 0.3}, True),  # the same but for rounding
        ({"chance": 0.71}, True),
        ({"score": math.nan}, True),
        ({"status": "diverged", "chance": 0.5}, True),
        ({"status": "failed", "score": math.nan}, True),
    ],
)
def test_what_counts_as_failed(changes, failed):
    assert run(**changes).failed is failed


def test_a_run_without_score_counts_as_chance_where_that_is_known():
    assert run(score=math.nan, chance=0.5).counted == 0.5
    assert math.isnan(run(score=math.nan).counted)
    assert run(score=0.2, chance=0.5).counted == 0.2  # a score of its own is never replaced


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": ""}, "expected a task and a method"),
        ({"restart": -1}, "expected restart >= 0, got -1"),
        ({"score": math.inf}, "expected a finite score, or nan"),
        ({"chance": math.nan}, "expected chance to be a finite number or None"),
        ({"status": "finishd"}, "got 'finishd'; did you mean 'finished'?"),
        ({"factors": {"seconds": "3"}}, "expected factors with names of their own, got 'seconds'"),
    ],
)
def test_a_run_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        run(**changes)


def test_four_columns_suffice(write):
    one, two = read_scores(write("task,method,restart,score\nRTE,plain,0,0.5\nRTE,mixout(0.9),0,0.75\n"))
    assert one == Run(task="RTE", method="plain", restart=0, score=0.5)
    assert two == Run(task="RTE", method="mixout(0.9)", restart=0, score=0.75)


def test_other_columns_are_factors_and_an_empty_score_is_a_failure(write):
    text = (
        "score,lr,task,method,restart,metric,chance,status,seconds,paired,epochs\n,2e-5,R,plain,3,f1,.5,failed,9,no,\n"
    )
    (found,) = read_scores(write(text, encoding="utf-8-sig"))
    assert math.isnan(found.score)
    assert found.factors == {"lr": "2e-5"}  # a factor that this run does not have is not there
    assert (found.metric, found.chance, found.status, found.seconds, found.paired) == ("f1", 0.5, "failed", 9.0, False)


def test_rows_read_back_as_the_runs_they_came_from(tmp_path):
    runs = [
        run(chance=0.5, factors={"epochs": "3"}, seconds=1.5, peak_memory=10**9, distance=2.25, id="ab"),
        run(restart=1, status="failed", error="out of memory, twice", factors={"lr": "1e-4"}, paired=False),
    ]
    rows = to_csv_rows(runs)
    assert [list(row) for row in rows] == [list(rows[0])] * 2
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert read_scores(path) == runs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task,method,restarts,score\nR,p,0,1\n", "to have a column 'restart', got .*; did you mean 'restarts'?"),
        ("task,method,restart,score\n", "expected at least one run in .*scores.csv, got a header only"),
        ("", "to have a column 'task'"),
        ("task,method,restart,score,lr,lr\nR,p,0,1,2,3\n", "expected each column of .* once"),
        ("task,method,restart,score\nR,p,0,high\n", "line 2: expected score to be a number, got 'high'"),
        ("task,method,restart,score\nR,p,0,1\nR,p,1.5,1\n", "line 3: expected restart to be a whole number, got '1.5'"),
        ("task,method,restart,score,paired\nR,p,0,1,maybe\n", "line 2: expected paired to be yes or no, got 'maybe'"),
        ("task,method,restart,score\nR,p,0\n", "expected as many values as columns in .*, line 2"),
        ("task,method,restart,score\nR,p,0,1,2\n", "expected as many values as columns in .*, line 2"),
        ("task,method,restart,score\n,p,0,1\n", "line 2: expected a task and a method"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(write, text, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        read_scores(write(text))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match="to be a CSV file in UTF-8"):
        read_scores(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"task,method\xff\n")
    with pytest.raises(InputError, match="to be a CSV file in UTF-8"):
        read_scores(tmp_path / "binary.csv")
