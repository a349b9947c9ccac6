"""Restarts run once, share their seeds between methods, and survive an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixout.cli import demo, main
from mixout.errors import InputError
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.study import restarts

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ("dropout(0.0)", "mixout(0.5)")


@pytest.fixture
def base(tiny_bert: str, tiny_task: str) -> Settings:
    return Settings(
        model=tiny_bert, task=tiny_task, max_length=32, epochs=1, batch_size=8, learning_rate=1e-3, save="no"
    )


def run(base: Settings, number: int, folder: Path, lines: list[str] | None = None) -> list[Record]:
    return restarts.run(base, METHODS, number, folder, report=(lambda _: None) if lines is None else lines.append)


def test_every_method_has_the_same_seeds(base, tmp_path):
    records = run(base, 2, tmp_path)
    assert [(r.settings.method, r.settings.seed) for r in records] == [
        ("dropout(0.0)", 0),
        ("mixout(0.5)", 0),
        ("dropout(0.0)", 1),
        ("mixout(0.5)", 1),
    ]
    for plain, mixed in (records[:2], records[2:]):
        seeds = [(r.settings.init_seed, r.settings.data_seed, r.settings.mask_seed) for r in (plain, mixed)]
        assert seeds[0] == seeds[1]
    assert records[0].distance != records[2].distance  # restarts differ


def test_asking_for_more_runs_only_what_is_missing(base, tmp_path, monkeypatch):
    first = run(base, 1, tmp_path)
    ran: list[Settings] = []
    original = restarts.finetune
    monkeypatch.setattr(restarts, "finetune", lambda s, *a, **k: (ran.append(s), original(s, *a, **k))[1])
    lines: list[str] = []
    more = run(base, 2, tmp_path, lines)
    assert [(s.method, s.seed) for s in ran] == [("dropout(0.0)", 1), ("mixout(0.5)", 1)]
    assert more[:2] == first
    lines = [line for line in lines if line.startswith("[")]
    assert len(lines) == 4
    assert lines[-1].startswith("[4/4] mixout(0.5), restart 1: accuracy ")


def test_a_long_run_shows_that_it_is_alive(base, tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(restarts, "_SECONDS_BETWEEN_LINES", 1e9)
    run(base, 1, tmp_path / "short", lines)
    assert not any(line.startswith(" ") for line in lines)
    lines.clear()
    monkeypatch.setattr(restarts, "_SECONDS_BETWEEN_LINES", 0.0)
    run(base, 1, tmp_path / "long", lines)
    within = [line for line in lines if line.startswith("  ")]
    assert within[0].startswith("  dropout(0.0), restart 0: step 1/6, ")
    assert any(line.startswith("  mixout(0.5), restart 0: step 6/6, epoch 1.00") for line in within)
    assert [line[:5] for line in lines if not line.startswith(" ")] == ["[1/2]", "[2/2]"]


def test_an_interruption_loses_no_finished_run(base, tmp_path, monkeypatch):
    original = restarts.finetune

    def interrupted(settings, *args, **rest):
        if settings.seed == 1:
            raise KeyboardInterrupt
        return original(settings, *args, **rest)

    monkeypatch.setattr(restarts, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(base, 2, tmp_path)
    monkeypatch.setattr(restarts, "finetune", original)
    whole = run(base, 2, tmp_path)
    fresh = run(base, 2, tmp_path / "elsewhere")
    assert [r.predictions for r in whole] == [r.predictions for r in fresh]
    assert [r.distance for r in whole] == [r.distance for r in fresh]


def test_runs_with_other_settings_are_not_taken_for_these(base, tmp_path):
    from dataclasses import replace

    run(base, 1, tmp_path)
    with pytest.raises(InputError, match="to hold a run with these settings, got another"):
        run(replace(base, learning_rate=2e-3), 1, tmp_path)


def test_no_restarts_is_an_error(base, tmp_path):
    with pytest.raises(InputError, match="expected restarts >= 1, got 0"):
        run(base, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_its_record_and_no_model(base, tmp_path):
    run(base, 1, tmp_path)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"record.json"}


def test_the_demo_ends_with_table_and_figure(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SETTINGS", base)
    folder = tmp_path / "demo"
    assert main(["demo", "--restarts", "2", "--output-dir", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "about" in printed.err  # progress with the time left
    for method in demo.METHODS:
        assert method in printed.out
    assert len((folder / "table.csv").read_text().splitlines()) == 1 + len(demo.METHODS)
    assert (folder / "figure.png").stat().st_size > 1000


def test_the_demo_names_what_is_wrong(tmp_path, capsys):
    assert main(["demo", "--restarts", "0", "--output-dir", str(tmp_path)]) == 2
    assert "expected restarts >= 1, got 0" in capsys.readouterr().err
