"""||w - u|| and the fingerprint, against plain arithmetic."""

import pytest
import torch
from torch import nn

import mixout
from mixout.anchor import fingerprint


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def test_distance_in_total_and_by_layer():
    model = mixout.apply_(net(), mixout.Mixout(0.5))
    with torch.no_grad():
        model[0].weight[0, 0] += 3.0
        model[2].weight[1, 1] -= 4.0
        model[0].bias += 100.0  # biases are not mixed and do not count
    distance = mixout.distance(model)
    assert distance.total == pytest.approx(5.0, rel=1e-6)
    assert distance.by_layer == pytest.approx({"0.weight": 3.0, "2.weight": 4.0}, rel=1e-6)


def test_distance_to_an_explicit_anchor_for_any_model():
    model, other = net(), net()
    with torch.no_grad():
        model[2].weight += 1.0
    assert mixout.distance(model, anchor=other).total == pytest.approx(6**0.5)
    assert mixout.distance(model, anchor=other.state_dict()).by_layer["0.weight"] == 0.0
    assert list(mixout.distance(model, anchor=other, where="2").by_layer) == ["2.weight"]
    zero = mixout.distance(model, anchor=0)
    assert zero.total == pytest.approx(torch.cat([model[i].weight.flatten() for i in (0, 2)]).norm().item())
    with pytest.raises(mixout.NotAppliedError, match="anchor"):
        mixout.distance(mixout.apply_(model, mixout.Dropout(0.0)))


def test_mixed_and_plain_models_are_measured_alike():
    model, other = net(), net()
    mixout.apply_(model, mixout.Mixout(0.5))
    with torch.no_grad():
        model[0].weight += 0.5
    held = mixout.distance(model)
    assert mixout.distance(model, anchor=other) == held
    assert mixout.distance(mixout.remove_(model), anchor=other) == held


def test_a_tied_weight_counts_once():
    """One parameter under two names is one parameter of ||w - u||."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    start = model[0].weight.detach().clone()
    mixout.apply_(model, mixout.Mixout(0.5))
    with torch.no_grad():
        model[0].weight += 1.0
    assert mixout.distance(model).total == pytest.approx(3.0, rel=1e-6)
    explicit = mixout.distance(model, anchor={"0.weight": start, "1.weight": start})
    assert explicit.total == pytest.approx(3.0, rel=1e-6)


def test_distance_is_accumulated_in_float64():
    """In bf16 the sum of 100,000 small squares would stop growing."""
    model = mixout.apply_(nn.Linear(1000, 100, bias=False).bfloat16(), mixout.Mixout(0.5), anchor=0)
    with torch.no_grad():
        model.weight.fill_(1.0)
    assert mixout.distance(model).total == pytest.approx(100_000**0.5, rel=1e-12)


def test_the_fingerprint_tells_names_values_shapes_and_dtypes_apart():
    ones = torch.ones(2, 3)
    base = fingerprint({"a": ones})
    others = [
        {"b": ones},
        {"a": ones.T},
        {"a": ones.double()},
        {"a": ones * 2},
        {"a": None},
        {},
        {"a": ones, "b": None},
        {"a": torch.full((2, 3), 1 + 1e-7)},
    ]
    assert len({base, *map(fingerprint, others)}) == len(others) + 1
    assert fingerprint({"a": ones.clone()}) == base
    strided = torch.ones(3, 2).T
    assert fingerprint({"a": strided}) == base


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_fingerprint_takes_any_dtype_and_order(dtype):
    a, b = torch.randn(3, 2).to(dtype), torch.zeros(0, 2, dtype=dtype)
    assert fingerprint({"a": a, "b": b}) == fingerprint({"b": b, "a": a})
    assert len(fingerprint({"a": a})) == 64


def test_the_fingerprint_does_not_move_with_the_weights():
    model = mixout.apply_(net(), mixout.Mixout(0.5))
    before = mixout.fingerprint(model)
    with torch.no_grad():
        model[0].weight += 1.0
    assert mixout.fingerprint(model) == before
    mixout.remove_(model)
    assert mixout.fingerprint(mixout.apply_(model, mixout.Mixout(0.5))) != before
