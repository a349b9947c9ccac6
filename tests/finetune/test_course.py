"""When a run logs, evaluates, keeps its best model and stops; and what it says of itself at its end."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
import transformers
from tests.finetune.conftest import same, sentences, write

from mixout.finetune.batches import DevSet
from mixout.finetune.record import Record
from mixout.finetune.train import finetune
from mixout.finetune.trainer import TextTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_that_diverges_is_recorded_as_such(settings, tmp_path):
    hot = settings(optimizer="sgd", learning_rate=1e30, max_grad_norm=0.0, epochs=10.0)
    record = finetune(hot, tmp_path / "out")
    assert record.status == "diverged"
    assert Record.read(tmp_path / "out").status == "diverged"
    # It ends where the loss is looked at, which is long before the 60 steps are over.
    assert record.steps == record.evaluations[-1].step == 10
    assert record.verdict.startswith("diverged: the training loss is nan after 10 steps at learning rate 1e30")
    assert "**This run failed: diverged: " in (tmp_path / "out" / "README.md").read_text()
    order = ["--learning-rate 1e29", "--max-grad-norm 1"]
    assert sorted(order, key=record.verdict.index) == order


def test_a_loss_that_is_finite_but_far_above_its_start_ends_a_run(settings, tmp_path, monkeypatch: pytest.MonkeyPatch):
    compute = TextTrainer.compute_loss

    def rising(self, model, inputs, *args, **options):
        # What it would be at a rate that is too high: from step 20 on five times as large.
        loss = compute(self, model, inputs, *args, **options)
        return loss * (5 if self.state.global_step >= 20 and model.training else 1)

    monkeypatch.setattr(TextTrainer, "compute_loss", rising)
    chosen = settings(epochs=10.0, method="dropout(0)", learning_rate=1e-30, evaluate="end")
    record = finetune(chosen, tmp_path / "out")
    assert (record.status, record.steps) == ("diverged", 30)
    assert math.isfinite(record.training[-1].loss)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**This run failed: diverged: " in card
    assert "finite" not in card
    assert "--learning-rate" in record.verdict
    # A checkpoint in between changes neither the step nor what is said.
    again = finetune(settings(**{**vars(chosen), "save": 30}), tmp_path / "again")
    assert (again.steps, again.verdict) == (record.steps, record.verdict)


def test_a_run_that_has_hardly_learned_says_so(settings, tmp_path):
    record = finetune(settings(learning_rate=1e-7, method="mixout(0.9)"), tmp_path / "out")
    assert record.status == "finished"
    assert record.verdict.startswith("it has hardly learned: training loss 0.6")
    assert "a constant answer has 0.693 and 0.693" in record.verdict
    assert "after 12 steps at learning rate 1e-7" in record.verdict
    order = ["--epochs 25 (150 steps)", "--learning-rate 5e-4", "--method 'mixout(0.7)'", "--seed 1"]
    assert sorted(order, key=record.verdict.index) == order
    assert finetune(settings(method="dropout(0)", epochs=16.0, learning_rate=3e-3), tmp_path / "b").verdict == ""


@pytest.mark.parametrize("kind", ["rare class", "values", "tags", "labels"])
def test_a_rate_that_is_far_too_low_is_not_to_be_lowered(settings, names, moods, tmp_path, kind):
    known = {"tags": {"task": names, "task_type": "token-classification"}, "labels": {"task": moods}}
    label = {"rare class": lambda row: "spam" if row % 10 == 0 else "ham", "values": lambda row: 3 + row % 9 / 4}
    if kind in label:
        rows = [{"text": " ".join(words), "label": label[kind](row)} for row, words in enumerate(sentences(60))]
        known[kind] = {"task": write(tmp_path / "own.jsonl", rows)}
    record = finetune(settings(**known[kind], method="plain", learning_rate=1e-7), tmp_path / "out", keep_model=False)
    assert "it has hardly learned" in record.verdict
    assert "the usual learning rate for this model: --learning-rate 5e-4" in record.verdict


def test_the_training_loss_is_shown_and_changes_nothing(settings, tmp_path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, float]] = []
    on_log = transformers.trainer_callback.CallbackHandler.on_log

    def spy(self, args, state, control, logs):
        if "loss" in logs:
            seen.append((state.global_step, logs["loss"]))
        return on_log(self, args, state, control, logs)

    monkeypatch.setattr(transformers.trainer_callback.CallbackHandler, "on_log", spy)

    def run(name, **changes):
        seen.clear()
        lines: list[str] = []
        record = finetune(settings(evaluate="end", **changes), tmp_path / name, report=lines.append)
        return record, dict(seen), lines

    every, points, lines = run("every")
    assert list(points) == list(range(1, 13))
    # At the end of an epoch it is the Trainer's own, over that epoch: that of the record.
    steps = list(points.values())
    assert [(entry.step, entry.loss) for entry in every.training] == [(6, points[6]), (12, points[12])]
    assert f"  step 5/12, training loss {steps[4]:.4f}, " in "".join(lines)
    few, points, _ = run("few", logging_steps=4)
    assert list(points) == [4, 6, 8, 12]
    assert points[4] == pytest.approx(sum(steps[:4]) / 4)
    assert few.training == every.training
    assert few.digest == every.digest
    assert same(tmp_path / "every", tmp_path / "few")
    # However seldom one evaluates, the last loss, by which a run is judged, is that of the last epoch.
    often = finetune(settings(), tmp_path / "often")
    assert (often.training, often.verdict) == (every.training, every.verdict)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch):
    """Makes the evaluations of a run score what a list says."""

    def of(values):
        left = iter(values)
        score = DevSet.score
        monkeypatch.setattr(DevSet, "score", lambda self, outputs: score(self, outputs) | {"accuracy": next(left)})

    return of


def test_a_run_ends_where_nothing_gets_better(settings, tmp_path, scores):
    scores([0.5, 0.6, 0.6, 0.55, 0.9])
    record = finetune(settings(epochs=5.0, patience=2), tmp_path / "out")
    assert [entry.scores["accuracy"] for entry in record.evaluations] == [0.5, 0.6, 0.6, 0.55]
    assert (record.steps, record.status) == (24, "finished")


def test_the_best_model_is_kept(settings, tmp_path, scores):
    finetune(settings(epochs=3.0, evaluate="epoch", max_steps=12), tmp_path / "until")
    scores([0.5, 0.7, 0.6, 0.7])
    record = finetune(settings(epochs=3.0, keep_best=True), tmp_path / "best")
    assert [(entry.step, entry.epoch, entry.scores["accuracy"]) for entry in record.evaluations] == [
        (6, 1.0, 0.5), (12, 2.0, 0.7), (18, 3.0, 0.6), (12, 2.0, 0.7),
    ]  # fmt: skip
    assert (record.score, record.steps) == (0.7, 18)
    assert not (tmp_path / "best" / "checkpoints").exists()
    assert not list((tmp_path / "best").glob("best*"))
    # The weights are those of step 12, and so are predictions and distance.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "best").eval()
    rows = list(csv.DictReader((Path(settings().task) / "dev.csv").read_text().splitlines()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "best")
    with torch.no_grad():
        found = [int(model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax()) for row in rows]
    assert list(record.predictions) == found
    assert not same(tmp_path / "best", tmp_path / "until")  # another schedule: 12 steps of 12, not of 18


def test_the_best_model_half_way_back_is_entered_where_it_was_the_best(settings, tmp_path, scores):
    scores([0.5, 0.7, 0.6, 0.7, 0.8])
    record = finetune(settings(epochs=3.0, keep_best=True, method="interpolate(0.5)"), tmp_path / "out")
    found = [(entry.step, entry.epoch) for entry in record.evaluations]
    assert found == [(6, 1.0), (12, 2.0), (18, 3.0), (12, 2.0), (12, 2.0)]
    assert (record.score, record.steps) == (0.8, 18)


def test_a_limit_of_steps(settings, tmp_path):
    lines: list[str] = []
    record = finetune(settings(epochs=None, max_steps=9), tmp_path / "out", report=lines.append)
    assert record.steps == 9
    assert any(line.endswith("9 steps, 1.5 epochs, from the start") for line in lines)


def test_the_schedule(settings, tmp_path):
    chosen = {"schedule": "cosine", "warmup": 0.0, "learning_rate": 0.01, "save": 3, "epochs": 2.0}
    record = finetune(settings(**chosen), tmp_path / "out")
    rates = {entry.step: entry.learning_rate for entry in record.training}
    # The rate of the sixth step, before which there were five.
    assert rates[6] == pytest.approx(0.01 * (1 + math.cos(math.pi * 5 / 12)) / 2)
