"""One mask entry for a whole layer, or for a block of layers: they train in turn, as in LISA."""

import copy

import pytest
import torch
from torch import nn

import mixout
from mixout import GradientMask, Mixout


class Blocks(nn.Module):
    """Two blocks of two linears, and a head outside of them."""

    def __init__(self, width=6):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)) for _ in range(8))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("gradient", ["exact", "paper"])
def test_blocks_train_in_turn(gradient):
    """Against plain gradients: all weights of a block at once, drawn anew each period; biases always."""
    p = 0.6
    torch.manual_seed(3)
    plain = Blocks().double()
    model = mixout.apply_(copy.deepcopy(plain), GradientMask(p, unit="layer", every=2, gradient=gradient), seed=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen, scale = [], 1.0 if gradient == "paper" else 1 / (1 - p)
    for _ in range(60):
        torch.manual_seed(5)
        x = torch.randn(3, 6).double()
        (own, expected) = (gradients_at(one, x) for one in (model, plain))
        on = [bool(own[f"blocks.{n}.0.weight"].any()) for n in range(8)]
        for name, value in expected.items():
            place = name.split(".")
            inside = place[0] == "blocks"
            if not name.endswith("weight"):
                torch.testing.assert_close(own[name], value)
            elif inside:
                torch.testing.assert_close(own[name], value * scale * on[int(place[1])])
        seen.append(on)
        optimizer.step()
    assert all(seen[n] == seen[n + 1] for n in range(0, 60, 2))
    assert any(seen[n] != seen[n + 2] for n in range(0, 58, 2))
    share = sum(map(sum, seen)) / (60 * 8)
    assert abs(share - (1 - p)) < 4 * (p * (1 - p) / 240) ** 0.5


def gradients_at(model, x):
    model.zero_grad()
    model(x).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", [nn.Embedding, nn.Conv2d, nn.LSTM, nn.MultiheadAttention])
def test_a_layer_of_any_kind_is_at_its_anchor_or_not(kind):
    """Mixout with unit='layer': Phi is u, or u + (w - u)/(1-p), for every weight of the layer at once."""
    sizes = {nn.Embedding: (5, 4), nn.Conv2d: (4, 6, 3), nn.LSTM: (4, 4), nn.MultiheadAttention: (4, 2)}[kind]
    given = {nn.Embedding: torch.arange(5)[None], nn.Conv2d: torch.randn(2, 4, 5, 5)}.get(kind, torch.randn(3, 2, 4))
    inputs = [given] * 3 if kind is nn.MultiheadAttention else [given]
    torch.manual_seed(0)
    model = mixout.apply_(
        kind(*sizes), Mixout(0.5, unit="layer", every=2), where=mixout.Where(types=(kind,)), anchor=0, seed=1
    )

    def output(module):
        found = module(*inputs)
        return (found[0] if isinstance(found, tuple) else found).detach()

    at = []
    for factor in (0.0, 2.0):
        twin = mixout.remove_(copy.deepcopy(model))
        with torch.no_grad():
            for weight in twin.parameters():
                weight.mul_(factor if weight.dim() > 1 else 1.0)
        at.append(output(twin))
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.0), set()
    for _ in range(12):
        found = output(model)
        (state,) = [n for n, one in enumerate(at) if found.allclose(one, atol=1e-5)]
        seen.add(state)
        model.zero_grad()
        optimizer.step()
    assert seen == {0, 1}
