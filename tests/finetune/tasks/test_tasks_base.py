"""Splits, fingerprints and few-sample subsets."""

from __future__ import annotations

import random
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixout.errors import InputError, MissingExtraError
from mixout.finetune.tasks import Split, Task, few_sample


def split_of(counts, shuffle=0):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    random.Random(shuffle).shuffle(labels)
    return Split(text=tuple(f"text {i}" for i in range(len(labels))), label=tuple(labels))


@settings(deadline=None)
@given(st.data(), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 5))
def test_subsets_have_the_size_every_class_and_its_share(data, counts, seed):
    split = split_of(counts, seed)
    size = data.draw(st.integers(len(counts), len(split)))
    subset = few_sample(split, size, seed)
    drawn = Counter(subset.label)
    assert len(subset) == size
    assert len(set(subset.text)) == size
    assert all(1 <= drawn[label] <= count for label, count in enumerate(counts))
    raised = sum(size * count < len(split) for count in counts)
    for label, count in enumerate(counts):
        # Off the exact share by less than a row, and by what the classes raised to one row took.
        assert -1 - raised < drawn[label] - size * count / len(split) < 1.0 + 1e-9
    truth = dict(zip(split.text, split.label, strict=True))
    assert all(truth[text] == label for text, label in zip(subset.text, subset.label, strict=True))


def test_subsets_depend_on_their_seed_alone():
    split = split_of([200, 100, 50])
    torch.manual_seed(1)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, again, other = few_sample(split, 35, 3), few_sample(split, 35, 3), few_sample(split, 35, 4)
    assert first == again
    assert first.fingerprint() != other.fingerprint()
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()
    assert Counter(first.label) == {0: 20, 1: 10, 2: 5}


def test_a_regression_is_drawn_without_classes_and_pairs_stay_together():
    split = Split(
        text=tuple(f"a{i}" for i in range(50)),
        pair=tuple(f"b{i}" for i in range(50)),
        label=tuple(i / 10 for i in range(50)),
    )
    subset = few_sample(split, 7, 0)
    assert len(subset) == 7
    for text, pair, label in zip(subset.text, subset.pair, subset.label, strict=True):
        assert text[1:] == pair[1:] == str(round(label * 10))
    assert few_sample(split, 50, 0) == split


@pytest.mark.parametrize("size", [0, 2, 31])
def test_sizes_that_cannot_be(size):
    with pytest.raises(InputError, match=rf"expected a training subset of 3 to 30 examples .*, got {size}; choose"):
        few_sample(split_of([10, 10, 10]), size, 0)


def test_without_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingExtraError, match=r"'numpy' .* few-sample subsets.*pip install \"mixout\[hf\]\""):
        few_sample(split_of([2, 2]), 2, 0)


def test_fingerprints_see_all_content_and_its_order():
    base = Split(text=("a", "b"), pair=("c", "d"), label=(0, 1))
    others = [
        Split(text=("b", "a"), pair=("c", "d"), label=(0, 1)),
        Split(text=("a", "b"), pair=("d", "c"), label=(0, 1)),
        Split(text=("a", "b"), pair=("c", "d"), label=(1, 0)),
        Split(text=("a", "b"), pair=("c", "d"), label=(0.0, 1.0)),
        Split(text=("a", "b"), label=(0, 1)),
        base.select([1, 0]),
        base.select([0]),
    ]
    prints = {split.fingerprint() for split in (base, *others)}
    assert len(prints) == len(others) + 1
    assert base.select([0, 1]).fingerprint() == base.fingerprint()
    assert all(len(print_) == 64 for print_ in prints)


def test_a_task_is_known_by_its_data_and_not_by_where_it_lay():
    split, small = split_of([2, 2]), split_of([1, 1])
    task = Task(name="n", train=split, dev=small, labels=("x", "y"), metrics=("f1",), metric="f1", source="Here.")
    moved = Task(name="m", train=split, dev=small, labels=("x", "y"), metrics=("f1",), metric="f1", source="There.")
    swapped = Task(name="n", train=small, dev=split, labels=("x", "y"), metrics=("f1",), metric="f1", source="Here.")
    assert task.fingerprint() == moved.fingerprint() != swapped.fingerprint()
