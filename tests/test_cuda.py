"""What a GPU computes is the definition, taken by hand in float64 from the mask that the pass has drawn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mixout
from mixout import passes
from mixout.methods import Mixconnect, Mixout


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("host_bound", [True, False])
@pytest.mark.parametrize("tokens", [48, 2048])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("method", [Mixout, Mixconnect])
def test_a_pass_on_a_gpu_is_the_definition(monkeypatch, method, p, tokens, host_bound, autocast):
    monkeypatch.setattr(passes, "SPARSE_ON_GPU_FROM", float("inf") if host_bound else 0)
    torch.manual_seed(0)
    model = mixout.apply_(nn.Sequential(nn.Linear(48, 40)), method(p)).cuda()
    layer = model[0]
    u = layer.weight.detach().double()
    with torch.no_grad():  # far enough from u to tell the one from the other
        layer.weight += torch.randn_like(layer.weight).sign() * (0.5 + torch.rand_like(layer.weight))
    w, b = (parameter.detach().double() for parameter in layer.parameters())
    # The first rows are the identity: their outputs are Phi.
    x = torch.cat([torch.eye(48), torch.randn(tokens - 48, 48)]).cuda().requires_grad_()
    seed = torch.randn(tokens, 40, device="cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        y = model(x)
    (y.float() * seed).sum().backward()

    seen = (y[:48].detach().double() - b).T
    mixed = u + (w - u) / (1 - p)
    kept = (seen - u).abs() > (seen - mixed).abs()
    assert kept.any()
    assert not kept.all()
    assert (kept == kept[0]).all() == (method is Mixout)  # a draw for a column, or for an element
    phi = torch.where(kept, mixed, u)
    far = {
        "output": apart(y, x.detach().double() @ phi.T + b),
        "input": apart(x.grad, seed.double() @ phi),
        "weight": apart(layer.weight.grad, seed.double().T @ x.detach().double() * kept / (1 - p)),
        "bias": apart(layer.bias.grad, seed.double().sum(dim=0)),
    }
    assert max(far.values()) < (1e-2 if autocast else 1e-5), far


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return float((found.detach().double() - expected).norm() / expected.norm())
