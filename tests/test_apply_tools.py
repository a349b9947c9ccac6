"""Tools that change a layer after apply_: pruning, weight norm, parametrizations, hooks. Never mixed in silence."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import parametrizations, prune

import mixout
from dispatched import hooked, reasons
from mixout import Mixout

# Models of few layers, of which most cannot be mixed.
pytestmark = pytest.mark.filterwarnings("ignore::mixout.LowCoverageWarning")


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


def test_remove_copes_with_a_dropout_that_is_gone():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1), nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 2)))
    mixout.apply_(model, mixout.Mixout(0.5))
    model[1] = nn.Identity()
    mixout.remove_(model)
    assert type(model[0]) is nn.Linear
    assert model[2][0].p == 0.2
    mixout.apply_(model, mixout.Mixout(0.5))


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


@pytest.mark.parametrize("method", ["mixout(0.375)", "mixconnect(0.375)", "mixout(0.375, every=2)"])
def test_a_pass_on_fake_tensors_leaves_nothing_for_later_passes(method):
    """What is kept from pass to pass, by a layer or for all models, must not be of FakeTensorMode."""
    model = mixout.apply_(
        nn.Sequential(nn.Linear(8, 4)), method, anchor={"0.weight": torch.zeros(4, 8)}, where=mixout.ALL
    )
    other = mixout.apply_(nn.Sequential(nn.Linear(8, 4)), "mixout(0.375)", anchor=0, where=mixout.ALL)
    if "every" in method:
        model(torch.ones(1, 8))  # a seed that follows from random numbers has no fake value
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(model(torch.ones(1, 8))) is FakeTensor
    for net in (model, other):
        with torch.no_grad():
            net[0].weight.fill_(1.0)
        entries = net(torch.eye(8)) - net[0].bias
        torch.testing.assert_close(entries, (entries > 0.5) * 1.6)
