"""A study of language models: scores below zero, chance that only a run finds out, a report in their unit."""

from __future__ import annotations

import math

import pytest

from mixout.cli import main
from mixout.study.analysis.compare import points_of
from mixout.study.analysis.runs import Run, by_cell
from mixout.study.analysis.words import Scores
from mixout.study.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


def test_two_restarts_and_a_report(tiny_llama, tiny_text, tmp_path, capsys):
    (tmp_path / "text.toml").write_text(
        f"""
[study]
name = "text"
restarts = 2
baseline = "plain"
[settings]
task_type = "causal-lm"
model = {tiny_llama!r}
max_length = 12
epochs = 1
batch_size = 8
learning_rate = 2e-2
save = "no"
[[task]]
name = {tiny_text!r}
original = "{tiny_text}/other.txt"
label = "new"
[[method]]
name = "plain"
[[method]]
name = "mixout(.5)"
"""
    )
    words = [str(tmp_path / "text.toml"), "--ledger", str(tmp_path / "ledger")]
    assert main(["study", "run", *words]) == 0
    runs = Ledger(tmp_path / "ledger").runs()
    assert [(run.task, run.method, run.restart) for run in runs] == [
        ("new", method, k) for method in ("mixout(0.5)", "plain") for k in (0, 1)
    ]
    # Pairs: the same data and start.
    assert len({run.chance for run in runs if run.task == "new"}) == 1
    for run in runs:
        assert run.score < 0
        assert run.chance is not None
        assert run.chance < 0
        assert run.evaluations[0][0] == 0
        assert run.evaluations[-1][1] == run.score
    assert len({run.evaluations[0] for run in runs if run.task == "new"}) == 1

    assert main(["study", "report", *words, "--output-dir", str(tmp_path / "report")]) == 0
    capsys.readouterr()
    page = next((tmp_path / "report").glob("*.html")).read_text()
    new = [run for run in runs if run.task == "new"]
    best = max(new, key=lambda run: run.score)
    assert f"\u2212{-best.score:.3f}" in page
    assert f"\u2212{-new[0].chance:.3f}" in page
    # How far the answers went, beside what is kept.
    found = [entry.record.scores["kl_to_base"] for entry in Ledger(tmp_path / "ledger").read().entries.values()]
    assert sorted(run.kl_to_base for run in runs) == sorted(found)
    assert min(found) > 0
    assert "KL to the base" in page

    # The same runs by another score: nothing is trained.
    kept = ["--set", "metric=original_log_likelihood"]
    assert main(["study", "report", *words, *kept, "--output-dir", str(tmp_path / "kept")]) == 0
    assert "original_log_likelihood" in next((tmp_path / "kept").glob("*.html")).read_text()
    # Not by one of which lower is better, with the file or without it.
    capsys.readouterr()
    for named in (words, words[1:]):
        assert (
            main(["study", "report", *named, "--set", "metric=perplexity", "--output-dir", str(tmp_path / "no")]) == 2
        )
        assert "log_likelihood" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_point_is_a_hundredth_of_a_nat():
    def run(method: str, restart: int, score: float) -> Run:
        return Run(task="t", method=method, restart=restart, score=score, metric="log_likelihood", chance=-6.0)

    cells = by_cell([run("plain", 0, -3.21), run("mixout", 0, -3.19)])
    assert points_of(cells) == {"t": 100.0}
    assert Scores([-3.21, -3.19]).difference(0.02) == "+0.020"
    # As before: fractions, and scores in per cent.
    assert points_of(by_cell([Run(task="t", method="m", restart=0, score=0.7)])) == {"t": 100.0}
    assert points_of(by_cell([Run(task="t", method="m", restart=k, score=s) for k, s in enumerate((-2.0, 56.5))])) == {
        "t": 1.0
    }
    lost = Run(task="t", method="m", restart=0, score=math.nan, status="diverged")
    assert points_of(by_cell([lost])) == {"t": 100.0}
