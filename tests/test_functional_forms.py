"""Which form is taken, and that they agree on the same masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mixout
from mixout import GradientMask, Mixout, functional, passes
from mixout.layers.forwards import Short
from mixout.ops import linear as forms
from mixout.streams import Stream


@pytest.fixture
def native(monkeypatch):
    """Switch the form on and off."""

    def switch(on):
        monkeypatch.setattr(passes, "NATIVE_ON_CPU_BELOW", 10**6 if on else 0)

    return switch


def step(method, **options):
    """Output and gradients of a pass under autocast, with masks from a seed of their own or from the global stream."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 8)).bfloat16().float()
    mixout.apply_(model, method, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x = torch.randn(64, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().square().sum().backward()
    return [y.float(), x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize(
    "method",
    [
        Mixout(0.1),
        Mixout(0.9),
        Mixout(1.0),
        Mixout(0.5, unit="output"),
        GradientMask(0.5),
        Mixout(0.5, gradient="paper"),
        Mixout(0.5, unit="element"),
    ],
    ids=mixout.methods.spell,
)
def test_with_the_same_coins_it_is_the_other_forms(native, method):
    native(False)
    expected = step(method, seed=7)
    native(True)
    for a, b in zip(step(method, seed=7), expected, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm()
        assert a.dtype == b.dtype


@pytest.mark.parametrize("options", [{"source": 0}, {"dtype": torch.bfloat16}], ids=["zero", "bfloat16"])
def test_any_anchor(native, options):
    native(False)
    anchor = mixout.Anchor(**options)
    expected = step(Mixout(0.5), seed=7, anchor=anchor)
    native(True)
    for a, b in zip(step(Mixout(0.5), seed=7, anchor=anchor), expected, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm()


def test_gaussian_coins(native):
    weight, anchor, x = torch.randn(8, 24, requires_grad=True), torch.randn(8, 24), torch.randn(40, 24)
    outputs = []
    for on in (False, True):
        native(on)
        with torch.autocast("cpu", torch.bfloat16):
            stream = Stream(3, "layer")
            outputs.append(functional.mixed_linear(x, weight, anchor, p=0.5, noise="gaussian", stream=stream).float())
    assert (outputs[0] - outputs[1]).norm() <= 0.02 * outputs[0].norm()


def test_it_is_taken_and_its_coins_follow_the_global_stream(native, monkeypatch):
    native(True)
    monkeypatch.setattr(Short, "fits", lambda *_: False)  # the short pass writes the same form out
    taken = []
    form = forms.native
    monkeypatch.setattr(forms, "native", lambda *args: taken.append(1) or form(*args))
    first, second = step(Mixout(0.5)), step(Mixout(0.5))
    assert len(taken) == 4
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    step(Mixout(0.5, gradient="paper"))
    assert len(taken) == 4


def test_the_coins_have_mean_one_whole_columns_and_the_right_rate(native):
    native(True)
    layer = mixout.apply_(nn.Sequential(nn.Linear(4000, 2, bias=False)), Mixout(0.7))[0]
    with torch.no_grad():
        layer.weight += 1
    with torch.autocast("cpu", torch.bfloat16):
        (grad,) = torch.autograd.grad(layer(torch.ones(1, 4000)).float().sum(), layer.weight)
    assert grad[0].equal(grad[1])
    kept = grad[0] != 0
    assert grad[0][kept].allclose(torch.tensor(1 / 0.3), rtol=1e-2)
    assert abs(float(kept.float().mean()) - 0.3) < 5 * (0.3 * 0.7 / 4000) ** 0.5


def test_it_keeps_what_plain_fine_tuning_keeps_under_autocast(native):
    native(True)
    layer = mixout.apply_(nn.Sequential(nn.Linear(64, 48)), Mixout(0.5))[0]
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with keep, torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(5, 64, requires_grad=True))
    assert [t.dtype for t in kept if t.numel() == layer.weight.numel()] == [torch.bfloat16]
