"""Weights around u and w, against numpy and against their expectation."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mixout
from mixout.delta import drop_

pytestmark = pytest.mark.usefixtures("one_thread")
BODY = mixout.Where(include=r"[01]", types=nn.Module)


def make(seed=0):
    """A model, its trained weights and its anchors, which lack a head."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    anchors = {name: torch.randn_like(p) for name, p in model.named_parameters() if not name.startswith("2")}
    return model, copy.deepcopy(model.state_dict()), anchors


@pytest.mark.parametrize("unit", ["element", "input"])
@pytest.mark.parametrize(("p", "end"), [(0.0, "weights"), (1.0, "anchor")])
def test_the_ends_are_the_weights_and_the_anchor_to_the_bit(unit, p, end):
    model, weights, anchors = make()
    assert drop_(model, p, anchors, unit=unit, seed=1, where=BODY) is model
    for name, parameter in model.named_parameters():
        stays = name.startswith("2") or end == "weights" or (unit == "input" and parameter.dim() == 1)
        assert torch.equal(parameter, weights[name] if stays else anchors[name]), name


@given(p=st.sampled_from([0.25, 0.5, 0.9]), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_each_element_is_dropped_or_rescaled(p, seed):
    """DARE as numpy would do it, with the mask read off the result."""
    model, weights, anchors = make()
    drop_(model, p, anchors, seed=seed, where=BODY)
    for name, anchor in anchors.items():
        w, u, got = (t.detach().double().numpy() for t in (weights[name], anchor, model.get_parameter(name)))
        dropped = np.abs(got - u) < 1e-6 * (1 + np.abs(u))
        kept = u + (w - u) / (1 - p)
        np.testing.assert_allclose(got, np.where(dropped, u, kept), rtol=1e-4, atol=1e-5)


def test_an_input_neuron_is_a_column_and_a_token_a_row():
    model, weights, anchors = make()
    drop_(model, 0.5, anchors, unit="input", seed=4, where=BODY)
    moved = {name: (model.get_parameter(name) - u).abs() > 1e-6 for name, u in anchors.items()}
    rows, columns = moved["0.weight"], moved["1.weight"]
    assert all(bool(row.all()) or not row.any() for row in rows)
    assert all(bool(column.all()) or not column.any() for column in columns.t())
    assert torch.equal(model.get_parameter("1.bias"), weights["1.bias"])


@pytest.mark.parametrize("groups", [1, 2])
def test_an_input_channel_of_a_transposed_convolution_is_a_row(groups):
    model = nn.Sequential(nn.ConvTranspose1d(16, 8, 3, groups=groups, bias=False))
    anchor = torch.randn_like(model[0].weight)
    drop_(model, 0.5, {"0.weight": anchor}, unit="input", seed=4)
    moved = (model[0].weight - anchor).abs() > 1e-6
    assert all(bool(row.all()) or not row.any() for row in moved)
    assert moved.any()
    assert not moved.all()


def test_what_is_wrong_is_refused_and_changes_nothing():
    model, weights, anchors = make()
    with pytest.raises(ValueError, match="expected unit"):
        drop_(model, 0.5, anchors, unit="outptu", where=BODY)
    with pytest.raises(ValueError, match="expected p in"):
        drop_(model, 1.5, anchors, unit="input", where=BODY)
    with pytest.raises(mixout.AnchorMismatchError, match=r"'2\.weight'"):
        drop_(model, 0.5, anchors)
    assert all(weight.equal(weights[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("unit", ["element", "input"])
def test_the_mean_over_draws_is_the_fine_tuned_model(unit):
    model, weights, anchors = make()
    draws, p = 800, 0.7
    total = {name: torch.zeros_like(w) for name, w in anchors.items()}
    for seed in range(draws):
        drop_(model, p, anchors, unit=unit, seed=seed, where=BODY)
        for name in total:
            total[name] += model.get_parameter(name).detach() / draws
        model.load_state_dict(weights)
    for name, u in anchors.items():
        sd = (weights[name] - u).abs() * (p / (1 - p) / draws) ** 0.5
        assert ((total[name] - weights[name]).abs() <= 5 * sd + 1e-5).all(), name


def test_a_draw_follows_from_its_seed_alone():
    model, weights, anchors = make()
    found = []
    for seed, stream in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(stream)
        found.append(drop_(model, 0.5, anchors, seed=seed, where=BODY)[1].weight.detach().clone())
        model.load_state_dict(weights)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("of", ["state dict", "model"])
def test_buffers_stay_and_a_tied_weight_is_dropped_once(of):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(40, 40), nn.Linear(40, 40))
    model[3].weight = model[2].weight
    base = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
        model[1].running_mean.add_(1.0)
    drop_(model, 0.5, base if of == "model" else base.state_dict(), seed=2)
    assert model[3].weight is model[2].weight
    left = (model[2].weight - base[2].weight).detach().round().unique()
    assert left.tolist() == [0.0, 2.0]  # twice dropped, a quarter would be 4
    assert model[1].running_mean.eq(1).all()


@pytest.mark.parametrize("kind", ["embedding", "Conv1D", "grouped", "attention"])
def test_an_input_is_dropped_as_of_a_plain_model_where_the_layer_is_mixed(kind):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    build = {
        "embedding": lambda: nn.Embedding(12, 5),
        "Conv1D": lambda: conv1d(6, 9),
        "grouped": lambda: nn.Conv1d(8, 6, 3, groups=2),
        "attention": lambda: nn.MultiheadAttention(6, 2),
    }[kind]
    torch.manual_seed(0)
    plain = nn.Sequential(build())
    start = {name: torch.randn_like(p) for name, p in plain.named_parameters()}
    mixed = mixout.apply_(copy.deepcopy(plain), mixout.Mixout(0.5), where=mixout.Where(types=nn.Module))
    assert mixout.coverage(mixed).mixed
    anywhere = mixout.Where(types=nn.Module)
    for model in (plain, mixed):
        drop_(model, 0.5, start, unit="input", seed=3, where=anywhere)
    for name, weight in plain.named_parameters():
        assert mixed.get_parameter(name).equal(weight), name


def test_no_anchor_is_refused():
    with pytest.raises(TypeError, match="got None"):
        drop_(nn.Linear(2, 2), 0.5, None)
