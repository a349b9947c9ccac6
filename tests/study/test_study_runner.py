"""Only what is missing runs; failures and wrong input lose nothing that was finished."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable

import pytest

from mixout.errors import InputError
from mixout.finetune.settings import Settings
from mixout.study import runner
from mixout.study.entry import FAILURE_NAME
from mixout.study.ledger import Ledger
from mixout.study.runner import Tally

pytestmark = pytest.mark.usefixtures("one_thread")

Hook = Callable[[Settings], None]


def test_a_study(declare, tmp_path, execute):
    ledger, lines = Ledger(tmp_path), []
    assert execute(declare().runs(), ledger, lines) == Tally(ran=4, failed=0)
    runs = ledger.runs()
    assert [(r.method, r.restart) for r in runs] == [
        ("dropout(0.0)", 0), ("dropout(0.0)", 1), ("mixout(0.5)", 0), ("mixout(0.5)", 1),
    ]  # fmt: skip
    assert all(r.status == "finished" for r in runs)
    assert runs[0].distance != runs[1].distance  # restarts differ
    assert [line[:5] for line in lines if not line.startswith(" ")] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    ended = [line for line in lines if line.startswith("[")]
    assert ended[0].startswith("[1/4] words, dropout(0.0), restart 0: accuracy ")
    assert ended[0].endswith(" left")
    # The record and its place, no model, no checkpoint.
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"run.json", "record.json"}


def test_more_restarts_run_only_what_is_new(declare, tmp_path, ran, execute, outcomes):
    ledger, lines = Ledger(tmp_path), []
    execute(declare(restarts=2).runs(), ledger)
    before = outcomes(ledger)
    ran.clear()
    assert execute(declare(restarts=4).runs(), ledger, lines) == Tally(ran=4, failed=0)
    assert [(s.method, s.seed) for s in ran] == [
        ("dropout(0.0)", 2), ("mixout(0.5)", 2), ("dropout(0.0)", 3), ("mixout(0.5)", 3),
    ]  # fmt: skip
    assert lines[0] == "4 of 8 runs are there already"
    assert set(before) < set(outcomes(ledger))
    ran.clear()
    assert execute(declare(restarts=3).runs(), ledger) == Tally(ran=0, failed=0)
    assert not ran
    # The same as all at once.
    whole = Ledger(tmp_path / "whole")
    execute(declare(restarts=4).runs(), whole)
    assert outcomes(whole) == outcomes(ledger)


def test_a_run_that_raises_is_tried_again(declare, tmp_path, monkeypatch, execute, outcomes, hooked):
    failed: list[int] = []

    def once(settings: Settings) -> None:
        if settings.seed == 1 and not failed:
            failed.append(1)
            raise MemoryError("3 GB")

    ran = hooked(once)
    lines: list[str] = []
    assert execute(declare().runs(), Ledger(tmp_path / "a"), lines) == Tally(ran=4, failed=0)
    assert len(ran) == 5
    assert "words, dropout(0.0), restart 1: attempt 1 failed, trying again: MemoryError: 3 GB" in lines
    execute(declare().runs(), Ledger(tmp_path / "b"))
    assert outcomes(Ledger(tmp_path / "a")) == outcomes(Ledger(tmp_path / "b"))


def test_a_run_that_always_raises_is_recorded_and_the_study_goes_on(
    declare, tmp_path, monkeypatch, execute, outcomes, hooked
):
    def always(settings: Settings) -> None:
        if settings.seed == 0 and settings.method == "dropout(0.0)":
            raise RuntimeError("CUDA out of memory")

    ledger, lines, planned = Ledger(tmp_path), [], declare().runs()
    with monkeypatch.context() as patch:
        ran = hooked(always, patch)
        assert execute(planned, ledger, lines) == Tally(ran=4, failed=1)
        assert len(ran) == 5
        lines.clear()
        assert execute(planned, ledger, lines, retries=0) == Tally(ran=0, failed=0)  # failed is not missing
        assert lines == [
            "3 of 4 runs are there already",
            "1 of 4 runs failed before; mixout study retry runs them again",
        ]
    assert [(r.status, r.error) for r in ledger.runs() if r.failed and r.status == "failed"] == [
        ("failed", "RuntimeError: CUDA out of memory")
    ]
    failure = ledger.read().entries[planned[0].id]
    assert failure.attempts == 2
    assert "in always" in (failure.folder / FAILURE_NAME).read_text()
    # Again, on request: now it works.
    assert execute(planned, ledger, again=True) == Tally(ran=1, failed=0)
    assert execute(planned, ledger, again=True) == Tally(ran=0, failed=0)
    whole = Ledger(tmp_path / "whole")
    execute(planned, whole)
    assert outcomes(whole) == outcomes(ledger)


def test_what_another_process_makes_is_left_to_it(declare, tmp_path, ran, execute):
    ledger, planned = Ledger(tmp_path), declare().runs()
    lock = Ledger(tmp_path).claim(planned[1].id)
    assert lock is not None
    assert execute(planned, ledger) == Tally(ran=3, failed=0, elsewhere=1)
    assert planned[1].id not in ledger.read().entries
    ledger.release(lock)
    assert execute(planned, ledger) == Tally(ran=1, failed=0)
    assert len(ran) == 4


def test_what_another_process_has_made_meanwhile_is_not_made_again(declare, tmp_path, monkeypatch, execute, hooked):
    ledger, planned = Ledger(tmp_path), declare(restarts=1).runs()

    def other(settings: Settings) -> None:
        # While the first run is made, another process makes the second.
        if settings.method == "dropout(0.0)" and len(calls) == 1:
            execute(planned[1:], Ledger(tmp_path))

    calls = hooked(other)
    assert execute(planned, ledger) == Tally(ran=1, failed=0, elsewhere=0)  # nothing is left to call again for
    assert len(ledger.runs()) == 2
    assert not list((tmp_path / "locks").iterdir())


@pytest.mark.parametrize(("keep", "models"), [("no", 0), ("best", 2), ("all", 6)])
def test_trained_models_are_kept_on_request(declare, tmp_path, keep, models, execute):
    from transformers import AutoModelForSequenceClassification

    ledger, planned = Ledger(tmp_path), declare(restarts=3).runs()
    execute(planned[:4], ledger, keep=keep)
    execute(planned, ledger, keep=keep)
    kept = [entry for entry in ledger.read().entries.values() if entry.has_model]
    assert len(kept) == models
    runs = ledger.runs()
    for entry in kept:
        AutoModelForSequenceClassification.from_pretrained(entry.folder)
        if keep == "best":
            assert entry.run.score == max(run.score for run in runs if run.method == entry.run.method)
    assert not ledger.read().damaged


def test_the_best_run_may_have_no_model_which_is_said(declare, tmp_path, execute):
    """Runs that were made without --keep count when the best one is sought."""
    ledger, planned, lines = Ledger(tmp_path), declare(restarts=2).runs(), []
    execute(planned, ledger, keep="no")
    entries = ledger.read().entries
    best = {key: max((run for run in planned if run.key == key), key=lambda run: entries[run.id].run.score)
            for key in {run.key for run in planned}}  # fmt: skip
    for run in planned:
        if run is not best[run.key]:
            shutil.rmtree(entries[run.id].folder)
    execute(planned, ledger, lines, keep="best")
    assert [entry.has_model for entry in ledger.read().entries.values()] == [False] * len(planned)
    assert "2 cells: the best run was made before without a model; only a better one keeps one" in lines


def test_attempts_are_counted_on(declare, tmp_path, monkeypatch, execute, hooked):
    def always(settings: Settings) -> None:
        raise RuntimeError("no")

    hooked(always)
    ledger, planned = Ledger(tmp_path), declare(restarts=1).runs()[:1]
    execute(planned, ledger, retries=2)
    assert ledger.read().entries[planned[0].id].attempts == 3
    execute(planned, ledger, retries=0, again=True)
    assert ledger.read().entries[planned[0].id].attempts == 4


def test_wrong_input_ends_the_study(declare, tmp_path, monkeypatch, execute, hooked):
    def wrong(settings: Settings) -> None:
        if settings.seed == 1:
            raise InputError("expected something else")

    ran = hooked(wrong)
    ledger = Ledger(tmp_path)
    with pytest.raises(InputError, match="something else"):
        execute(declare(restarts=3).runs(), ledger)
    assert len(ran) == 3
    assert [r.restart for r in ledger.runs()] == [0, 0]


def test_a_long_run_shows_that_it_is_alive(declare, tmp_path, monkeypatch, execute):
    lines: list[str] = []
    planned = declare(restarts=1).runs()
    monkeypatch.setattr(runner, "_SECONDS_BETWEEN_LINES", 1e9)
    execute(planned, Ledger(tmp_path / "short"), lines)
    assert not any(line.startswith(" ") for line in lines)
    lines.clear()
    monkeypatch.setattr(runner, "_SECONDS_BETWEEN_LINES", 0.0)
    execute(planned, Ledger(tmp_path / "long"), lines)
    within = [line for line in lines if line.startswith("  ")]
    assert any(line.startswith("  words, dropout(0.0), restart 0: step 1/6, ") for line in within)
    assert any(line.startswith("  words, mixout(0.5), restart 0: step 6/6, epoch 1.00") for line in within)


def test_what_is_watched_does_not_change_the_result(declare, tmp_path, execute):
    # The reason why evaluations and checkpoints are no part of a run's identity.
    found = []
    for at, watched in enumerate([{"evaluate": "epoch", "save": 3}, {"evaluate": "end", "save": "no"}]):
        ledger = Ledger(tmp_path / str(at))
        planned = declare(restarts=1, settings={"epochs": 3, **watched}).runs()[1:]  # mixout: it draws masks
        execute(planned, ledger)
        [entry] = ledger.read().entries.values()
        found.append((entry.folder.name, entry.run.distance, entry.run.predictions))
    assert found[0] == found[1]


def test_settings_stay_with_the_run(declare, tmp_path, execute):
    ledger, planned = Ledger(tmp_path), declare(restarts=1, factors={"epochs": [0.5]}).runs()
    execute(planned, ledger)
    [described] = [json.loads(p.read_text()) for p in tmp_path.rglob("run.json") if planned[1].id in str(p)]
    assert described["factors"] == {"epochs": "0.5"}
    assert Settings.from_json(json.dumps(described["settings"])) == planned[1].settings
    assert described["wall"] > 0


def test_half_precision_is_a_setting_that_is_kept_with_the_run(declare, tmp_path, execute):
    planned, ledger = declare(restarts=1, factors={"precision": ["fp32", "bf16"]}).runs(), Ledger(tmp_path)
    assert execute(planned, ledger) == Tally(ran=4, failed=0)
    records = [ledger.read().entries[run.id].record for run in planned]
    assert [record.settings.precision for record in records] == ["fp32", "fp32", "bf16", "bf16"]
    for whole, half in zip(records[:2], records[2:], strict=True):
        # Autocast was on: the same course, but for what eight bits of mantissa leave of it.
        assert half.training != whole.training
        assert half.distance == pytest.approx(whole.distance, rel=0.05)


def test_a_negative_number_of_retries_and_another_word_for_keep_are_refused(declare, tmp_path, execute):
    with pytest.raises(InputError, match="retries >= 0, got -1"):
        execute(declare().runs(), Ledger(tmp_path), retries=-1)
    with pytest.raises(InputError, match="'no', 'best' or 'all', got 'bset'"):
        execute(declare().runs(), Ledger(tmp_path), keep="bset")
    assert not os.listdir(tmp_path)
