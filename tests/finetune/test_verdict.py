"""What a run is measured against, against numpy; and what is said of one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mixout.finetune.outcome import constant_losses
from mixout.finetune.tasks import Split, Task
from mixout.finetune.tasks.documents import Corpus, Documents


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
