"""How far anchor_decay lets a weight go: the radius, relative radii, and strengths beyond one."""

import copy
import math

import numpy as np
import pytest
import torch
from decay_steps import ETA, LEFT, RATE, adamw, batches, net, sgd, step_of_nothing, train
from torch import nn

import mixout
from mixout import AnchorDecay
from mixout.finetune.optimizers import BERTAdam

pytestmark = pytest.mark.filterwarnings("ignore::mixout.DecayStrengthWarning")


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_(group["lr"] * (0.9 * momentum + 0.1 * p.grad).sign())
                momentum.lerp_(p.grad, 0.01)


@pytest.mark.parametrize("eta", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize(
    ("build", "largest_step"),
    [
        (lambda p, eta: torch.optim.AdamW(p, lr=eta, weight_decay=0.0), 1.0),
        (lambda p, eta: torch.optim.Adam(p, lr=eta), 1.0),
        (Lion, 1.0),
        (lambda p, eta: torch.optim.SGD(p, lr=eta), 2.0),
        (lambda p, eta: torch.optim.SGD(p, lr=eta, momentum=0.5), 4.0),
    ],
    ids=["adamw", "adam", "lion", "sgd", "momentum"],
)
def test_each_weight_stays_within_the_bound(build, largest_step, eta):
    """A gradient of 2 that always points one way: |w - u| < s / (eta rate), and near it where eta rate is small."""
    rate = 40.0
    model = mixout.apply_(nn.Linear(3, 3, bias=False).double(), AnchorDecay(rate))
    start = model.weight.detach().clone()
    optimizer = build(model.parameters(), eta)
    for _ in range(400):
        model.weight.grad = torch.full_like(model.weight, 2.0)
        optimizer.step()
        assert (model.weight - start).abs().max() < largest_step / rate * (1 + 1e-6)
    expected = largest_step * eta / math.expm1(eta * rate)
    torch.testing.assert_close((start - model.weight).detach(), torch.full_like(start, expected), rtol=1e-3, atol=1e-9)


def test_a_radius_is_one_over_the_rate():
    """The equation with 1 / radius, and the same run as with the rate."""
    by_radius, by_rate = mixout.apply_(net(), AnchorDecay(radius=1 / RATE)), mixout.apply_(net(), AnchorDecay(RATE))
    start = by_radius[0].weight.detach().clone()
    with torch.no_grad():
        by_radius[0].weight.add_(1.0)
    step_of_nothing(sgd(by_radius), by_radius)
    torch.testing.assert_close(by_radius[0].weight - start, torch.full_like(start, LEFT))
    with torch.no_grad():
        by_radius[0].weight.copy_(start)
    for model in (by_radius, by_rate):
        train(model, adamw(model), batches(4))
    assert all(a.equal(b) for a, b in zip(by_radius.parameters(), by_rate.parameters(), strict=True))


def test_the_bound_holds_with_any_schedule():
    """Lion moves every weight by the learning rate, whatever that is: |w - u| <= radius, and the recursion by hand."""
    radius, expected = 0.02, 0.0
    model = mixout.apply_(nn.Linear(3, 3, bias=False).double(), AnchorDecay(radius=radius))
    start = model.weight.detach().clone()
    optimizer = Lion(model.parameters(), lr=0.0)
    for eta in torch.logspace(-5, 0, 60).tolist() + torch.logspace(0, -5, 60).tolist() + [1.0, 1e-4] * 20:
        optimizer.param_groups[0]["lr"] = eta
        model.weight.grad = torch.full_like(model.weight, -1.0)
        optimizer.step()
        expected = math.exp(-eta / radius) * (expected + eta)
        torch.testing.assert_close((model.weight - start).detach(), torch.full_like(start, expected))
        assert expected <= radius


@pytest.mark.parametrize(
    ("eta", "farthest"), [(2e-5, 1.15), (2e-4, 2.82), (2e-3, 5.40), (4e-3, 5.63)], ids=lambda value: f"{value:g}"
)
def test_adam_without_bias_correction_goes_farther_at_first(eta, farthest):
    """By hand: step t is (1 - .9^t) / sqrt(1 - .999^t) long; the largest distance in radii, and where it ends."""
    radius = 0.02
    model = mixout.apply_(nn.Linear(1, 1, bias=False).double(), AnchorDecay(radius=radius))
    start = model.weight.detach().clone()
    optimizer = BERTAdam(model.parameters(), lr=eta, eps=0.0, weight_decay=0.0)
    gone, largest, expected = 0.0, 0.0, 0.0
    for step in range(1, 1501):
        model.weight.grad = torch.full_like(model.weight, -2.0)
        optimizer.step()
        length = eta * (1 - 0.9**step) / math.sqrt(1 - 0.999**step)
        expected = math.exp(-eta / radius) * (expected + length)
        gone = float((model.weight - start).detach())
        assert gone == pytest.approx(expected, rel=1e-9)
        largest = max(largest, gone / radius)
    assert largest == pytest.approx(farthest, abs=0.006)
    assert largest <= 5.63
    assert gone / radius == pytest.approx(1.0, abs=0.2)


def test_the_longest_step_of_adam():
    """Gradients that grow by beta_2 / beta_1 a step make it, by Cauchy and Schwarz: 7.27 learning rates."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0, eps=0.0)
    for _ in range(3000):  # until the bias corrections are 1
        weight.grad = torch.full_like(weight, 1e-30)
        optimizer.step()
    for step in range(200):
        before, weight.grad = float(weight.detach()), torch.full_like(weight, (0.999 / 0.9) ** step)
        optimizer.step()
    largest = (1 - 0.9) / math.sqrt((1 - 0.999) * (1 - 0.9**2 / 0.999))
    assert before - float(weight.detach()) == pytest.approx(largest, rel=0.03)
    assert largest == pytest.approx(7.27, abs=0.01)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_strength_beyond_one_does_not_overshoot(tensor):
    model = mixout.apply_(nn.Linear(3, 3, bias=False), AnchorDecay(1e4))
    start = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(ETA) if tensor else ETA)
    for _ in range(3):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), start, rtol=0, atol=1e-7)


def test_rates_of_numpy_are_numbers():
    assert AnchorDecay(np.float32(0.5)).rate == 0.5
    assert AnchorDecay(radius=np.float32(0.5)).strength == 2.0
    with pytest.raises(TypeError, match="expected rate to be a number"):
        AnchorDecay(True)


# A radius relative to the start.


def test_a_relative_radius_is_a_share_of_each_weights_root_mean_square():
    """After one step of SGD with the gradient 1 from u: w - u is -lr e^(-lr / r), with r for each weight of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(10)
    starts = [layer.weight.detach().clone() for layer in model]
    mixout.apply_(model, AnchorDecay(radius=0.5, relative=True))
    for layer in model:
        layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    used = mixout.radius_used(copy.deepcopy(model))
    for n, (layer, start) in enumerate(zip(model, starts, strict=True)):
        radius = 0.5 * start.double().square().mean().sqrt().item()
        went = torch.full_like(start, -0.1 * math.exp(-0.1 / radius))
        torch.testing.assert_close(layer.weight.detach() - start, went, rtol=1e-4, atol=1e-6)
        assert used[f"{n}.weight"] == pytest.approx(-went[0, 0].item() / radius, rel=1e-3)


def test_what_no_relative_radius_can_be_is_refused():
    with pytest.raises(ValueError, match="expected a radius with relative=True, got rate 200"):
        AnchorDecay(200, relative=True)
    with pytest.raises(ValueError, match="expected a start that is not 0 with relative=True"):
        mixout.apply_(net(), AnchorDecay(radius=0.1, relative=True), anchor=0)
    method = AnchorDecay(radius=0.1, relative=True)
    assert repr(method) == "AnchorDecay(radius=0.1, relative=True)"
    assert mixout.methods.parse(mixout.methods.spell(method)) == (method,)
    assert "weights decay" in str(mixout.coverage(net(), method))
