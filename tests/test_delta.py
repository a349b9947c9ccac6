"""Weights around u and w, against numpy and against their expectation."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mixout.delta import Delta
from mixout.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def make(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    anchors = {name: torch.randn_like(p) for name, p in model.named_parameters() if not name.startswith("2")}
    return model, Delta.of(model, anchors)


@pytest.mark.parametrize("unit", ["element", "input"])
def test_the_ends_are_the_weights_and_the_anchor_to_the_bit(unit):
    model, delta = make()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for act, wanted in (
        (lambda: delta.drop_(0.0, unit=unit, seed=1), "weights"),
        (lambda: delta.drop_(1.0, unit=unit, seed=1), "anchor"),
        (lambda: delta.interpolate_(1.0), "weights"),
        (lambda: delta.interpolate_(0.0), "anchor"),
    ):
        act()
        for name, p in model.named_parameters():
            head = name.startswith("2")  # has no anchor
            vector = unit == "input" and p.dim() == 1 and wanted == "anchor"
            if vector and not head:
                continue  # see the test of the units
            assert torch.equal(p, before[name] if head or wanted == "weights" else delta.anchors[name]), name


@given(t=st.floats(0, 1), seed=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_interpolation_is_linear(t, seed):
    model, delta = make(seed)
    delta.interpolate_(t)
    for name, w in delta.weights.items():
        u = delta.anchors[name]
        expected = u.double() + t * (w.double() - u.double())
        torch.testing.assert_close(model.get_parameter(name).double(), expected, atol=1e-6, rtol=1e-5)


@given(p=st.sampled_from([0.25, 0.5, 0.9]), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_each_element_is_dropped_or_rescaled(p, seed):
    """DARE as numpy would do it, with the mask read off the result."""
    model, delta = make()
    delta.drop_(p, unit="element", seed=seed)
    for name, w in delta.weights.items():
        w, u, got = (t.detach().double().numpy() for t in (w, delta.anchors[name], model.get_parameter(name)))
        dropped = np.abs(got - u) < 1e-6 * (1 + np.abs(u))
        kept = u + (w - u) / (1 - p)
        np.testing.assert_allclose(got, np.where(dropped, u, kept), rtol=1e-4, atol=1e-5)


def test_an_input_neuron_is_a_column_and_a_token_a_row():
    model, delta = make()
    delta.drop_(0.5, unit="input", seed=4)
    moved = {name: (model.get_parameter(name) - u).abs() > 1e-6 for name, u in delta.anchors.items()}
    rows, columns = moved["0.weight"], moved["1.weight"]
    assert all(bool(row.all()) or not row.any() for row in rows)
    assert all(bool(column.all()) or not column.any() for column in columns.t())
    assert torch.equal(model.get_parameter("1.bias"), delta.weights["1.bias"])


@pytest.mark.parametrize("groups", [1, 2])
def test_an_input_channel_of_a_transposed_convolution_is_a_row(groups):
    model = nn.Sequential(nn.ConvTranspose1d(16, 8, 3, groups=groups))
    delta = Delta.of(model, {"0.weight": torch.randn_like(model[0].weight)})
    delta.drop_(0.5, unit="input", seed=4)
    moved = (model[0].weight - delta.anchors["0.weight"]).abs() > 1e-6
    assert all(bool(row.all()) or not row.any() for row in moved)
    assert moved.any()
    assert not moved.all()


def test_an_unknown_unit_is_refused():
    _, delta = make()
    with pytest.raises(ValueError, match="expected unit"):
        delta.drop_(0.5, unit="outptu", seed=4)


@pytest.mark.parametrize("unit", ["element", "input"])
def test_the_mean_over_draws_is_the_fine_tuned_model(unit):
    model, delta = make()
    draws, p = 800, 0.7
    total = {name: torch.zeros_like(w) for name, w in delta.weights.items()}
    for seed in range(draws):
        delta.drop_(p, unit=unit, seed=seed)
        for name in total:
            total[name] += model.get_parameter(name).detach() / draws
    for name, w in delta.weights.items():
        sd = (w - delta.anchors[name]).abs() * (p / (1 - p) / draws) ** 0.5
        assert ((total[name] - w).abs() <= 5 * sd + 1e-5).all(), name


def test_a_draw_follows_from_its_seed_alone():
    model, delta = make()
    found = []
    for seed, stream in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(stream)
        delta.drop_(0.5, unit="element", seed=seed)
        found.append(model.get_parameter("1.weight").detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_state_dict_with_buffers_and_tied_names_is_an_anchor():
    """apply_(anchor=) takes one, so Delta.of does: buffers stay, a tied weight counts once."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[3].weight = model[2].weight
    base = copy.deepcopy(model).state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    delta = Delta.of(model, base)
    assert "3.weight" not in delta.weights
    delta.interpolate_(0.0)
    assert all(model.state_dict()[name].equal(value) for name, value in base.items())
    with pytest.raises(InputError, match="hold no parameter of this model"):
        Delta.of(model, {"other": torch.zeros(1)})
