"""What cannot be mixed is left alone and reported, never silently skipped."""

import copy
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import mixout
from mixout import Mixout

# Models of few layers, of which most cannot be mixed.
pytestmark = pytest.mark.filterwarnings("ignore::mixout.LowCoverageWarning")


def reasons(model):
    return {layer.name: layer.reason for layer in mixout.coverage(model).layers if layer.kind == "bypassed"}


def hooked(model):
    """As accelerate dispatches a large model: the forward is replaced on the instance."""
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(model[0], hooks.ModelHook())
    return model


def test_a_forward_patched_on_the_instance_is_reported():
    """accelerate's add_hook_to_module replaces module.forward: a class swap would not be seen."""
    model = hooked(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    mixout.apply_(model, Mixout(0.9))
    assert mixout.coverage(model).mixed == ("1",)
    assert "replaced on the instance" in reasons(model)["0"]
    with pytest.raises(mixout.NothingMixedError, match="replaced on the instance"):
        mixout.apply_(hooked(nn.Sequential(nn.Linear(4, 4))), Mixout(0.9))


def test_a_forward_patched_after_apply_does_not_break_remove():
    """The patched forward holds the mixed class's method; after remove_ the model must train as a plain one."""
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Mixout(0.9))
    hooked(model)
    model(torch.randn(2, 4)).sum().backward()
    mixout.remove_(model)
    model(torch.randn(2, 4)).sum().backward()


def test_coverage_knows_that_a_layer_patched_after_apply_is_still_mixed_when_it_is():
    """accelerate's wrapper calls the old, mixing forward: what coverage says must be what happens."""
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Mixout(1.0))
    hooked(model)
    x = torch.randn(2, 4)
    before = model[0](x)
    with torch.no_grad():
        model[0].weight.zero_()
    mixes = bool(model[0](x).equal(before))  # p = 1: the anchor, so the weights do not matter
    assert ("0" in mixout.coverage(model).mixed) == mixes


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


def test_remove_copes_with_a_dropout_that_is_gone():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1), nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 2)))
    mixout.apply_(model, mixout.Mixout(0.5))
    model[1] = nn.Identity()
    mixout.remove_(model)
    assert type(model[0]) is nn.Linear
    assert model[2][0].p == 0.2
    mixout.apply_(model, mixout.Mixout(0.5))


def test_an_anchor_that_nothing_would_use_is_an_error():
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="which takes none"):
        mixout.apply_(model, mixout.methods.Dropconnect(0.1), anchor=model.state_dict())
    with pytest.raises(mixout.NothingMixedError, match=r"dropouts to set to 0\.1"):
        mixout.apply_(model, mixout.methods.Dropout(0.1))
    assert type(model[0]) is nn.Linear


def test_a_state_of_another_seed_is_refused():
    first = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.5), seed=1)
    second = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.5), seed=2)
    second.load_state_dict(first.state_dict())
    with pytest.raises(mixout.MixoutError, match=r"seed=2 and scope='all', got .* seed=1 and"):
        mixout.load_state_(second, mixout.save_state(first))


def test_training_refuses_the_dtypes_that_eval_refuses():
    layer = mixout.apply_(nn.Linear(4, 3), mixout.Mixout(0.5))
    with pytest.raises((ValueError, RuntimeError)):
        layer(torch.randn(2, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        layer.eval()(torch.randn(2, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (0.9, r"such as mixout.Mixout\(0.9\) or .*, got 0.9"),
        (None, "got None"),
        (mixout.Mixout, r"got <class .*; write Mixout\(...\), with its arguments"),
        ([mixout.Mixout(0.5), 0.1], "got \\[Mixout"),
        ({"mixout": 0.5}, "expected a method"),
    ],
    ids=str,
)
def test_what_is_no_method_is_a_clear_error(method, message):
    with pytest.raises(TypeError, match=message):
        mixout.apply_(nn.Linear(4, 3), method)


@pytest.mark.parametrize("text", ["mixout(0.9)", ["mixout(0.9)"]])
def test_text_counts_as_the_methods_it_names(text):
    assert mixout.coverage(mixout.apply_(nn.Linear(4, 3), text)).methods == "mixout(0.9)"
    model = mixout.apply_(nn.Linear(4, 3), "mixout(0.9)+anchor_decay(0.1)")
    assert mixout.save_state(model)["methods"] == "mixout(0.9)+anchor_decay(0.1)"
    both = mixout.apply_(nn.Linear(4, 3), ["mixout(0.9)", mixout.AnchorDecay(0.1)])
    assert mixout.save_state(both)["methods"] == "mixout(0.9)+anchor_decay(0.1)"


@pytest.mark.parametrize("p", [np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2)], ids=repr)
def test_p_may_be_any_real_number(p):
    for kind in (
        mixout.Mixout,
        mixout.Mixconnect,
        mixout.methods.Dropconnect,
        mixout.GradientMask,
        mixout.methods.Dropout,
    ):
        assert kind(p) == kind(0.5)
        assert repr(kind(p)) == repr(kind(0.5))
    layer = mixout.apply_(nn.Linear(4, 3), mixout.Mixout(0.1))
    mixout.set_p_(layer, p)
    assert mixout.save_state(layer)["p"] == 0.5
    with pytest.raises(ValueError, match="expected p in"):
        mixout.Mixout(p + 1)


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


def test_a_lazy_model_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3), nn.Dropout(0.1))
    for method in (Mixout(0.5), mixout.AnchorDecay(0.1)):
        with pytest.raises(mixout.MixoutError, match=r"'1' \(LazyLinear\) has no weights yet.* run one forward pass"):
            mixout.apply_(model, method)
    assert [type(m) for m in model] == [nn.Linear, nn.LazyLinear, nn.Dropout]
    assert model[2].p == 0.1
    model(torch.ones(1, 4))
    assert mixout.coverage(mixout.apply_(model, Mixout(0.5))).mixed == ("0", "1")


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.5)


