"""Each method at its own best learning rate: chosen on some restarts, run and judged on the others."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mixout.errors import InputError
from mixout.study.analysis.runs import Run
from mixout.study.declaration import parse
from mixout.study.entry import Entry
from mixout.study.grid import best_rates, judged, wanted
from mixout.study.identity import Planned
from mixout.study.ledger import Contents

RATES = [0.01, 0.02, 0.04]
# The rate at which each method scores best.
BEST = {"dropout(0.0)": "0.02", "mixout(0.5)": "0.04"}


@pytest.fixture
def study(declare):
    return declare(restarts=4, factors={"learning_rate": RATES}, rate="best", search=2)


def score(run: Planned) -> float:
    # In the restarts that are judged the other rates look better: they must not be asked.
    best = run.factors["learning_rate"] == BEST[run.method]
    return 0.6 + 0.01 * run.restart + 0.1 * (best == (run.restart < 2))


def ran(runs, **changes) -> Contents:
    def entry(run: Planned) -> Entry:
        seen = Run(task=run.task, method=run.method, restart=run.restart, score=score(run), factors=run.factors)
        return Entry(
            folder=Path(), run=replace(seen, metric=run.metric, id=run.id, **changes), record=None, settings={}
        )

    return Contents(entries={run.id: entry(run) for run in runs})


def test_only_the_search_is_asked_for_first_and_then_the_best_rates(study):
    planned = study.runs()
    assert len(planned) == 2 * 3 * 4
    search = wanted(study, planned, Contents())
    assert len(search) == 2 * 3 * 2
    assert {run.restart for run in search} == {0, 1}
    # One method's search has ended.
    first = [run for run in search if run.method == "dropout(0.0)"]
    more = wanted(study, planned, ran(first))
    assert [(run.method, run.restart, run.factors["learning_rate"]) for run in more if run not in search] == [
        ("dropout(0.0)", 2, "0.02"), ("dropout(0.0)", 3, "0.02"),
    ]  # fmt: skip
    assert {group[1]: rate for group, rate in best_rates(study, planned, ran(search)).items()} == BEST
    assert len(wanted(study, planned, ran(search))) == len(search) + 4


def test_methods_are_judged_on_the_other_restarts_at_their_own_rates(study):
    planned = study.runs()
    runs, notes = judged(study, planned, ran(planned))
    assert sorted((run.method, run.restart) for run in runs) == [
        ("dropout(0.0)", 2), ("dropout(0.0)", 3), ("mixout(0.5)", 2), ("mixout(0.5)", 3),
    ]  # fmt: skip
    assert not any(run.factors for run in runs)
    assert all(run.score == pytest.approx(0.6 + 0.01 * run.restart) for run in runs)
    assert notes == [
        "dropout(0.0) on words: learning rate 0.02, the best of 3 over restarts 0 to 1; it is judged on the others.",
        "mixout(0.5) on words: learning rate 0.04, the best of 3 over restarts 0 to 1, at the end of the list: a "
        "better one may lie beyond; it is judged on the others.",
    ]


def test_a_run_that_failed_does_not_hold_up_the_search(study):
    planned = study.runs()
    contents = ran(wanted(study, planned, Contents()))
    lost = next(run for run in planned if run.method == "mixout(0.5)" and run.factors["learning_rate"] == "0.04")
    entry = contents.entries[lost.id]
    contents.entries[lost.id] = replace(entry, run=replace(entry.run, score=math.nan, status="failed"))
    assert {group[1] for group in best_rates(study, planned, contents)} == set(BEST)
    assert best_rates(study, planned, contents)["words", "mixout(0.5)", ()] != "0.04"


TEXT = """
[study]
name = "s"
restarts = 4
rate = "best"
search = 2
[[task]]
name = "docstrings"
[[method]]
name = "mixout(0.5)"
[factors]
learning_rate = [1e-5, 1e-4]
"""


def test_a_file_declares_it():
    study = parse(TEXT)
    assert (study.rate, study.search) == ("best", 2)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"best"', '"good"', "rate as 'best' or left out, got 'good'"),
        ("[1e-5, 1e-4]", "[1e-5]", "two rates or more"),
        ("search = 2", "search = 4", "from 1 to 3, below the 4 restarts, got 4"),
        ("search = 2", "search = true", "got True"),
    ],
)
def test_what_cannot_be_is_refused(old, new, said):
    with pytest.raises(InputError, match=said):
        parse(TEXT.replace(old, new))


def test_the_ends_of_the_list_are_its_lowest_and_highest_rate(declare):
    """In whatever order they are listed."""
    study = declare(restarts=4, factors={"learning_rate": [0.04, 0.01, 0.02]}, rate="best", search=2)
    notes = judged(study, study.runs(), ran(study.runs()))[1]
    assert ["at the end of the list" in note for note in notes] == ["mixout(0.5)" in note for note in notes]
