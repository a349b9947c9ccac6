"""How long runs are expected to take, against arithmetic by hand; and which lines of a run a study passes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mixout.finetune.environment import NOTE
from mixout.finetune.settings import Settings
from mixout.study.analysis.runs import Run
from mixout.study.entry import Entry
from mixout.study.executors import LocalExecutor, PoolExecutor
from mixout.study.grid import Clock
from mixout.study.identity import Planned
from mixout.study.ledger import Contents
from mixout.study.runner import Course


def planned(*, task: str = "a", method: str = "plain", epochs: float = 1.0, size: int | None = None) -> Planned:
    factors = {"epochs": str(epochs), "train_size": str(size)}
    settings = Settings(method=method, epochs=epochs, train_size=size)
    return Planned(
        id=f"{task} {method} {factors}",
        task=task,
        method=method,
        restart=0,
        factors=factors,
        settings=settings,
        metric="accuracy",
        chance=0.5,
    )


def clock(*ended: tuple[Planned, float]) -> Clock:
    one = Clock()
    for run, seconds in ended:
        one.add(run, seconds)
    return one


def test_nothing_is_expected_of_what_nothing_is_known():
    assert Clock().expect([planned()]) is None


def test_a_cell_takes_what_its_own_runs_took_and_runs_add_up():
    known = clock((planned(size=50), 10.0), (planned(size=50), 20.0), (planned(size=50, method="mixout(0.9)"), 100.0))
    assert known.expect([planned(size=50)]) == pytest.approx(15.0)
    assert known.expect([planned(size=50), planned(size=50, method="mixout(0.9)")]) == pytest.approx(115.0)


@pytest.mark.parametrize(
    ("run", "seconds"),
    [
        # 300 example-passes took 30 seconds in all.
        ({"size": 1000}, 100.0),
        ({"size": 1000, "epochs": 2.5}, 250.0),
        ({"size": 1000, "task": "b"}, 100.0),
        ({"size": 100, "method": "mixout(0.9)"}, 10.0),
        # How many examples the whole task has is not known: the mean of all runs.
        ({"size": None, "epochs": 7.0}, 15.0),
    ],
)
def test_what_is_not_known_is_estimated_from_the_examples_that_are_seen(run, seconds):
    known = clock((planned(size=100), 12.0), (planned(size=200), 18.0))
    assert known.expect([planned(**run)]) == pytest.approx(seconds)


def test_whole_tasks_compare_by_their_epochs_and_not_with_subsets():
    known = clock((planned(epochs=3.0), 60.0), (planned(size=10), 1.0))
    assert known.expect([planned(epochs=20.0)]) == pytest.approx(400.0)


@pytest.mark.parametrize(("workers", "said"), [(1, "about 30 s left"), (2, "about 15 s left"), (8, "about 10 s left")])
def test_the_time_left_is_that_of_runs_at_a_time(workers, said):
    runs, lines = [planned(method=f"mixout({k / 10})") for k in range(4)], []
    course = Course(runs, runs, Contents(), lines.append, PoolExecutor(workers))
    run = Run(**runs[0].key.named, restart=0, id=runs[0].id, score=0.7)
    course.finished(runs[0], Entry(folder=Path(), run=replace(run, seconds=9.0), record=None, settings={}), 10.0)
    assert lines[-1].endswith(said)


def test_a_note_is_passed_on_once_and_at_once():
    runs, lines = [planned(method="plain"), planned(method="mixout(0.9)")], []
    course = Course(runs, runs, Contents(), lines.append, LocalExecutor())
    for run in runs:
        course.within(run.id, NOTE + "slow here")
        course.within(run.id, "  step 1/6, 0 s")
    assert lines == [NOTE + "slow here"]