def normed(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


def spectral(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.spectral_norm(layer)


TOOLS = [pruned, normed, spectral, parametrizations.weight_norm, parametrizations.spectral_norm]


@pytest.mark.parametrize("change", TOOLS, ids=["prune", "weight_norm", "spectral_norm", "parametrized", "spectral"])
@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.Conv1d(4, 4, 1)], ids=["linear", "conv"])
def test_a_weight_that_a_tool_computes_after_apply_is_never_mixed_in_silence(change, layer):
    """Mixing would bring pruned weights back and leave W / sigma, in training passes only."""
    model = nn.Sequential(copy.deepcopy(layer), copy.deepcopy(layer))
    mixout.apply_(model, Mixout(0.5), where=lambda *_: True)
    change(model[0])
    x = torch.ones(2, 4, 1) if isinstance(layer, nn.Conv1d) else torch.ones(2, 4)
    with pytest.raises(mixout.MixoutError, match=r"'0' is computed by another tool.* call remove_ first, then prune"):
        model(x)
    model.eval()(x)
    assert mixout.coverage(model).mixed == ("1",)
    assert "computed by another tool since apply_" in reasons(model)["0"]
    with pytest.raises(mixout.MixoutError, match=r"'0.weight' is computed by another tool"):
        mixout.distance(model)
    assert len(mixout.fingerprint(model)) == 64
    mixout.save_state(model)


@pytest.mark.parametrize("change", TOOLS[:3], ids=["prune", "weight_norm", "spectral_norm"])
def test_remove_then_prune_then_apply(change):
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Mixout(0.5))
    change(model[0])
    mixout.remove_(model)  # also where the tool came first
    assert type(model[0]) is nn.Linear
    model(torch.ones(2, 4)).sum().backward()
    mixout.apply_(model, Mixout(0.5))
    assert mixout.coverage(model).mixed == ("1",)
    model(torch.ones(2, 4)).sum().backward()


def test_replicas_of_data_parallel_hold_plain_tensors():
    layer = mixout.apply_(nn.Linear(4, 3), Mixout(1.0))
    replica = layer._replicate_for_data_parallel()
    replica.weight, replica.bias = layer.weight + 1.0, layer.bias + 0.0
    assert replica(torch.ones(1, 4)).equal(layer(torch.ones(1, 4)))


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
    with pytest.warns(mixout.FrozenLayersWarning, match=r"none of the 2 layers .* requires a gradient"):
        mixout.apply_(model, Mixout(0.5))
    assert issubclass(mixout.FrozenLayersWarning, mixout.MixoutWarning)
    mixout.remove_(model)
    mixout.apply_(model, mixout.methods.Dropconnect(0.5))  # drops frozen weights too: its anchor is 0


def test_pruning_after_apply_is_refused_by_each_method():
    x = torch.randn(2, 4)

    def decays(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(x).sum().backward()
        optimizer.step()

    passes = {
        Mixout(0.5): lambda model: model(x),
        mixout.AnchorDecay(1.0): decays,
        mixout.OutputAnchor(1.0): lambda model: mixout.output_penalty(model, x, model(x)),
    }
    for method, trains in passes.items():
        model = mixout.apply_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), method)
        prune.l1_unstructured(model[0], "weight", 0.5)
        with pytest.raises(mixout.MixoutError, match=r"pruned|pruning"):
            trains(model)
        trains(mixout.apply_(mixout.remove_(model), method))  # pruned first, it trains


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(mixout.MixoutError, match=r"inference_mode.*call it outside"):
        mixout.apply_(nn.Sequential(nn.Linear(4, 4)), Mixout(0.5))
