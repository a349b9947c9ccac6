"""A study as one value: complete, repeatable, and readable by anything that reads JSON."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from mixout.errors import InputError
from mixout.study.analysis.across import aggregate
from mixout.study.analysis.cells import summarise
from mixout.study.analysis.compare import compare
from mixout.study.analysis.runs import Run
from mixout.study.analysis.summary import Summary, analyse


def study() -> list[Run]:
    draw = np.random.default_rng(0)
    return [
        Run(
            task=task,
            method=method,
            restart=k,
            score=float(draw.uniform(0.5, 0.7) + gain),
            chance=0.55,
            evaluations=((10, 0.5), (20, 0.6)),
            predictions=tuple(draw.integers(0, 2, 6).astype(float)),
        )
        for task in ("RTE", "MRPC")
        for method, gain in (("mixout(0.5)", 0.1), ("plain", 0.0), ("mixout(0.9)", 0.12))
        for k in range(8)
    ]


def test_everything_is_in_it():
    found = analyse(study())
    assert found.baseline == "plain"
    assert list(found.cells) == summarise(study())
    assert list(found.comparisons) == compare(study(), "plain")
    assert list(found.aggregates) == aggregate(found.comparisons, found.cells)
    counts = {
        field.name: len(getattr(found, field.name)) for field in fields(Summary) if field.type.startswith("tuple")
    }
    assert counts == {
        "verdict": 5,  # the answer, a line a task, what would have shown, what to do next
        "leaders": 2,
        "cells": 6,
        "comparisons": 4,
        "aggregates": 2,
        "powers": 4,
        "instabilities": 6,
        "doses": 2,
        "sweeps": 0,
        "notes": 0,
    }


def test_methods_are_compared_at_the_same_factors_alone():
    # Over both rates together the methods score the same, and the baseline is best at another rate.
    mean = {
        ("plain", "1e-5"): 0.8,
        ("plain", "1e-4"): 0.6,
        ("mixout(0.9)", "1e-5"): 0.75,
        ("mixout(0.9)", "1e-4"): 0.65,
    }
    noise = np.random.default_rng(0).normal(0, 0.01, 8)
    runs = [
        Run(task="RTE", method=method, restart=k, score=score + float(noise[k]), factors={"rate": rate})
        for (method, rate), score in mean.items()
        for k in range(8)
    ]
    alone = [Run(task="RTE", method="mixout(0.5)", restart=0, score=0.9, factors={"rate": "1e-3"})]
    found = analyse([*runs, *alone])
    assert [(c.method, c.factors, round(c.difference, 9)) for c in found.comparisons] == [
        ("mixout(0.9)", {"rate": "1e-5"}, -0.05),
        ("mixout(0.9)", {"rate": "1e-4"}, 0.05),
    ]
    assert found.verdict == (
        f"Best on RTE (rate 1e-5): plain (score {0.8 + noise.mean():.3f}, mean of 8 runs).",
        "The next, mixout(0.9), is 5.0 points lower.",
        "Next: use plain.",
    )
    assert found.notes[-2] == "mixout(0.5) on RTE (rate 1e-3) was not compared: it or plain has no scores there."


def test_json_holds_the_same_numbers():
    found = analyse(study())
    read = json.loads(found.to_json())
    assert read["format"] == 7
    assert [cell["mean"] for cell in read["cells"]] == [cell.mean for cell in found.cells]
    assert [c["p_holm"] for c in read["comparisons"]] == [c.p_holm for c in found.comparisons]


def test_the_same_in_another_process_and_whatever_the_order_within_cells(tmp_path):
    program = (
        "import sys; from mixout.study.analysis.table import read_scores\n"
        "from mixout.study.analysis.summary import analyse\n"
        "sys.stdout.write(analyse(read_scores(sys.argv[1])).to_json())"
    )
    rows = [(r.task, r.method, r.restart, repr(r.score), r.chance) for r in study()]
    cells = {}
    for row in rows:
        cells.setdefault(row[:2], []).append(row)
    shuffled = [row for cell in cells.values() for row in random.Random(0).sample(cell, len(cell))]
    printed = []
    for name, order in (("one", rows), ("other", shuffled)):
        path = tmp_path / f"{name}.csv"
        path.write_text(
            "\n".join(",".join(map(str, row)) for row in [("task", "method", "restart", "score", "chance"), *order])
        )
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=True)
        printed.append(done.stdout)
    assert printed[0] == printed[1]


def test_what_could_not_be_said_is_noted():
    runs = [
        *(Run(task="RTE", method="plain", restart=k, score=0.6, chance=0.5) for k in range(3)),
        Run(task="RTE", method="mixout(0.9)", restart=0, score=math.nan, status="failed"),
        Run(task="CoLA", method="mixout(0.9)", restart=0, score=math.nan, status="failed"),
        Run(task="CoLA", method="mixout(0.9)", restart=1, score=0.3),
    ]
    assert analyse(runs).notes == (
        "CoLA: chance is not known, so only runs that did not finish count as failed.",
        "mixout(0.9) on RTE: 1 of 1 runs without a score counted as chance.",
        "mixout(0.9) on RTE: 1 score, too few for an interval.",
        "mixout(0.9) on CoLA was not compared: it or plain has no scores there.",
        "mixout(0.9) on CoLA: 1 of 2 runs without a score left out.",
        "mixout(0.9) on CoLA: 1 score, too few for an interval.",
        "mixout(0.9) on RTE against plain: 2 runs without a counterpart or a score left out.",
    )


def test_one_run_and_nothing_but_crashes_need_no_warning():
    alone = analyse([Run(task="RTE", method="plain", restart=0, score=0.6)])
    assert alone.verdict == ("Nothing was compared: a comparison needs two methods with scores on the same task.",)
    crashed = analyse([Run(task="RTE", method="plain", restart=k, score=math.nan, status="failed") for k in range(4)])
    assert json.loads(crashed.to_json())["cells"][0]["mean"] is None


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="expected at least one run"):
        analyse([])
    with pytest.raises(InputError, match="expected a baseline among"):
        analyse(study(), baseline="mixout")


def test_without_scipy_the_extra_is_named():
    program = "import sys, mixout; sys.modules['scipy'] = None; import mixout.study.analysis.summary"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'run: pip install "mixout[hf]"' in done.stderr


def test_where_every_run_failed_more_restarts_are_not_advised():
    runs = [Run(task="T", method=method, restart=k, score=0.5, chance=0.5) for method in ("a", "b") for k in range(3)]
    first, then = analyse(runs).verdict
    assert first == "Every run failed: none has learned more than a constant answer."
    assert "more steps, or another learning rate" in then
    assert "Every run failed" not in analyse([*runs[:-1], replace(runs[-1], score=0.8)]).verdict[0]
