"""||w - u|| against plain arithmetic in float64."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mixout
from mixout import distances
from mixout.distances import blocks, distance, norm
from mixout.integrations import measures


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def test_distance_in_total_and_by_layer():
    model = mixout.apply_(net(), mixout.Mixout(0.5))
    with torch.no_grad():
        model[0].weight[0, 0] += 3.0
        model[2].weight[1, 1] -= 4.0
        model[0].bias += 100.0  # biases are not mixed and do not count
    found = mixout.distance(model)
    assert found.total == pytest.approx(5.0, rel=1e-6)
    assert found.by_layer == pytest.approx({"0.weight": 3.0, "2.weight": 4.0}, rel=1e-6)


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
        mixout.distance(mixout.apply_(model, mixout.methods.Dropout(0.0)))


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
    """In bf16 the sum of 100,000 small squares would stop growing, in float32 that of blocks would be off by 1e-4."""
    model = mixout.apply_(nn.Linear(1000, 100, bias=False).bfloat16(), mixout.Mixout(0.5), anchor=0)
    with torch.no_grad():
        model.weight.fill_(1.0)
    assert mixout.distance(model).total == pytest.approx(100_000**0.5, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 700_000), (700_000, 3), (1, 1_000_003), (5,), (), (0, 4)])
def test_distance_is_float64s(shape, dtype):
    """Oracle: the whole difference in float64. Rows larger than a block, last blocks that are smaller, nothing."""
    torch.manual_seed(0)
    u = torch.randn(shape).to(dtype)
    w = (u + 0.01 * torch.randn(shape)).to(dtype)
    for weight, anchor in ((w, u), (w, None), (w.t(), u.t()) if w.dim() == 2 else (w, u)):
        expected = (weight.double() - (0 if anchor is None else anchor.double())).norm().item()
        assert distance({"a": (weight, anchor)}).total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-15])
def test_tiny_differences_count(scale):
    """w = u (1 + 1e-7): a difference of one or two units in the last place, whose square float32 may not hold."""
    torch.manual_seed(0)
    u = scale * torch.randn(1000, 300)
    w = u * (1 + 1e-7)
    expected = (w.double() - u.double()).norm().item()
    assert expected > 0
    assert distance({"a": (w, u)}).total == pytest.approx(expected, rel=1e-6)


def test_a_weight_that_has_not_moved_is_read_once(monkeypatch):
    reads = []
    monkeypatch.setattr(distances, "blocks", lambda *args, **options: reads.append(args) or blocks(*args, **options))
    assert distance({"a": (torch.ones(300, 300), torch.ones(300, 300))}).total == 0
    assert len(reads) == 1


def test_weight_and_anchor_may_differ_in_dtype_and_layout():
    torch.manual_seed(0)
    w = torch.randn(300, 2000)
    for u in (torch.randn(300, 2000).bfloat16(), torch.randn(300, 2000).double(), torch.randn(2000, 300).t()):
        expected = (w.double() - u.double()).norm().item()
        assert distance({"a": (w, u)}).total == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_weights_size_is_made(dtype):
    class Largest(TorchDispatchMode):
        """The largest tensor in memory of its own that an operation returns."""

        bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in known:
                    self.bytes = max(self.bytes, tensor.nbytes)
            return result

    w, u = torch.randn(2, 1000, 1000).to(dtype)
    step = 2**10  # each view of w and u begins at one of these
    known = {t.data_ptr() + step * i for t in (w, u) for i in range(t.nbytes // step)}
    with Largest() as largest:
        distance({"a": (w, u)})
    assert 0 < largest.bytes <= 4 * 2**18


def test_the_radius_used_is_the_largest_entry_over_the_radius():
    model = net()
    where = mixout.Where(include="^[02]$")
    mixout.apply_(model, mixout.AnchorDecay(radius=0.5), where=where)
    assert mixout.radius_used(model) == {"0.weight": 0.0, "2.weight": 0.0}
    with torch.no_grad():
        model[0].weight[0, 0] += 0.25
        model[0].weight[1, 1] -= 0.375
        model[0].bias += 100.0  # biases do not decay
    assert mixout.radius_used(model) == pytest.approx({"0.weight": 0.75, "2.weight": 0.0}, rel=1e-6)
    assert mixout.radius_used(model[0]) == pytest.approx({"weight": 0.75}, rel=1e-6)
    assert measures(model)["anchor_radius_used"] == pytest.approx(0.75, rel=1e-6)
    by_rate = mixout.apply_(net(), mixout.AnchorDecay(4.0), anchor=0)
    expected = 4.0 * by_rate[0].weight.abs().max().item()
    assert mixout.radius_used(by_rate)["0.weight"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", [mixout.Mixout(0.5), mixout.AnchorDecay(1.0, decoupled=False)], ids=str)
def test_no_radius_is_used_where_nothing_bounds(method):
    model = mixout.apply_(net(), method)
    assert mixout.radius_used(model) == {}
    assert "anchor_radius_used" not in measures(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 700_000), (1, 1_000_003), (5,), (), (0, 4)])
def test_the_largest_entry_is_float64s(shape, dtype):
    torch.manual_seed(0)
    u = torch.randn(shape).to(dtype)
    w = (u + 0.01 * torch.randn(shape)).to(dtype)
    difference = (w.double() - u.double()).abs().flatten()
    expected = difference.max().item() if difference.numel() else 0.0
    assert norm(w, u, math.inf) == pytest.approx(expected, rel=1e-6)


def test_the_distance_to_a_source_is_that_to_the_anchors_of_every_kind_of_layer():
    layers = {"gru": nn.GRU(4, 3), "attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(3, 2)}
    model = nn.ModuleDict(layers)
    source = {name: torch.zeros_like(p) for name, p in model.named_parameters() if not name.startswith("head")}
    mixout.apply_(model, mixout.Mixout(0.5), anchor=source)
    by_anchor, by_source = mixout.distance(model), mixout.distance(model, source)
    assert by_anchor.by_layer.keys() == by_source.by_layer.keys()
    assert by_anchor.total == pytest.approx(by_source.total)
    assert "head.weight" not in by_source.by_layer
    for bad in ({}, {"head.weight": torch.zeros(2, 3)}):
        with pytest.raises(mixout.AnchorMismatchError):
            mixout.distance(model, bad, where=mixout.ALL)
