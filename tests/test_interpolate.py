"""interpolate_ against u + t (w - u) in float64, and against the authors' way: a new state dict."""

import copy

import pytest
import torch
from torch import nn

import mixout
import mixout.delta
from mixout import AnchorDecay, GradientMask, Mixout
from mixout.methods import Dropout


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


@torch.no_grad()
def trained(model):
    """Every parameter is moved, as by training."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


def bits(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(
        a[key].contiguous().view(torch.uint8).equal(b[key].contiguous().view(torch.uint8)) for key in a
    )


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("method", [Mixout(0.5), AnchorDecay(radius=0.1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_anchored_weights_lie_between(t, method, dtype):
    model = mixout.apply_(net().to(dtype), method)
    start = bits(model)
    end = bits(trained(model))
    assert mixout.interpolate_(model, t) is model
    for name, parameter in model.named_parameters():
        u, w = start[name].double(), end[name].double()
        expected = u + t * (w - u) if parameter.dim() == 2 else w
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=2 * eps, atol=2 * eps)
        assert parameter.requires_grad
        assert parameter.grad_fn is None


@pytest.mark.parametrize("method", [Mixout(0.5), AnchorDecay(radius=0.1)], ids=str)
def test_both_ends_are_bit_for_bit(method):
    model = net()
    with torch.no_grad():
        model[0].weight[0, :3] = torch.tensor([-0.0, 0.0, 1e-42])
    start = bits(mixout.apply_(model, method))
    trained(model)
    with torch.no_grad():
        model[0].weight[1, :3] = torch.tensor([float("inf"), -0.0, float("nan")])
    end = bits(model)
    assert same_bits(bits(mixout.interpolate_(model, 1)), end)
    mixout.interpolate_(model, 0)
    assert same_bits(bits(model), {name: start[name] if p.dim() == 2 else end[name] for name, p in end.items()})
    model.load_state_dict(end)
    assert same_bits(bits(model), end)


@pytest.mark.parametrize("t", [0.0, 0.5])
def test_the_anchor_zero(t):
    model = mixout.apply_(net(), Mixout(0.5), anchor=0)
    weight = model[0].weight.detach().clone()
    mixout.interpolate_(model, t)
    assert model[0].weight.equal(t * weight)


def test_another_anchor_moves_biases_and_norms_too():
    """As the authors do: theta = (1 - t) theta_0 + t theta_1 for every key of the state dict."""
    start, model = net().double(), trained(net().double())
    end = {name: value.clone() for name, value in model.state_dict().items()}
    expected = {name: (1 - 0.3) * start.state_dict()[name] + 0.3 * end[name] for name in end}
    mixout.interpolate_(model, 0.3, start)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    model.load_state_dict(end)
    mixout.interpolate_(model, 0.3, start.state_dict(), where="^2$")
    assert all(model.state_dict()[name].equal(end[name]) for name in end if not name.startswith("2."))
    torch.testing.assert_close(model[2].bias, expected["2.bias"], rtol=1e-12, atol=1e-12)


def test_tied_weights_move_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    start = model[0].weight.detach().clone()
    mixout.apply_(model, [Mixout(0.5), AnchorDecay(radius=0.1)])
    with torch.no_grad():
        model[0].weight.add_(1.0)
    mixout.interpolate_(model, 0.5)
    torch.testing.assert_close(model[0].weight.detach(), start + 0.5)
    mixout.interpolate_(model, 0.5, {"0.weight": start, "1.weight": start})
    torch.testing.assert_close(model[0].weight.detach(), start + 0.25)
    assert model[1].weight is model[0].weight


def test_a_missing_anchor_changes_nothing():
    model = trained(net())
    before = bits(model)
    with pytest.raises(mixout.AnchorMismatchError, match=r"hold '2\.weight'"):
        mixout.interpolate_(
            model,
            0.5,
            {
                "0.weight": torch.zeros(3, 4),
                "0.bias": torch.zeros(3),
                "1.weight": torch.zeros(3),
                "1.bias": torch.zeros(3),
            },
        )
    for method in (GradientMask(0.5), Dropout(0.0)):
        with pytest.raises(mixout.NotAppliedError):
            mixout.interpolate_(mixout.apply_(model, method), 0.5)
        mixout.remove_(model)
    with pytest.raises(mixout.NotAppliedError):
        mixout.interpolate_(model, 0.5)
    assert same_bits(bits(model), before)


@pytest.mark.parametrize(
    ("t", "error"),
    [(1.5, ValueError), (-0.1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)],
)
def test_t_is_a_number_from_zero_to_one(t, error):
    with pytest.raises(error, match="expected t"):
        mixout.interpolate_(mixout.apply_(net(), Mixout(0.5)), t)


def test_a_kept_anchor_of_another_dtype():
    model = net()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.bfloat16())
        model[2].weight.copy_(model[2].weight.bfloat16())
    start = bits(mixout.apply_(model, Mixout(0.5), anchor=mixout.Anchor(dtype=torch.bfloat16)))
    end = bits(trained(model))
    mixout.interpolate_(model, 0.5)
    torch.testing.assert_close(model[0].weight.detach(), (start["0.weight"] + end["0.weight"]) / 2)
    mixout.interpolate_(model, 0)
    assert model[0].weight.equal(start["0.weight"])


def test_a_compiled_model_and_a_part():
    model = mixout.apply_(net(), Mixout(0.5))
    start = bits(model)
    trained(model)
    compiled = torch.compile(model, backend="eager")
    assert mixout.interpolate_(compiled, 0.0) is compiled
    assert model[0].weight.equal(start["0.weight"])
    trained(model)
    mixout.interpolate_(model[2], 0.0)
    assert model[2].weight.equal(start["2.weight"])
    assert not model[0].weight.equal(start["0.weight"])


@pytest.mark.parametrize("start", [lambda model: model, lambda model: model.state_dict()], ids=["model", "state"])
def test_a_start_that_is_the_weights_themselves_is_refused(start):
    model = nn.Sequential(nn.Linear(3, 2))
    for call in (
        lambda: mixout.interpolate_(model, 0.5, start(model)),
        lambda: mixout.delta.drop_(model, 0.5, start(model)),
    ):
        with pytest.raises(mixout.InputError, match=r"a start with weights of its own.*copy them before you train"):
            call()


def test_a_frozen_body_may_be_shared_with_the_start():
    body = nn.Linear(3, 3).requires_grad_(False)
    one, other = (nn.Sequential(body, nn.Linear(3, 2)) for _ in range(2))
    mixout.interpolate_(one, 0.5, other, where="^0")
    assert mixout.distance(one, one).total == 0


@pytest.mark.parametrize("call", [mixout.interpolate_, mixout.delta.drop_])
def test_integers_that_differ_are_refused_before_anything_moves(call):
    model = nn.Sequential(nn.Linear(4, 4), nn.Module())
    model[1].packed = nn.Parameter(torch.ones(3, dtype=torch.uint8), requires_grad=False)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight.add_(1)
        model[1].packed.add_(1)
    before = model[0].weight.clone()
    with pytest.raises(mixout.InputError, match=r"'1\.packed' of torch\.uint8, whose start is another; dequantise"):
        call(model, 0.5, start)
    assert model[0].weight.equal(before)


def test_integers_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.Module())
    model[1].table = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    start = copy.deepcopy(model.state_dict())
    trained = model[0].weight.detach() + 1
    for call, expected in ((mixout.interpolate_, trained - 0.5), (mixout.delta.drop_, None)):
        with torch.no_grad():
            model[0].weight.copy_(trained)
        call(model, 0.5, start)
        if expected is not None:
            torch.testing.assert_close(model[0].weight.detach(), expected)
        assert model[1].table.eq(1).all()


def test_the_distance_of_complex_weights():
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64)), mixout.OutputAnchor(1.0))
    with torch.no_grad():
        model[0].weight.add_(1j)
    assert mixout.distance(model).total == pytest.approx(4.0)


def test_distance_shrinks_by_t():
    model = trained(mixout.apply_(net().double(), AnchorDecay(radius=0.1)))
    before = mixout.distance(model).total
    mixout.interpolate_(model, 0.25)
    assert mixout.distance(model).total == pytest.approx(0.25 * before, rel=1e-12)


def test_without_a_start_it_is_asked_for_and_apply_is_not_advised():
    with pytest.raises(
        mixout.NotAppliedError, match=r"interpolate_\(model, 0\.5, start\), .* apply_ would take the trained"
    ):
        mixout.interpolate_(nn.Linear(2, 2), 0.5)


def test_zero_is_no_start_to_go_back_to():
    model = mixout.apply_(nn.Linear(2, 2), mixout.methods.Dropconnect(0.5))
    before = model.weight.clone()
    with pytest.raises(mixout.NotAppliedError, match="expected the start to go back to"):
        mixout.interpolate_(model, 0.5)
    assert model.weight.equal(before)
    both = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    mixout.apply_(both, {"^0": "mixout(0.5)", "^1": "dropconnect(0.5)"}, where="all")
    first, second = (layer.weight.clone() for layer in both)
    with torch.no_grad():
        both[0].weight.add_(1.0)
    mixout.interpolate_(both, 0.5)
    torch.testing.assert_close(both[0].weight, first + 0.5)
    assert both[1].weight.equal(second)
    held = mixout.apply_(nn.Linear(2, 2), "dropconnect(0.5)+anchor_decay(1.0)")
    start = held.weight.clone()
    with torch.no_grad():
        held.weight.add_(1.0)
    assert mixout.distance(held).total == pytest.approx(2.0)
    torch.testing.assert_close(mixout.interpolate_(held, 0.5).weight, start + 0.5)
    mixout.interpolate_(model, 0.5, {"weight": before, "bias": model.bias}, where="all")
    assert model.weight.equal(before)
