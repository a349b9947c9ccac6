"""A vision transformer of timm: what is mixed, masks in training, the plain model in evaluation."""

from __future__ import annotations

import copy

import pytest
import torch

import mixout

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("where", ["all", "paper"])
def test_a_vision_transformer(timm, where, dropped_columns):
    if timm is None:
        pytest.skip("timm is not installed")
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = timm.models.VisionTransformer(**size, proj_drop_rate=0.1, attn_drop_rate=0.1)
    plain, images = copy.deepcopy(model).eval(), torch.randn(6, 3, 16, 16)
    mixout.apply_(model, mixout.Mixout(0.5), where=where)
    heads = {"head"} if where == "all" else set()
    layers = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"} - ({"mlp.fc1"} if where == "paper" else set())
    assert set(mixout.coverage(model).mixed) == {f"blocks.{n}.{layer}" for n in range(2) for layer in layers} | heads
    assert not mixout.coverage(model).dropouts
    # With w = u every mask gives the plain model: the model's own dropouts are off, also that inside the attention.
    assert torch.allclose(model.train()(images), plain(images), atol=1e-6)

    steps, optimizer = dropped_columns(model), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.arange(6) % 3).backward()
        optimizer.step()
    assert steps[0].keys() == set(mixout.coverage(model).mixed)
    for name in steps[0]:
        assert len({step[name] for step in steps}) == 3, name
    plain.load_state_dict(model.state_dict())
    assert model.eval()(images).equal(plain(images))
    assert type(mixout.remove_(model).blocks[0].attn.qkv) is torch.nn.Linear
