"""What a run is measured against, against numpy; and what is said of one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from mixout.finetune.outcome import constant_losses, judge
from mixout.finetune.tasks import Split, Task
from mixout.finetune.tasks import Split as Documents
from mixout.finetune.tasks import Task as Corpus


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
    settings = SimpleNamespace(
        class_weights="none", learning_rate=1e-4, optimizer="sgd", epochs=2.0, methods=(), seed=0, precision="fp32"
    )
    record = SimpleNamespace(
        settings=settings, status="finished", steps=4, metric="accuracy", score=score, chance=0.5,
        training=[SimpleNamespace(loss=training)], evaluations=[SimpleNamespace(loss=dev)],
    )  # fmt: skip
    found = judge(record, None, rows)
    assert found[: len(said)] == said
    assert bool(found) == bool(said)


@pytest.mark.parametrize(
    ("rate", "advice"),
    [
        (1e-5, ["more steps", "the usual learning rate for this model: --learning-rate 1e-4", "another seed"]),
        (1e-4, ["more steps", "twice the learning rate: --learning-rate 2e-4", "another seed"]),
        (1e-3, ["a lower learning rate, usual for this model: --learning-rate 1e-4", "more steps", "another seed"]),
    ],
)
def test_what_to_try_comes_in_order(rate, advice, monkeypatch: pytest.MonkeyPatch):
    """The usual rate is 1e-4. At ten times that more steps would not help, so they come second."""
    monkeypatch.setattr("mixout.finetune.defaults.learning_rate", lambda settings, model: (1e-4, ""))
    settings = SimpleNamespace(
        class_weights="none", learning_rate=rate, optimizer="adamw", epochs=2.0, methods=(), seed=0
    )
    record = SimpleNamespace(
        settings=settings, status="finished", steps=4, metric="accuracy", score=0.25, chance=0.5,
        training=[SimpleNamespace(loss=2.1)], evaluations=[SimpleNamespace(loss=1.5)],
    )  # fmt: skip
    said = judge(record, None, task([0, 0, 1, 1, 2, 2], [0, 1, 3, 3], ("a", "b", "c", "d")))
    tried = said.partition("Try, in this order: ")[2].split("; ")
    assert [one.startswith(start) for one, start in zip(tried, advice, strict=False)] == [True] * 3
