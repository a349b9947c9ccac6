"""AnchorDecay(selective=True) against the authors' rule, written down once more, and on cases worked out by hand."""

import pytest
import torch
from torch import nn

import mixout
from mixout import AnchorDecay, distances
from mixout.methods import decay


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()


def batches(steps):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(steps)]


def loss_of(model, x):
    return model(x).pow(2).sum()


BUILDS = {
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0),
    "fused": lambda model: torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0, fused=True),
}


@torch.no_grad()
def authors_rule(w, before, start, grad, strength):
    """Condition and ratio of AdamSPD: hardtanh((|w'-u| - |w-u|) / |w'-u|, 0, 1) where -<g, w - u> < 0."""
    condition = -torch.sum(torch.mul(grad, before - start))
    if condition >= 0:
        return False
    now, then = torch.norm(w - start), torch.norm(before - start)
    ratio = torch.nn.functional.hardtanh((now - then) / now, 0, 1)
    w.sub_(strength * ratio * (w - start))
    return bool(ratio > 0)


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("closure", [False, True])
def test_a_training_is_the_authors(build, strength, closure):
    model, oracle = mixout.apply_(net(), AnchorDecay(strength, selective=True)), net()
    start = [p.detach().clone() for p in oracle.parameters()]
    mine, theirs = build(model), build(oracle)
    acted = []
    for x in batches(30):

        def compute(x=x):
            mine.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            return loss

        if closure:
            mine.step(compute)
        else:
            compute()
            mine.step()
        theirs.zero_grad()
        loss_of(oracle, x).backward()
        before = [p.detach().clone() for p in oracle.parameters()]
        theirs.step()
        for p, b, u in zip(oracle.parameters(), before, start, strict=True):
            if p.dim() == 2:  # never biases and norms
                acted.append(authors_rule(p, b, u, p.grad, strength))
    assert 5 < sum(acted) < len(acted) - 5  # else nothing was compared
    for a, b in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


class Adds(torch.optim.Optimizer):
    """A step of a given length, whatever the gradient."""

    def __init__(self, params, by):
        super().__init__(params, {"by": by})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(group["by"])


@pytest.mark.parametrize(
    ("gradient", "by", "rate", "expected"),
    [
        (1.0, 0.5, 1.0, 1.0),  # away, though the gradient leads back: r = .5 / 1.5, taken back whole
        (1.0, 0.5, 0.5, 1.25),  # or in half
        (1.0, 0.5, 0.0, 1.5),
        (1.0, 0.5, 9.0, 0.0),  # never beyond the anchor
        (-1.0, 0.5, 1.0, 1.5),  # the gradient leads away too
        (0.0, 0.5, 1.0, 1.5),
        (1.0, -0.5, 1.0, 0.5),  # the step leads back
        (1.0, -1.0, 1.0, 0.0),  # on the anchor: 0 / 0
        (1.0, -3.0, 1.0, -1.0),  # beyond it, at twice the distance: r = 1/2
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_number_by_hand(gradient, by, rate, expected, dtype):
    """No learning rate is needed."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    mixout.apply_(model, AnchorDecay(rate, selective=True), anchor=0)
    with torch.no_grad():
        model.weight.fill_(1.0)
    model.weight.grad = torch.full_like(model.weight, gradient)
    Adds(model.parameters(), by).step()
    tolerance = 2**-7 if dtype is torch.bfloat16 else 1e-6
    torch.testing.assert_close(
        model.weight.detach(), torch.full_like(model.weight, expected), rtol=tolerance, atol=tolerance
    )


def test_the_rule_is_one_of_the_whole_weight():
    """Two entries: <g, w - u> = 2 - 1, |w - u| from 5 to 10, so half of the way is taken back in both."""
    model = nn.Linear(2, 1, bias=False).double()
    mixout.apply_(model, AnchorDecay(1.0, selective=True), anchor=0)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
    model.weight.grad = torch.tensor([[2 / 3, -1 / 4]], dtype=torch.float64)
    Adds(model.parameters(), torch.tensor([[3.0, 4.0]], dtype=torch.float64)).step()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[3.0, 4.0]], dtype=torch.float64))


def test_the_first_step_and_a_frozen_weight_are_left_alone():
    model, free = mixout.apply_(net(), AnchorDecay(1.0, selective=True)), net()
    model[2].requires_grad_(False)
    free[2].requires_grad_(False)
    for one in (model, free):
        optimizer = BUILDS["momentum"](one)
        loss_of(one, batches(1)[0]).backward()
        optimizer.step()
    assert all(a.equal(b) for a, b in zip(model.parameters(), free.parameters(), strict=True))


def test_no_bound_is_claimed():
    model = mixout.apply_(net(), AnchorDecay(1.0, selective=True))
    assert mixout.radius_used(model) == {}
    assert mixout.save_state(model)["methods"] == "anchor_decay(1.0, selective=true)"


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels last"])
def test_blocks_make_no_difference(layout, anchored, monkeypatch):
    """The rules go through a weight in blocks: here of 3 numbers, or of single rows."""
    monkeypatch.setattr(distances, "_BLOCK", 3)
    w, u, g = (
        torch.randn(6, 4, 2, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1, 2)
    )
    f = torch.rand(w.shape, dtype=torch.float64).bfloat16()
    lay = {
        "contiguous": lambda t: t.clone(),
        "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    }[layout]
    start = torch.zeros_like(w) if not anchored else u
    found = decay.before(lay(w), lay(u) if anchored else None, lay(g))
    assert float(found.agreement) == pytest.approx(float((g * (w - start)).sum()), rel=1e-12)
    assert float(found.norm) == pytest.approx(float((w - start).norm()), rel=1e-12)
    weighted = lay(w)
    decay.shrink_weighted_(weighted, lay(u) if anchored else None, lay(f), -0.7)
    torch.testing.assert_close(weighted, start + torch.exp(-0.7 * f.double()) * (w - start), rtol=1e-12, atol=1e-13)
    moved = lay(start + 1.5 * (w - start))
    then = decay.Before(torch.tensor(1.0, dtype=torch.float64), (w - start).norm())
    decay.shrink_selectively_(moved, lay(u) if anchored else None, then, 1.0)
    torch.testing.assert_close(moved, w, rtol=1e-12, atol=1e-12)
