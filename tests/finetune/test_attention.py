from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from mixout.finetune.attention import float_attention
from mixout.finetune.models import load
from mixout.finetune.train import finetune

NARROW = torch.autocast("cpu", dtype=torch.bfloat16)
OWN = torch.nn.functional.scaled_dot_product_attention


class Watch(TorchFunctionMode):
    """Notes the dtype in which attention is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is OWN:
            assert not torch.is_autocast_enabled("cpu") or args[0].dtype == torch.bfloat16
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32])  # rotary embeddings come out in float32
@pytest.mark.parametrize("mask", [None, "bool", "additive"])
def test_attention_under_autocast_is_that_of_float32(mask, given):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 5).bfloat16().to(given).requires_grad_() for _ in range(3))
    chosen = None if mask is None else torch.rand(2, 1, 7, 7) < 0.7
    if chosen is not None:
        chosen[..., 0] = True
    if mask == "additive":
        chosen = torch.zeros(2, 1, 7, 7).masked_fill(~chosen, -1e4).bfloat16()
    with float_attention(), NARROW:
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value=value, attn_mask=chosen)
    assert found.dtype == torch.bfloat16
    wide = [tensor.detach().float().requires_grad_() for tensor in (query, key, value)]
    scores = wide[0] @ wide[1].mT / 5**0.5
    if chosen is not None:
        scores = scores + (chosen.float() if mask == "additive" else torch.zeros(()).masked_fill(~chosen, -torch.inf))
    expected = scores.softmax(-1) @ wide[2]
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)  # one rounding, and none before
    gradient = torch.randn_like(found)
    found.backward(gradient)
    expected.backward(gradient.float())
    for narrow, exact in zip((query, key, value), wide, strict=True):
        torch.testing.assert_close(narrow.grad.float(), exact.grad, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_without_autocast_attention_is_left_alone(dtype):
    query = torch.randn(1, 2, 3, 4, dtype=dtype)
    with Watch() as watch, float_attention():
        found = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert watch.seen == [dtype]
    assert torch.equal(found, OWN(query, query, query))


def test_the_function_is_torchs_again_afterwards():
    with float_attention():
        assert torch.nn.functional.scaled_dot_product_attention is not OWN
    with pytest.raises(KeyError), float_attention():
        raise KeyError
    assert torch.nn.functional.scaled_dot_product_attention is OWN


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_block_computes_the_same(reentrant):
    start = torch.randn(1, 2, 9, 4).bfloat16()

    def block(x):
        with NARROW:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    grads = []
    for run in (block, lambda x: checkpoint(block, x, use_reentrant=reentrant)):
        x = start.clone().requires_grad_()
        with float_attention():
            run(x).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("widened", [True, False])
def test_a_transformers_model_is_reached_and_left_as_it_was(widened):
    model = load("minilm", labels=("no", "yes"), init_seed=0).model.eval()
    before = copy.deepcopy(model.config.to_dict())
    batch = {"input_ids": torch.tensor([[101, 2023, 2003, 102]]), "attention_mask": torch.tensor([[1, 1, 1, 1]])}
    with Watch() as watch, float_attention() if widened else nullcontext(), torch.no_grad(), NARROW:
        model(**batch)
    assert watch.seen == [torch.float32 if widened else torch.bfloat16] * 6
    assert model.config.to_dict() == before


def test_training_and_evaluation_in_bf16_widen_their_attention(settings, causal, tmp_path):
    for number, chosen in enumerate((settings(precision="bf16", epochs=1.0), causal(precision="bf16", epochs=1.0))):
        with Watch() as watch:
            finetune(chosen, tmp_path / str(number))
        assert set(watch.seen) == {torch.float32}
