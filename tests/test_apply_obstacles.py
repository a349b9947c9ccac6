"""What cannot be mixed is left alone and reported, never silently skipped."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import mixout
from dispatched import hooked, reasons
from mixout import Mixout

# Models of few layers, of which most cannot be mixed.
pytestmark = pytest.mark.filterwarnings("ignore::mixout.LowCoverageWarning")


def test_a_forward_patched_on_the_instance_is_reported():
    """accelerate's add_hook_to_module replaces module.forward: a class swap would not be seen."""
    model = hooked(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    mixout.apply_(model, Mixout(0.9))
    assert mixout.coverage(model).mixed == ("1",)
    assert "replaced on the instance" in reasons(model)["0"]
    with pytest.raises(mixout.NothingMixedError, match="replaced on the instance"):
        mixout.apply_(hooked(nn.Sequential(nn.Linear(4, 4))), Mixout(0.9))


def test_parametrized_layers_are_reported():
    """Trap: torch.nn.utils.parametrize recomputes on every read of .weight: a class swap must keep off."""

    class Double(nn.Module):
        def forward(self, w):
            return 2 * w

    layer, normed = nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4))
    parametrize.register_parametrization(layer, "weight", Double())
    model = nn.Sequential(nn.Linear(4, 4), layer, normed)
    keys = list(model.state_dict())
    mixout.apply_(model, Mixout(0.9))
    assert mixout.coverage(model).mixed == ("0",)
    assert {"1", "2"} <= set(mixout.coverage(model).bypassed)
    assert list(model.state_dict()) == keys


def test_the_mixing_itself_is_no_parametrization():
    """Trap: parametrize changes state-dict keys, refuses pickling, recomputes on every read of .weight."""
    layer = mixout.apply_(nn.Linear(4, 4), Mixout(0.5))
    assert not parametrize.is_parametrized(layer)
    assert layer.weight is layer._parameters["weight"]
    assert layer.weight.equal(layer.weight)


def test_weight_norm_and_pruned_layers_are_reported():
    pruned = prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = nn.utils.weight_norm(nn.Linear(4, 4))
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 4), pruned, normed), Mixout(0.9))
    assert mixout.coverage(model).mixed == ("0",)
    found = reasons(model)
    assert "computed by another tool" in found["1"]
    assert "computed by another tool" in found["2"]


def test_subclasses_and_non_floating_weights_are_reported():
    class Mine(nn.Linear):
        def forward(self, x):
            return x @ self.weight

    integer = nn.Linear(4, 4)
    integer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 4), Mine(4, 4), integer), Mixout(0.9))
    assert mixout.coverage(model).mixed == ("0",)
    assert "Mine, a subclass of Linear" in reasons(model)["1"]
    assert "int8" in reasons(model)["2"]


def test_a_layer_that_is_never_called_is_reported_after_training():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.called(x) @ self.read.weight

    model = mixout.apply_(Reads(), Mixout(0.9))
    assert mixout.coverage(model).mixed == ("called", "read")
    model.eval()(torch.randn(2, 4))
    assert mixout.coverage(model).mixed == ("called", "read")  # nothing known before a training pass
    model.train()(torch.randn(2, 4))
    assert mixout.coverage(model).bypassed == ("read",)
    assert "never called" in reasons(model)["read"]


class Named(nn.Linear):
    """A constructor and an attribute of its own, and the forward of its base."""

    def __init__(self, size, name):
        super().__init__(size, size)
        self.name = name


class Small(nn.Conv2d):
    def reset_parameters(self):
        nn.init.normal_(self.weight)


class Words(nn.Embedding):
    pass


@pytest.mark.parametrize(
    ("mine", "base", "x"),
    [
        (lambda: Named(4, "a"), lambda: nn.Linear(4, 4), torch.ones(2, 4)),
        (lambda: Small(4, 4, 1, bias=False), lambda: nn.Conv2d(4, 4, 1, bias=False), torch.ones(1, 4, 2, 2)),
        (lambda: Words(4, 4), lambda: nn.Embedding(4, 4), torch.arange(4)),
    ],
    ids=["Linear", "Conv2d", "Embedding"],
)
def test_a_subclass_that_keeps_the_forward_is_its_base(mine, base, x, duplicate):
    """Against the base class with the same weights and the same masks."""
    model, other = nn.Sequential(mine()), nn.Sequential(base())
    kind = type(model[0])
    other.load_state_dict(model.state_dict())
    for one in (model, other):
        mixout.apply_(one, Mixout(0.5), where=lambda *_: True, seed=1)
    assert mixout.coverage(model).mixed == ("0",)
    assert mixout.coverage(model).layers[0].type == kind.__name__
    with torch.no_grad():
        for one in (model, other):
            one[0].weight.add_(1.0)
    twin = duplicate(model)
    assert type(twin[0]) is type(model[0])
    assert isinstance(twin[0], kind)
    y = other(x)
    assert model(x).equal(y)
    assert twin(x).equal(y)
    assert getattr(twin[0], "name", None) == getattr(model[0], "name", None)
    assert type(mixout.apply_(nn.Sequential(mine()), Mixout(0.5), where=lambda *_: True)[0]) is type(model[0])
    for one in (model, twin):
        assert type(mixout.remove_(one)[0]) is kind


def test_a_subclass_with_a_convolution_of_its_own_is_left_alone():
    class Own(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, 2 * weight, bias)

    with pytest.raises(mixout.NothingMixedError, match="Own, a subclass of Conv2d"):
        mixout.apply_(Own(2, 2, 1), Mixout(0.5), where=lambda *_: True)


def test_a_frozen_layer_computes_plainly_and_says_so():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    mixout.apply_(model, Mixout(0.5))
    report = mixout.coverage(model)
    assert (report.mixed, report.plain) == (("1",), ("0",))
    assert report.layers[0].reason == "frozen: mixed once its weight requires a gradient"
    x = torch.randn(2, 4)
    state = torch.get_rng_state()
    assert model[0](x).equal(nn.functional.linear(x, model[0].weight, model[0].bias))
    assert torch.get_rng_state().equal(state)  # no mask is drawn
    model[0].requires_grad_(True)
    assert mixout.coverage(model).mixed == ("0", "1")
    with torch.no_grad():
        model[0].weight.add_(1.0)
    mixout.set_p_(model, 1.0)
    assert not model[0](x).equal(nn.functional.linear(x, model[0].weight, model[0].bias))


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_weights_that_are_lent_are_mixed_whatever_they_require(kind):
    layer = mixout.apply_(kind(4, 4), Mixout(1.0), where=lambda *_: True)
    x = torch.arange(4) if kind is nn.Embedding else torch.ones(2, 4)
    other = {"weight": torch.full((4, 4), 7.0)}
    assert torch.func.functional_call(layer, other, (x,)).equal(layer(x))


def test_a_model_that_is_frozen_all_over_warns():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    with pytest.warns(mixout.FrozenLayersWarning, match=r"none of the 2 .* requires a gradient"):
        mixout.apply_(model, Mixout(0.5))
    assert issubclass(mixout.FrozenLayersWarning, mixout.MixoutWarning)
    mixout.remove_(model)
    mixout.apply_(model, mixout.methods.Dropconnect(0.5))  # drops frozen weights too: its anchor is 0
