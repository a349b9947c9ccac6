"""Runs as values and as CSV, against the standard library's csv."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pandas
import pytest

from mixout.errors import InputError
from mixout.study.analysis.compare import compare
from mixout.study.analysis.runs import Run, is_collapsed
from mixout.study.analysis.table import read_scores, to_csv_rows


def run(**changes) -> Run:
    return Run(**({"task": "RTE", "method": "plain", "restart": 0, "score": 0.7} | changes))


@pytest.mark.parametrize(
    ("predictions", "loss", "accuracy", "classes", "expected"),
    [
        ([1.0] * 269 + [0.0] * 8, 0.69, 0.5379, 2, True),  # RTE: a point above chance, three in a hundred differ
        ([1.0] * 269 + [0.0] * 8, 0.40, 0.5379, 2, False),  # its probabilities know more than its answers
        ([1.0] * 150 + [0.0] * 127, 0.69, 0.53, 2, False),  # both answers: at chance perhaps, but not collapsed
        ([1.0] * 396 + [0.0] * 4, 0.03, 0.995, 2, False),  # one class is rare, and found
        ([2.0] * 100, 1.09, 0.4, 3, True),
        ([2.5] * 90 + [2.6] * 10, 2.2, None, None, True),  # STS-B: nearly one value
        ([0.5, 2.0, 4.0, 5.0] * 25, 0.6, None, None, False),
        ([1.0] * 100, math.nan, 0.5, 2, False),  # diverged: failed for that reason
    ],
)
def test_a_collapsed_run_answers_alike_with_the_loss_of_a_constant(predictions, loss, accuracy, classes, expected):
    assert is_collapsed(predictions, loss, accuracy=accuracy, classes=classes) is expected


@pytest.mark.parametrize(("correlation", "expected"), [(0.0, True), (0.2, True), (math.nan, True), (0.6, False)])
def test_narrow_answers_in_the_right_order_are_no_collapse(correlation, expected):
    """A regression half way back to its start: Spearman 0.6 with predictions between 2.4 and 2.6."""
    assert is_collapsed([2.4, 2.5, 2.6] * 30, 2.2, correlation=correlation) is expected


def test_a_collapsed_run_has_failed_also_above_chance():
    assert run(chance=0.5, score=0.54, collapsed=True).failed
    assert not run(chance=0.5, score=0.54).failed


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
        ({"score": math.inf}, "expected a score within 1e"),
        ({"score": -1e180}, "leave it empty if the run diverged"),
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
        run(restart=1, status="diverged", error="out of memory, twice", factors={"lr": "1e-4"}, paired=False),
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


def table(columns, restarts=8, rates=("1e-5",), methods=("plain", "mixout(0.7)")):
    """Every run has a score of its own; ``columns`` makes further cells of the run's number and its restart."""
    rows, number = [], 0
    for method in methods:
        for rate in rates:
            for restart in range(restarts):
                more = [value(number, restart) for value in columns.values()]
                rows.append([method, "RTE", restart, 0.5 + 0.01 * ((number * 7) % 13), rate, *more])
                number += 1
    lines = [["method", "task", "restart", "score", "lr", *columns], *rows]
    return "\n".join(",".join(map(str, line)) for line in lines) + "\n"


def test_the_index_of_a_data_frame_is_left_out_and_said(tmp_path):
    frame = pandas.read_csv(io.StringIO(table({})))
    frame.to_csv(tmp_path / "plain.csv", index=False)
    frame.to_csv(tmp_path / "index.csv")
    pandas.read_csv(tmp_path / "index.csv").to_csv(tmp_path / "twice.csv")
    expected = read_scores(tmp_path / "plain.csv")
    unit = "scores are read as fractions, 1 is 100 points, since none is above 1; --unit says otherwise"
    for name, column in (("index", "''"), ("twice", "'', 'Unnamed: 0'")):
        said = []
        assert read_scores(tmp_path / f"{name}.csv", report=said.append) == expected
        assert said[1:] == [unit]
        assert f"the column {column} has no name of its own and is left out" in said[0]
    said = []
    read_scores(tmp_path / "plain.csv", report=said.append)
    assert said == [unit]
    # Whatever else such a table lacks is named as before.
    (tmp_path / "more.csv").write_text(",task,method,score\n0,R,p,1\n")
    with pytest.raises(InputError, match="to have a column 'restart'"):
        read_scores(tmp_path / "more.csv")


