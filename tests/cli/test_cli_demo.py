"""The demo is a study over the learning rate. It ends with a table, what was seen in words, and a report."""

from __future__ import annotations

import re
import webbrowser
from dataclasses import replace
from statistics import mean

import pytest

from mixout.cli import demo, main
from mixout.study.analysis.runs import Run
from mixout.study.declaration import read
from mixout.study.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


def words_of(folder, *options):
    return ["demo", "--workers", "1", "--output-dir", str(folder), *options]


def test_the_demo_ends_with_what_was_seen_and_a_report(demo_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "STUDY", demo_file)
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    folder = tmp_path / "demo"
    assert main(words_of(folder, "--restarts", "1")) == 0
    printed = capsys.readouterr()
    report = folder / "report"
    assert printed.out.splitlines()[-2:] == [
        f"figure {report / 'figures' / 'factor-1-learning_rate.png'}",
        f"report {report / 'index.html'}",
    ]
    assert (report / "figures" / "factor-1-learning_rate.png").exists()
    assert "mixout finetune your.csv" in printed.out
    assert "[6/6] words, gradient_mask(0.7), learning rate 0.05, restart 0: accuracy " in printed.err
    page = (report / "index.html").read_text()
    assert "mixout(0.7)" in page
    assert f"mixout study run {demo_file} --restarts 1 --ledger {folder / 'ledger'}" in page
    assert opened == []
    # More restarts: only the new ones run.
    assert main(words_of(folder, "--restarts", "2", "--open")) == 0
    printed = capsys.readouterr()
    assert "6 of 12 runs are there already" in printed.err
    assert opened == [(report / "index.html").as_uri()]
    runs = Ledger(folder / "ledger").runs()
    assert len(runs) == 12
    # The table's numbers are the ledger's.
    [row] = re.findall(r"^mixout\(0\.7\) +(0\.\d{3}) +(0\.\d{3})$", printed.out, re.MULTILINE)
    for rate, number in zip(("0.01", "0.05"), row, strict=True):
        scores = [r.score for r in runs if r.method == "mixout(0.7)" and r.factors["learning_rate"] == rate]
        assert float(number) == pytest.approx(mean(scores), abs=5.1e-4)


def test_an_interrupted_demo_continues(demo_file, tmp_path, monkeypatch, capsys):
    import mixout.cli.study.runs as commands
    from mixout.cli.lines import Lines

    class Interrupted(Lines):
        def __call__(self, line):
            super().__call__(line)
            if line.startswith("[2/"):
                raise KeyboardInterrupt

    monkeypatch.setattr(demo, "STUDY", demo_file)
    folder = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr(commands, "Lines", Interrupted)
        assert main(words_of(folder, "--restarts", "1")) == 130
    printed = capsys.readouterr()
    assert "call it again to continue" in printed.err
    assert printed.out == ""
    assert main(words_of(folder, "--restarts", "1")) == 0
    assert "2 of 6 runs are there already" in capsys.readouterr().err


def test_the_demo_names_what_is_wrong(tmp_path, capsys):
    for option, message in (("--restarts", "restarts as a whole number >= 1, got 0"), ("--workers", "workers >= 1")):
        assert main(["demo", option, "0", "--output-dir", str(tmp_path / "demo")]) == 2
        assert f"expected {message}" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def made(scores):
    """Runs of two restarts each on ten sentences, of which so many are right; those beyond are answered by restart."""
    return [
        Run(
            task="docstrings",
            method=method,
            restart=restart,
            score=right / 10,
            chance=0.125,
            factors={"learning_rate": rate},
            predictions=tuple(1 if k < right else 2 + restart for k in range(10)),
        )
        for method, of in scores.items()
        for rate, right in zip(("0.0005", "0.0014"), of, strict=True)
        for restart in (0, 1)
    ]


def test_the_words_are_computed_from_the_runs():
    runs = made({"dropout(0.1)": (8, 3), "mixout(0.7)": (8, 7), "gradient_mask(0.7)": (8, 6), "decay": (8, 8)})
    first, second, third = demo.seen(*demo.summed_up(runs))
    assert first == "At the learning rate 0.0005 all methods score alike, within 0.0 points."
    assert "At 0.0014 dropout(0.1) loses 50.0 points, mixout(0.7) 10.0, gradient_mask(0.7) 20.0, decay 0.0." in second
    assert "gradient_mask(0.7), scores 10.0 points less than mixout(0.7)" in second
    assert not any("differently" in text for text in demo.seen(demo.summed_up(runs)[0], {}))
    assert "differently: 70 % with dropout(0.1), 30 % with mixout(0.7)." in second
    # A run without predictions leaves its method with one at that rate.
    lost = [replace(run, predictions=()) if run.restart and "dropout" in run.method else run for run in runs]
    assert "differently: 30 % with mixout(0.7)." in demo.seen(*demo.summed_up(lost))[1]
    assert third.startswith("You could also just lower the learning rate")
    assert "0.0 points above dropout(0.1) at 0.0005" in third


def test_the_words_do_not_claim_what_the_runs_do_not_show():
    runs = made({"dropout(0.1)": (5, 4), "mixout(0.7)": (8, 9), "gradient_mask(0.7)": (8, 6)})
    first, second, third = demo.seen(*demo.summed_up(runs))
    assert first == "At the learning rate 0.0005 all methods lie up to 30.0 points apart."
    assert "dropout(0.1) loses 10.0 points, mixout(0.7) gains 10.0" in second
    assert third == (
        "Here a lower learning rate does not replace them: the best mean of all is 40.0 points above dropout(0.1) "
        "at 0.0005."
    )


def test_no_learning_rate_was_too_high():
    runs = made({"dropout(0.1)": (5, 6), "mixout(0.7)": (6, 6), "gradient_mask(0.7)": (6, 7)})
    [only] = demo.seen(*demo.summed_up(runs))[1:]
    assert only == "No learning rate was too high here: the highest, 0.0014, is the best one."


def test_the_study_has_what_the_words_speak_of():
    study = read(demo.STUDY)
    labels = [axis.label for axis in study.methods]
    assert study.baseline == demo.BASELINE
    assert {demo.BASELINE, demo.MIXOUT, demo.MASK} <= set(labels)
    assert re.fullmatch(r"anchor_decay\(radius=.*\)", labels[-1])
    assert len(study.factors[demo.RATE]) > 1
