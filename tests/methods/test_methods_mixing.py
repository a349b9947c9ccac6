"""Each mixing method's card: what it does to a layer, against the definition."""

import dataclasses
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import mixout
from mixout import AnchorDecay, GradientMask, Mixconnect, Mixout
from mixout.methods import Dropconnect, Dropout, Plain

ALL = [
    Mixout(0.7),
    Mixout(0.7, unit="output", gradient="paper"),
    Mixout(0.7, gradient="dense"),
    GradientMask(0.7),
    GradientMask(0.4, unit="element", gradient="paper"),
    Mixconnect(0.3),
    Mixconnect(0.3, noise="gaussian"),
    Dropconnect(0.2),
    Dropout(0.1),
    AnchorDecay(0.01),
    Plain(),
]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.25), nn.Linear(5, 3)).double()


def phi_of(layer):
    """Phi of one pass, read off with the identity as input."""
    bias = 0 if layer.bias is None else layer.bias
    return (layer(torch.eye(layer.in_features, dtype=torch.float64)) - bias).detach().t()


@pytest.mark.parametrize("method", ALL, ids=mixout.methods.spell)
def test_a_method_is_a_frozen_value(method):
    name = dataclasses.fields(method)[0].name if dataclasses.fields(method) else "anything"
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        setattr(method, name, 0.5)
    assert eval(repr(method), vars(mixout.methods)) == method
    assert pickle.loads(pickle.dumps(method)) == method
    assert hash(method) == hash(dataclasses.replace(method))


@pytest.mark.parametrize("method", ALL, ids=mixout.methods.spell)
def test_in_eval_mode_every_method_computes_the_plain_model(method):
    x = torch.randn(4, 6, dtype=torch.float64)
    model = net().eval()
    expected = model(x)
    state = torch.get_rng_state()
    mixout.apply_(model, method)
    assert model(x).equal(expected)
    assert torch.get_rng_state().equal(state)
    mixout.remove_(model)
    assert model(x).equal(expected)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("kind", [Mixout, Mixconnect, Dropconnect, Dropout])
def test_p_is_checked_where_the_method_is_made(kind, bad):
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\].*got"):
        kind(bad)


@pytest.mark.parametrize("kind", [Mixout, Mixconnect, Dropconnect, Dropout])
def test_p_must_be_a_number(kind):
    with pytest.raises(TypeError, match="expected p to be a number"):
        kind("0.5")


def test_choices_are_checked_where_the_method_is_made():
    with pytest.raises(ValueError, match=r"expected unit in .*got 'column'"):
        Mixout(0.5, unit="column")
    with pytest.raises(ValueError, match=r"expected gradient in .*got 'wrong'"):
        Mixout(0.5, gradient="wrong")
    with pytest.raises(ValueError, match=r"expected gradient in .*got 'wrong'"):
        Dropconnect(0.5, gradient="wrong")
    with pytest.raises(ValueError, match=r"expected noise in .*got 'cauchy'"):
        Mixconnect(0.5, noise="cauchy")
    with pytest.raises(ValueError, match="gaussian"):
        Mixconnect(1.0, noise="gaussian")
    with pytest.raises(ValueError, match="finite rate"):
        AnchorDecay(-0.1)
    with pytest.raises(TypeError, match="expected rate to be a number"):
        AnchorDecay("0.1")


@pytest.mark.parametrize("batch", [(5,), (2, 3)])
def test_dropout_is_mixout_with_anchor_zero(batch):
    """Same mask, same output as inverted dropout on x with one mask for the whole batch."""
    p = 0.4
    layer = mixout.apply_(nn.Linear(8, 3).double(), Mixout(p), anchor=0)
    x = torch.randn(*batch, 8, dtype=torch.float64)
    torch.manual_seed(6)
    phi = phi_of(layer)
    mask = (phi != 0).any(0)
    assert 0 < mask.sum() < 8
    torch.manual_seed(6)
    dropped_x = x * mask / (1 - p)  # inverted dropout
    torch.testing.assert_close(layer(x), linear(dropped_x, layer.weight, layer.bias))


def test_dropconnect_is_mixconnect_with_anchor_zero_and_keeps_no_copy():
    a, b = (mixout.apply_(nn.Linear(8, 3).double(), m, anchor=0) for m in (Dropconnect(0.4), Mixconnect(0.4)))
    b.load_state_dict(a.state_dict())
    torch.manual_seed(1)
    phi = phi_of(a)
    torch.manual_seed(1)
    assert phi.equal(phi_of(b))
    kept = phi != 0
    assert (kept.sum(0) > 0).any()
    assert not (kept == kept[0]).all()  # element by element
    torch.testing.assert_close(phi, kept * a.weight / 0.6)
    assert a._mixed.anchor.tensor is None