MEASURED = {
    "loss": lambda number, restart: round(0.4 + 0.003 * ((number * 5) % 47), 3),
    "date": lambda number, restart: f"2025-01-{number:02d}",
    "wandb_id": lambda number, restart: f"run-{number}",
    "seed": lambda number, restart: 40 + restart,
}


@pytest.mark.parametrize("rates", [("1e-5",), ("1e-5", "2e-5", "5e-5")], ids=["one rate", "three rates"])
@pytest.mark.parametrize("name", MEASURED)
def test_a_column_with_one_run_a_cell_is_refused_by_name(write, name, rates):
    with pytest.raises(InputError, match=rf"got the column '{name}' with another value in most runs.*; remove it"):
        read_scores(write(table({name: MEASURED[name]}, rates=rates)))
    assert len(read_scores(write(table({}, rates=rates)))) == 16 * len(rates)


def test_two_such_columns_are_named_together(write):
    columns = {name: MEASURED[name] for name in ("loss", "date")}
    with pytest.raises(InputError, match=r"got the column 'loss', 'date' with"):
        read_scores(write(table(columns)))


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({}, {"restarts": 1, "rates": ("1e-5", "2e-5", "5e-5")}),  # without the factor no run could be told apart
        ({"batch": lambda number, restart: 16}, {}),
        ({"batch": lambda number, restart: 16}, {"restarts": 1}),
        ({"day": lambda number, restart: number // 4}, {}),  # several runs share each value
    ],
    ids=["grid of single runs", "constant", "constant, single runs", "shared"],
)
def test_real_factors_stay(write, columns, options):
    runs = read_scores(write(table(columns, **options)))
    assert {name for run in runs for name in run.factors} == {"lr", *columns}


def test_restarts_may_be_written_as_pandas_writes_them(write):
    text = "task,method,restart,score\nR,p,{},1\nR,p,1.0,1\n"
    assert [run.restart for run in read_scores(write(text.format("0.0")))] == [0, 1]
    for wrong in ("0.5", "nan", "inf", "x", ""):
        with pytest.raises(InputError, match=r"line 2: expected restart to be "):
            read_scores(write(text.format(wrong)))


def test_a_failed_run_has_no_score_whether_or_not_chance_is_known(write):
    text = "task,method,restart,score,status{}\nR,p,0,.9,finished{}\nR,p,1,.1,failed{}\nR,p,2,.1,diverged{}\n"
    scores = [run.counted for run in read_scores(write(text.format("", "", "", "")))]
    assert [scores[0], scores[2]] == [0.9, 0.1]
    assert math.isnan(scores[1])
    known = read_scores(write(text.format(",chance", ",.5", ",.5", ",.5")))
    assert [run.counted for run in known] == [0.9, 0.5, 0.1]


