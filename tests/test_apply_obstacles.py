"""What cannot be mixed is left alone and reported, never silently skipped."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import mixout
from mixout import Mixout


def reasons(model):
    return {layer.name: layer.reason for layer in mixout.coverage(model).layers if layer.kind == "bypassed"}


def test_multihead_attention_is_reported_not_mixed():
    """Trap: nn.MultiheadAttention never calls out_proj.forward and packs in_proj_weight."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, dropout=0.1), "linear": nn.Linear(8, 8)})
    mixout.apply_(model, Mixout(0.9))
    coverage = mixout.coverage(model)
    assert coverage.mixed == ("linear",)
    assert set(coverage.bypassed) == {"attention", "attention.out_proj"}
    assert "without calling" in reasons(model)["attention.out_proj"]
    assert "in_proj_weight" in reasons(model)["attention"]
    assert "attention.out_proj" in str(coverage)
    with pytest.raises(mixout.NothingMixedError, match="MultiheadAttention"):
        mixout.apply_(nn.MultiheadAttention(8, 2), Mixout(0.9))


def test_the_attention_of_torchs_transformer_is_reported_and_its_feed_forward_mixed():
    model = mixout.apply_(nn.TransformerEncoderLayer(8, 2, 16), Mixout(0.9))
    coverage = mixout.coverage(model)
    assert coverage.mixed == ("linear1", "linear2")
    assert set(coverage.bypassed) == {"self_attn", "self_attn.out_proj"}
    model(torch.randn(3, 2, 8)).sum().backward()
    assert mixout.coverage(model).mixed == ("linear1", "linear2")


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
        mixout.apply_(model, mixout.Dropconnect(0.1), anchor=model.state_dict())
    with pytest.raises(mixout.NothingMixedError, match=r"dropouts to set to 0\.1"):
        mixout.apply_(model, mixout.Dropout(0.1))
    assert type(model[0]) is nn.Linear


def test_a_state_of_another_seed_is_refused():
    first = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.5), seed=1)
    second = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.5), seed=2)
    second.load_state_dict(first.state_dict())
    with pytest.raises(mixout.MixoutError, match=r"seed=2 and scope='all', got .* seed=1 and"):
        mixout.load_state_dict_(second, mixout.state_dict(first))


def test_training_refuses_the_dtypes_that_eval_refuses():
    layer = mixout.apply_(nn.Linear(4, 3), mixout.Mixout(0.5))
    with pytest.raises(ValueError, match=r"expected x in torch.float32, .* got torch.float64"):
        layer(torch.randn(2, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        layer.eval()(torch.randn(2, 4, dtype=torch.float64))
