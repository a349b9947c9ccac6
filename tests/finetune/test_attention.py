from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from mixout.finetune.attention import FloatAttention
from mixout.finetune.models import load
from mixout.finetune.train import finetune


@pytest.mark.parametrize("mask", [None, "bool", "additive"])
def test_narrow_attention_is_that_of_float32(mask):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 5).bfloat16().requires_grad_() for _ in range(3))
    given = None if mask is None else torch.rand(2, 1, 7, 7) < 0.7
    if given is not None:
        given[..., 0] = True
    if mask == "additive":
        given = torch.zeros(2, 1, 7, 7).masked_fill(~given, -1e4).bfloat16()
    with FloatAttention(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = scaled_dot_product_attention(query, key, value=value, attn_mask=given)
    assert found.dtype == torch.bfloat16
    wide = [tensor.detach().float().requires_grad_() for tensor in (query, key, value)]
    scores = wide[0] @ wide[1].mT / 5**0.5
    if given is not None:
        scores = scores + (given.float() if mask == "additive" else torch.zeros(()).masked_fill(~given, -torch.inf))
    expected = scores.softmax(-1) @ wide[2]
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)  # one rounding, and none before
    gradient = torch.randn_like(found)
    found.backward(gradient)
    expected.backward(gradient.float())
    for narrow, exact in zip((query, key, value), wide, strict=True):
        torch.testing.assert_close(narrow.grad.float(), exact.grad, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_dtypes_are_left_alone(dtype):
    query = torch.randn(1, 2, 3, 4, dtype=dtype)
    with FloatAttention():
        found = scaled_dot_product_attention(query, key=query, value=query)
    assert torch.equal(found, scaled_dot_product_attention(query, query, query))


class Watch(TorchFunctionMode):
    """Notes the dtype in which attention is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_a_transformers_model_is_reached_and_left_as_it_was():
    model = load("minilm", labels=("no", "yes"), init_seed=0).model.eval()
    before = copy.deepcopy(model.config.to_dict())
    batch = {"input_ids": torch.tensor([[101, 2023, 2003, 102]]), "attention_mask": torch.tensor([[1, 1, 1, 1]])}
    with Watch() as inside, FloatAttention(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch)
    with Watch() as after, torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch)
    assert inside.seen == [torch.float32] * 6
    assert after.seen == [torch.bfloat16] * 6
    assert model.config.to_dict() == before


def test_training_and_evaluation_in_bf16_widen_their_attention(settings, tmp_path):
    with Watch() as watch:
        finetune(settings(precision="bf16", epochs=1.0), tmp_path / "out")
    assert set(watch.seen) == {torch.float32}