@pytest.mark.parametrize("name", ["seconds", "peak_memory", "distance", "original", "kl_to_base", "chance"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_what_is_measured_is_finite(write, name, value):
    with pytest.raises(
        InputError, match=rf"line 2: expected {name} to be a finite number, got '{value}'; leave the cell"
    ):
        read_scores(write(f"task,method,restart,score,{name}\nR,p,0,1,{value}\n"))


def test_the_direction_is_asked_for_where_a_name_leaves_it_open(write):
    path = write("task,method,restart,score,metric,chance\nwiki,plain,0,31.5,perplexity,900\n")
    with pytest.raises(InputError, match=r"whether higher or lower values of 'perplexity'.*--direction lower"):
        read_scores(path)
    [lower] = read_scores(path, direction="lower")
    assert (lower.score, lower.chance, lower.metric) == (-31.5, -900.0, "negative perplexity")
    [higher] = read_scores(path, direction="higher")
    assert (higher.score, higher.metric) == (31.5, "perplexity")


def rates(unit: float, column=lambda error: error, metric="wer", tasks=("speech",)) -> str:
    """A table of error rates between 10 and 30 %, or of what ``column`` makes of them."""
    rows = [
        f"{task},{method},{k},{column((20 + k + gain * (k % 3)) * unit)!r},{metric}"
        for task in tasks
        for method, gain in (("plain", 0.0), ("mixout(0.9)", -0.3))
        for k in range(8)
    ]
    return "\n".join(["task,method,restart,score,metric", *rows]) + "\n"


@pytest.mark.parametrize(("unit", "whole"), [(1, 100), (0.01, 1)])
def test_a_point_is_the_same_of_errors_as_of_what_is_right(write, tmp_path, unit, whole):
    known = ("difference", "points", "p_permutation", "p_equivalent", "low", "high")
    right = compare(read_scores(write(rates(unit, lambda error: whole - error, "accuracy"))))
    runs = read_scores(write(rates(unit)), direction="lower")
    (tmp_path / "again.csv").write_text(pandas.DataFrame(to_csv_rows(runs), dtype=object).to_csv(index=False))
    assert read_scores(tmp_path / "again.csv") == runs
    for one, other in zip(compare(runs), right, strict=True):
        assert [getattr(one, name) for name in known] == pytest.approx([getattr(other, name) for name in known])


def test_what_is_called_negative_is_not_turned_for_that(write):
    percent = "\n".join(
        f"RTE,{method},{k},{score + k / 10},NAME" for method, score in (("plain", 81), ("b", 84)) for k in range(6)
    )
    table = f"task,method,restart,score,metric\n{percent}\n"
    [one] = compare(read_scores(write(table.replace("NAME", "negative predictive value"))))
    assert one.difference * one.points == pytest.approx(3)
    name = "negative log-likelihood loss"
    with pytest.raises(InputError, match=f"whether higher or lower values of '{name}'"):
        read_scores(write(table.replace("NAME", name)))
    [one] = compare(read_scores(write(table.replace("NAME", name)), direction="lower"))
    assert one.difference * one.points == pytest.approx(-3)


def test_turned_scores_of_both_signs_are_read_back(write, tmp_path):
    runs = read_scores(
        write("task,method,restart,score,metric\nt,a,0,-0.5,nll\nt,a,1,0.2,nll\nt,b,0,0.4,nll\n"), direction="lower"
    )
    assert {run.points for run in runs} == {100.0}
    (tmp_path / "again.csv").write_text(pandas.DataFrame(to_csv_rows(runs), dtype=object).to_csv(index=False))
    assert read_scores(tmp_path / "again.csv") == runs


def test_what_was_turned_already_is_not_turned_again(write):
    rows = [("a", "loss", 0.5), ("a", "loss", 0.3), ("b", "negative loss", -0.5), ("b", "negative loss", -0.3)]
    lines = [f"{task},{'ours' if abs(score) < 0.4 else 'plain'},0,{score},{name}" for task, name, score in rows]
    runs = read_scores(write("\n".join(["task,method,restart,score,metric", *lines])), direction="lower")
    assert {(run.method, run.score, run.metric) for run in runs} == {
        ("ours", -0.3, "negative loss"),
        ("plain", -0.5, "negative loss"),
    }


def test_the_unit_is_asked_for_where_tasks_differ_in_their_errors(write):
    text = rates(1) + rates(0.01, tasks=("text",)).partition("\n")[2]
    with pytest.raises(InputError, match=r"none above 1 on 'text' and 27 on 'speech'; add --unit percent"):
        read_scores(write(text), direction="lower")
    assert {run.points for run in read_scores(write(text), direction="lower", unit="percent")} == {1.0}


def test_how_scores_are_read_is_said_and_chance_is_in_their_unit(write):
    text = "task,method,restart,score,chance\nRTE,a,0,62.7,52.7\nRTE,b,0,60.0,52.7\n"
    said = []
    read_scores(write(text), report=said.append)
    assert said == ["scores are read as percent, 1 is 1 point; --unit says otherwise"]
    odd = write(text.replace("52.7", "0.527"))
    with pytest.raises(InputError, match=r"got 0.527 on 'RTE', where a score is 62.7; if it is 0.527 %, add"):
        read_scores(odd)
    assert read_scores(odd, unit="percent", report=pytest.fail)[0].chance == 0.527


def test_the_unit_is_asked_for_where_tasks_differ(write):
    path = write("task,method,restart,score\nCoLA,plain,0,0.9\nCoLA,plain,1,0\nRTE,plain,0,71\n")
    with pytest.raises(InputError, match=r"none above 1 on 'CoLA' and 71 on 'RTE'; add --unit percent"):
        read_scores(path)
    assert {run.points for run in read_scores(path, unit="percent")} == {1.0}
    assert {run.points for run in read_scores(path, unit="fraction")} == {100.0}


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match="to be a CSV file in UTF-8"):
        read_scores(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"task,method\xff\n")
    with pytest.raises(InputError, match="to be a CSV file in UTF-8"):
        read_scores(tmp_path / "binary.csv")
