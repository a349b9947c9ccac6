"""The work of a step, counted by hand and by torch's own counter, and the floor that follows from it."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixout.bench.cases import CASES, build, inputs
from mixout.bench.floor import ADAMW, ELEMENTWISE, Work, count

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_encoder_by_hand(bert):
    """Width 16, intermediate 24, 2 layers, 4 x 6 = 24 tokens; 3 GEMMs of 2 N in out."""
    layer = 4 * 6 * 24 * 16 * 16 + 2 * 6 * 24 * 16 * 24  # q, k, v, o; up and down
    pooler = 6 * 4 * 16 * 16  # first tokens only
    work = count(bert)
    assert work.mixed == 2 * layer + pooler
    assert work.unmixed == 6 * 4 * 16 * 2  # the classifier
    assert work.attention == 2 * 6 * 2 * 4 * 6 * 6 * 16  # layers, GEMMs, FLOPs, batch, scores, width
    # Embeddings of tokens and segments on 24, of positions on 6; norm; two norms and an activation a layer; tanh.
    elements = 24 * 16 + 24 * 16 + 6 * 16 + 24 * 16 + 2 * (2 * 24 * 16 + 24 * 24) + 4 * 16
    scores = 2 * 4 * 4 * 6 * 6  # layers, heads, batch
    parameters = sum(p.numel() for p in build(bert, "cpu").parameters())
    assert work.other == 3 * ELEMENTWISE * (elements + scores) + ADAMW * parameters


def test_a_decoder_by_hand(llama):
    """16 tokens; half as many heads of keys and values; three feed-forward linears; causal."""
    layer = 6 * 16 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)
    work = count(llama)
    assert work.mixed == 2 * layer
    assert work.unmixed == 6 * 16 * 16 * 40  # the output embedding, tied or not
    assert work.attention == 2 * 6 * 2 * (2 * 8 * 8 / 2) * 16


def test_gemms_are_what_torch_counts(bert):
    model = build(bert, "cpu")
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(**inputs(bert, "cpu")).loss.backward()
    work = count(bert)
    assert counter.get_total_flops() == work.mixed + work.unmixed + work.attention


def test_the_count_computes_nothing_and_leaves_no_trace():
    """A model of a billion parameters is counted; the random state is as before."""
    before = torch.get_rng_state()
    work = count(replace(CASES["llama-1b"], layers=1))
    assert work.mixed == 6 * 4096 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert torch.get_rng_state().equal(before)


def test_the_floor():
    work = Work(mixed=60, unmixed=20, attention=15, other=5)
    assert work.total == 100
    assert work.floor(0.0) == 1
    assert work.floor(0.9) == pytest.approx((60 * (2 + 0.1) / 3 + 40) / 100)
    assert work.floor(1.0) == pytest.approx(0.8)
