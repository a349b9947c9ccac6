"""Interrupts and lost processes lose nothing that was finished, and a run that was cut off goes on or starts anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mixout.finetune.settings import Settings
from mixout.finetune.trainer import Course as Steps
from mixout.study import runner
from mixout.study.ledger import Ledger
from mixout.study.runner import Tally

pytestmark = pytest.mark.usefixtures("one_thread")

Hook = Callable[[Settings], None]


def test_an_interrupt_keeps_what_is_finished(declare, tmp_path, monkeypatch, execute, outcomes, hooked):
    def interrupted(settings: Settings) -> None:
        if settings.seed == 1:
            raise KeyboardInterrupt

    ledger, planned = Ledger(tmp_path / "a"), declare().runs()
    with monkeypatch.context() as patch:
        hooked(interrupted, patch)
        with pytest.raises(KeyboardInterrupt):
            execute(planned, ledger)
    assert [r.restart for r in ledger.runs()] == [0, 0]
    assert execute(planned, ledger) == Tally(ran=2, failed=0)
    whole = Ledger(tmp_path / "b")
    execute(planned, whole)
    assert outcomes(whole) == outcomes(ledger)


class Stopped(BaseException):
    """Ends the process, as a signal would."""


@pytest.fixture
def cut_off(monkeypatch, execute):
    """Make runs until the first one has taken its third step."""

    def stop(self, args, state, control, **rest):
        on_step_end(self, args, state, control, **rest)
        if state.global_step == 3:
            raise Stopped

    def make(planned, ledger):
        with monkeypatch.context() as patch:
            patch.setattr(Steps, "on_step_end", stop)
            with pytest.raises(Stopped):
                execute(planned, ledger)

    on_step_end = Steps.on_step_end
    return make


@pytest.mark.parametrize(("save", "where"), [("no", "from the start"), (2, "from step 2")])
def test_a_run_that_was_cut_off_goes_on_only_with_checkpoints(
    declare, tmp_path, monkeypatch, save, where, cut_off, execute, outcomes
):
    planned, ledger = declare(restarts=1, settings={"save": save}).runs(), Ledger(tmp_path / "a")

    cut_off(planned, ledger)
    assert len(ledger.read().leftovers) == 1
    lines: list[str] = []
    monkeypatch.setattr(runner, "_SECONDS_BETWEEN_LINES", 0.0)
    execute(planned, ledger, lines)
    assert next(line for line in lines if "steps" in line).endswith(where)  # after what the data are
    whole = Ledger(tmp_path / "b")
    execute(planned, whole)
    assert outcomes(whole) == outcomes(ledger)
    assert not any((tmp_path / "a").rglob("checkpoints"))


def test_a_cut_off_run_whose_files_have_moved_starts_anew(declare, tmp_path, tiny_bert, cut_off, execute):
    shutil.copytree(tiny_bert, tmp_path / "copy")
    ledger = Ledger(tmp_path / "a")

    cut_off(declare(restarts=1, settings={"save": 1}).runs(), ledger)
    moved = declare(restarts=1, settings={"save": 1, "model": str(tmp_path / "copy")}).runs()
    assert execute(moved, ledger) == Tally(ran=2, failed=0)


def test_killed_between_the_record_and_the_ledger(declare, tmp_path, monkeypatch, ran, execute):
    ledger, planned = Ledger(tmp_path), declare(restarts=1).runs()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            execute(planned, ledger)
    assert len(ran) == 1
    assert execute(planned, ledger) == Tally(ran=2, failed=0)
    assert len(ran) == 2  # the first was taken over
    assert {r.method for r in ledger.runs()} == {"dropout(0.0)", "mixout(0.5)"}
