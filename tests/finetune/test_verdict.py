"""What a run is measured against, against numpy; and what is said of one."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mixout.finetune.outcome import constant_losses, judge
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Split, Task
from mixout.finetune.tasks import Split as Documents
from mixout.finetune.tasks import Task as Corpus
from mixout.finetune.tasks.files import SPLIT


def task(train, dev, labels):
    parts = {
        side: Split(text=tuple(f"{side} {row}" for row in range(len(values))), label=tuple(values))
        for side, values in (("train", train), ("dev", dev))
    }
    return Task(**parts, labels=labels, metrics=("f1",), metric="f1", source="", name="t")


def test_classes():
    train, dev = [0, 0, 0, 1, 2, 2], [0, 1, 1, 2]
    shares = np.bincount(train) / len(train)
    expected = -np.log(shares[train]).mean(), -np.log(shares[dev]).mean()
    assert constant_losses(task(train, dev, ("a", "b", "c"))) == pytest.approx(expected)


def test_a_class_without_a_training_row():
    _, dev = constant_losses(task([0, 0, 1, 1], [2, 2], ("a", "b", "c")))
    assert math.isfinite(dev)
    assert dev > math.log(4)


def test_values():
    train, dev = [1.0, 2.0, 4.5], [0.5, 9.0]
    mean = np.mean(train)
    expected = np.var(train), np.mean((np.array(dev) - mean) ** 2)
    assert constant_losses(task(train, dev, None)) == pytest.approx(expected)


def test_a_language_model_has_none():
    texts = Documents(text=("a b c",))
    corpus = Corpus(name="t", train=texts, dev=texts, original=None, metric="log_likelihood", source="")
    assert constant_losses(corpus) is None


@pytest.mark.parametrize(
    ("before", "after", "training", "said"),
    [
        (4.0, 3.9, 3.9, ""),
        (4.0, 4.0, 4.0, "it has hardly learned: dev loss 4.000 after 4 steps at learning rate 1e-4, 4.000 before"),
        (4.0, 4.1, 4.2, "it has hardly learned"),
        (4.0, 3.9999, 4.0, "it has hardly learned"),  # rounding
        (4.0, 4.1, 3.0, "what it has learned does not carry over to the dev text"),
    ],
)
def test_a_language_model_is_measured_against_itself_before(before, after, training, said):
    texts = Documents(text=("a b c",))
    corpus = Corpus(name="t", train=texts, dev=texts, original=None, metric="log_likelihood", source="")
    record = record_of(training, after, optimizer="sgd", began=4.0)
    record.evaluations.insert(0, SimpleNamespace(loss=before, step=0))
    verdict = judge(record, None, corpus)
    assert verdict[: len(said)] == said
    assert bool(verdict) == bool(said)
    assert "labels" not in verdict
    assert ("fewer steps" in verdict) == said.startswith("what it")
    record.settings = Settings(method="interpolate(0.5)", learning_rate=1e-4)
    assert judge(record, None, corpus) == ""


def record_of(
    training, dev, score=0.25, *, rate=1e-4, optimizer="adamw", steps=4, epochs=2.0, ran=None, began=1.1, **given
):
    """Of a run of so many steps in so many epochs, whose loss began there; ``given`` are settings of it."""
    settings = Settings(**{"learning_rate": rate, "optimizer": optimizer, "epochs": epochs, "method": "plain"} | given)
    return SimpleNamespace(
        settings=settings, status="finished", steps=steps, metric="accuracy", score=score, chance=0.5,
        training=[SimpleNamespace(loss=began), SimpleNamespace(loss=training, epoch=ran or epochs)],
        evaluations=[SimpleNamespace(loss=dev, step=steps)], fitted=False,
    )  # fmt: skip


def tried(record):
    """What is to be tried, in order."""
    said = judge(record, None, task([0, 0, 1, 1, 2, 2], [0, 1, 3, 3], ("a", "b", "c", "d")))
    return said.partition("Try, in this order: ")[2].split("; ")


@pytest.mark.parametrize(
    ("training", "dev", "score", "said"),
    [
        (2.084, 1.5, 0.25, "it has hardly learned: training loss 2.084"),  # a poor constant answer: nothing is learned
        (0.7, 1.5, 0.25, "what it has learned does not carry over"),
        (1.08, 1.2, 0.25, "it has hardly learned"),
        (1.08, 0.4, 0.75, ""),  # the last epoch's mean lags behind
        (0.7, 0.8, 0.75, ""),
    ],
)
def test_what_is_said(training, dev, score, said):
    rows = task([0, 0, 1, 1, 2, 2], [0, 1, 3, 3], ("a", "b", "c", "d"))
    found = judge(record_of(training, dev, score, optimizer="sgd"), None, rows)
    assert found[: len(said)] == said
    assert bool(found) == bool(said)


def test_fewer_steps_are_advised_after_a_usual_number_alone():
    short, long = (tried(record_of(0.7, 1.5, steps=steps, optimizer="sgd")) for steps in (12, 150))
    doubt = "see whether both files mean the same by their labels"
    assert short == ["more steps: --epochs 25 (150 steps)", doubt, "more training rows"]
    assert long == [doubt, "more training rows", "fewer steps, --epochs 1"]
    one_file = replace(task([0, 0, 1, 1], [0, 1], ("a", "b")), source=f"The user's file t.csv, {SPLIT}.")
    assert "see whether the texts tell the labels; more training" in judge(
        record_of(0.1, 1.5, steps=150), None, one_file
    )


def test_without_dev_rows_no_loss_is_that_of_the_dev_rows():
    record = record_of(1.08, 1.2, optimizer="sgd")
    record.fitted = True
    said = judge(record, None, task([0, 0, 1, 1, 2, 2], [0, 1, 2], ("a", "b", "c")))
    assert "and final loss 1.200" in said
    assert "dev" not in said


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch):
    """The usual rate is 1e-4, for every model."""
    monkeypatch.setattr("mixout.finetune.defaults.learning_rate", lambda settings, model, task: (1e-4, ""))


@pytest.mark.parametrize(
    ("rate", "advice"),
    [
        (1e-5, ["more steps", "the usual learning rate for this model: --learning-rate 1e-4", "another seed"]),
        (1e-4, ["more steps", "twice the learning rate: --learning-rate 2e-4", "another seed"]),
        (1e-3, ["a lower learning rate, usual for this model: --learning-rate 1e-4", "more steps", "another seed"]),
    ],
)
def test_what_to_try_comes_in_order(rate, advice, usual):
    """At ten times the usual rate more steps would not help, so they come second."""
    found = tried(record_of(1.09, 1.5, rate=rate))
    assert [one.startswith(start) for one, start in zip(found, advice, strict=False)] == [True] * 3


@pytest.mark.parametrize(
    ("method", "advised"),
    [
        ("mixout(0.9, gradient=paper)", "mixout(0.7, gradient=paper)"),
        ("lora(8)+gradient_mask(0.95)", "lora(8)+gradient_mask(0.7)"),
        ("mixout(0.7)", None),
    ],
)
def test_a_smaller_p_is_one_of_the_runs_own_method(method, advised, usual):
    found = [one for one in tried(record_of(1.09, 1.5, method=method)) if "smaller p" in one]
    assert found == ([] if advised is None else [f"a smaller p: --method '{advised}'"])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("loss", [1.1, 1.2, 2.1, 1e9])
@pytest.mark.parametrize("rate", [1e-5, 1e-4, 2e-4, 1e-3, 1e6])
def test_a_rate_is_not_to_be_raised_where_the_loss_has_risen_above_a_constant_answers(optimizer, loss, rate, usual):
    advised = [one for one in tried(record_of(loss, 1.5, rate=rate, optimizer=optimizer)) if "--learning-rate" in one]
    if loss < 1.15:  # where an untrained model lies, too: it may have been far below the usual one
        assert all("usual" in one for one in advised)
    else:
        [lower] = advised
        assert float(lower.partition("--learning-rate ")[2]) < rate


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("loss", [0.9, 1.1, 1.2, 2.1, 1e9])
@pytest.mark.parametrize("rate", [1e-9, 1e-5, 1e-4, 2e-4])
def test_a_rate_is_not_to_be_lowered_where_the_loss_is_what_it_was(optimizer, loss, rate, usual):
    """Far above a constant answer lies any untrained model of rare classes, tags or values."""
    record = record_of(loss, 2 * loss, rate=rate, optimizer=optimizer, began=1.001 * loss, score=0.9)
    rows = task([0] * 99 + [1], [0] * 9 + [1], ("a", "b"))  # a constant answer has 0.056
    advised = [one for one in judge(record, None, rows).split("; ") if "--learning-rate" in one]
    assert all(float(one.partition("--learning-rate ")[2]) >= rate for one in advised)
    assert advised or optimizer == "sgd" or rate >= 1e-4


@pytest.mark.parametrize(
    ("ran", "advice"),
    [
        ({"steps": 12}, "--epochs 25 (150 steps)"),
        ({"steps": 18, "epochs": 3.0}, "--epochs 25 (150 steps)"),
        ({"steps": 7, "epochs": 0.5}, "--epochs 11 (150 steps)"),
        ({"steps": 7, "max_steps": 7, "epochs": 0.5}, "--max-steps 150 (150 steps)"),
        ({"steps": 7, "max_steps": 7, "epochs": 9.0, "ran": 0.5}, "--max-steps 150 (150 steps)"),
        ({"steps": 18, "epochs": 30.0, "ran": 3.0, "patience": 2}, "a higher --patience than 2, or none"),
        ({"steps": 18, "max_steps": 90, "ran": 3.0, "patience": 2}, "a higher --patience than 2, or none"),
        ({"steps": 18, "epochs": 3.0, "patience": 2}, "--epochs 25 (150 steps)"),
        ({"steps": 140, "epochs": 30.0, "ran": 3.0, "patience": 2}, None),
    ],
)
def test_more_steps_are_counted_by_those_that_were_made(ran, advice):
    found = [one for one in tried(record_of(1.09, 1.5, optimizer="sgd", **ran)) if one.startswith("more steps: ")]
    assert found == ([] if advice is None else [f"more steps: {advice}"])


@pytest.mark.parametrize(
    ("ran", "advice"),
    [
        ({"steps": 200, "epochs": 4.0}, "--epochs 2"),
        ({"steps": 180, "epochs": 30.0, "ran": 6.0, "patience": 2}, "--epochs 3"),
        ({"steps": 209, "max_steps": 209}, "--max-steps 104"),
        ({"steps": 400, "epochs": 1.0}, "--epochs 0.5"),
        ({"steps": 200, "epochs": 0.5}, "--epochs 0.25"),
        ({"steps": 180, "epochs": 3.0}, "--epochs 1.5"),
        ({"steps": 135, "epochs": 0.4}, "--epochs 0.2"),
        ({"steps": 9000, "epochs": 250.0}, "--epochs 120"),
    ],
)
def test_so_are_fewer(ran, advice):
    assert tried(record_of(0.7, 1.5, **ran))[-1] == f"fewer steps, {advice}"
    assert float(advice.split()[1]) < ran.get("ran", ran.get("max_steps", ran.get("epochs")))
