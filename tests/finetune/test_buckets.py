from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixout.finetune.batches import Buckets
from mixout.finetune.train import finetune
from mixout.finetune.trainer import TextTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


def padded(lengths: list[int], order: list[int], size: int) -> int:
    """Tokens with padding, batch by batch."""
    batches = [order[at : at + size] for at in range(0, len(order), size)]
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300),
    size=st.integers(1, 33),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_example_comes_once(lengths, size, seed):
    buckets = Buckets(lengths, batch_size=size, seed=seed)
    assert len(buckets) == len(lengths)
    assert sorted(buckets) == list(range(len(lengths)))


def test_seed_and_epoch_decide_and_nothing_else():
    lengths = np.random.default_rng(0).integers(5, 128, 200).tolist()
    buckets = Buckets(lengths, batch_size=16, seed=3)
    state = torch.random.get_rng_state()
    first = list(buckets)
    assert torch.equal(state, torch.random.get_rng_state())
    assert list(buckets) == first
    buckets.set_epoch(1)
    assert list(buckets) != first
    buckets.set_epoch(0)
    assert list(buckets) == first == list(Buckets(lengths, batch_size=16, seed=3))
    assert list(Buckets(lengths, batch_size=16, seed=4)) != first


def test_little_padding_and_still_a_shuffle():
    lengths = np.random.default_rng(1).lognormal(4, 0.6, 2000).clip(8, 128).astype(int).tolist()
    buckets = Buckets(lengths, batch_size=32, seed=0)
    orders = []
    for epoch in range(3):
        buckets.set_epoch(epoch)
        orders.append(list(buckets))
    shuffled = np.random.default_rng(2).permutation(2000).tolist()
    assert padded(lengths, shuffled, 32) > 1.5 * sum(lengths)
    for order in orders:
        assert padded(lengths, order, 32) < 1.2 * sum(lengths)
        # Long and short batches take turns: the first half is no longer than the second.
        means = [np.mean([lengths[row] for row in half]) for half in (order[:1000], order[1000:])]
        assert means[0] == pytest.approx(means[1], rel=0.2)
    # Who meets whom changes.
    meetings = [{frozenset(order[at : at + 32]) for at in range(0, 1984, 32)} for order in orders]
    assert not meetings[0] & meetings[1]


def test_the_remainder_is_last_and_any_examples():
    lengths = list(range(1, 43))
    orders = []
    for epoch in range(4):
        buckets = Buckets(lengths, batch_size=8, seed=0)
        buckets.set_epoch(epoch)
        orders.append(list(buckets))
    for order in orders:
        # Full batches hold neighbours in length: sorted inside.
        assert all(order[at : at + 8] == sorted(order[at : at + 8]) for at in range(0, 40, 8))
    assert len({tuple(order[40:]) for order in orders}) == 4


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The token lists of every batch that is trained on, in order, with their padding."""
    seen: list[list[list[int]]] = []
    step = TextTrainer.training_step

    def spy(self, model, inputs, *args):
        seen.append(inputs["input_ids"].tolist())
        return step(self, model, inputs, *args)

    monkeypatch.setattr(TextTrainer, "training_step", spy)
    return seen


def test_a_run_trains_on_them(settings, tmp_path, batches):
    def run(**changes) -> list[list[list[int]]]:
        batches.clear()
        finetune(settings(evaluate="end", **changes), tmp_path / str(len(list(tmp_path.iterdir()))))
        return list(batches)

    def examples(found: list[list[list[int]]]) -> list[tuple[int, ...]]:
        return sorted(tuple(token for token in row if token) for batch in found for row in batch)

    mixed, bucketed = run(), run(batching="bucketed")
    assert [len(batch) for batch in bucketed] == [8, 8, 8, 8, 8, 2] * 2
    assert examples(bucketed[:6]) == examples(bucketed[6:]) == examples(mixed[:6])
    padding = [sum(row.count(0) for batch in found for row in batch) for found in (mixed, bucketed)]
    assert padding[1] < 0.5 * padding[0]
    assert bucketed[:6] != bucketed[6:]
    # The data seed decides, and neither method nor other seeds.
    assert run(batching="bucketed", method="dropout(0.1)", mask_seed=5, init_seed=5) == bucketed
    assert run(batching="bucketed", data_seed=1) != bucketed