def test_dropconnect_pulls_towards_zero_whatever_the_weights_are():
    layer = mixout.apply_(nn.Linear(8, 3, bias=False), Dropconnect(1.0))
    assert not layer(torch.randn(2, 8)).any()


@pytest.mark.parametrize(("mean", "variance"), [(1.0, 1.0), (0.3, 0.21), (2.0, 0.5), (-1.0, 0.25), (1.0, 0.0)])
def test_mixconnect_has_the_noise_of_equation_4(mean, variance):
    """Phi depends on M/mu alone, of variance sigma^2/mu^2 = p/(1-p)."""
    method = Mixconnect(variance / (variance + mean**2), noise="gaussian")
    torch.manual_seed(0)
    layer = mixout.apply_(nn.Linear(300, 300, bias=False).double(), method, anchor=0)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    phi = phi_of(layer)
    assert phi.mean().item() == pytest.approx(1.0, abs=5 * (variance / mean**2) ** 0.5 / 300 + 1e-12)
    assert phi.var().item() == pytest.approx(variance / mean**2, rel=0.03, abs=1e-12)


def test_dropout_sets_the_models_own_dropouts_and_plain_leaves_them():
    model = mixout.apply_(net(), Dropout(0.6))
    assert model[2].p == 0.6
    assert type(model[0]) is nn.Linear
    assert mixout.remove_(model)[2].p == 0.25
    model = mixout.apply_(net(), Plain())
    assert model[2].p == 0.25
    assert type(model[0]) is nn.Linear
    mixout.remove_(model)


def test_methods_compose():
    model = mixout.apply_(net(), [Mixout(0.7), AnchorDecay(0.01)])
    assert mixout.coverage(model).mixed == ("0", "3")
    assert model[2].p == 0.0
    mixout.remove_(model)
    for methods in ([Mixout(0.7), Dropconnect(0.1)], [Mixout(0.7), Mixout(0.7)], [Dropout(0.1), Dropout(0.2)]):
        with pytest.raises(ValueError, match="at most one mixes"):
            mixout.apply_(model, methods)


@pytest.mark.parametrize("methods", [(Mixout(0.7), Dropout(0.1)), (Dropout(0.1), Mixout(0.7))], ids=str)
def test_mixout_beside_an_explicit_dropout_keeps_it_in_either_order(methods):
    """mixout(0.7)+dropout(0.1) asks for both; the order in which they are written must not lose one."""
    model = mixout.apply_(net(), methods)
    assert model[2].p == 0.1
    assert mixout.remove_(model)[2].p == 0.25


@pytest.mark.parametrize("unit", ["input", "output", "element"])
@pytest.mark.parametrize("tokens", [6, 600])
def test_the_controls_separate_mixouts_forward_from_its_gradient(unit, tokens):
    """gradient_mask: w forward, mixout's gradient; gradient=dense: mixout's forward, the gradient without a mask."""
    torch.manual_seed(0)
    x = torch.randn(tokens, 6, dtype=torch.float64)
    results = {}
    for method in (Mixout(0.5, unit=unit), Mixout(0.5, unit=unit, gradient="dense"), GradientMask(0.5, unit=unit)):
        layer = mixout.apply_(net()[0], method)
        with torch.no_grad():
            layer.weight.add_(1.0)
        torch.manual_seed(7)
        y = layer(x)
        y.sum().backward()
        results[mixout.methods.spell(method)] = y.detach(), layer.weight.grad
    (mixed, sparse), (dense_y, dense), (masked_y, masked) = results.values()
    torch.testing.assert_close(dense_y, mixed)
    torch.testing.assert_close(masked, sparse)
    plain = linear(x, layer.weight, layer.bias).detach()
    torch.testing.assert_close(masked_y, plain)
    assert not torch.allclose(mixed, plain)
    torch.testing.assert_close(dense, x.sum(0).expand(5, 6))
    assert int((sparse == 0).sum()) > 0


def test_a_gradient_mask_holds_no_anchor():
    model = mixout.apply_(net(), GradientMask(0.5))
    with pytest.raises(mixout.NotAppliedError, match="holds no anchor"):
        mixout.fingerprint(model)
    with pytest.raises(ValueError, match="expected no anchor for gradient_mask"):
        mixout.apply_(net(), GradientMask(0.5), anchor=net())
    with pytest.raises(ValueError, match="masks nothing"):
        GradientMask(0.5, gradient="dense")
