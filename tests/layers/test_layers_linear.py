"""nn.Linear and transformers' Conv1D under mixout: Phi is read off with an identity as input."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize, prune

import mixout

UNITS = ["input", "output", "element"]


def moved(layer, method, **options):
    """``layer`` with a method, its weight no longer at the anchor; and (w, u)."""
    mixout.apply_(layer, method, where=lambda *_: True, **options)
    u = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    return layer, layer.weight.detach().clone(), u


def kept(phi, w, u, p):
    """The mask, and a check that every element of Phi is u or u + (w - u) / (1-p)."""
    full = u + (w - u) / (1 - p)
    mask = torch.isclose(phi, full, rtol=1e-9, atol=1e-9)
    assert (mask | torch.isclose(phi, u, rtol=1e-9, atol=1e-9)).all()
    return mask


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("gradient", ["exact", "paper"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(unit, gradient, bias):
    torch.manual_seed(0)
    p = 0.5
    layer, w, u = moved(nn.Linear(11, 6, bias=bias).double(), mixout.Mixout(p, unit=unit, gradient=gradient))
    b = layer.bias.detach() if bias else torch.zeros(6, dtype=torch.float64)
    state = torch.get_rng_state()
    phi = (layer(torch.eye(11, dtype=torch.float64)) - b).detach().t()
    mask = kept(phi, w, u, p)
    if unit == "input":
        assert (mask == mask[0]).all()  # one draw per COLUMN of (out, in)
    elif unit == "output":
        assert (mask == mask[:, :1]).all()
    assert 0 < mask.sum() < mask.numel()

    x = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    torch.set_rng_state(state)
    y = layer(x)
    leaf, x_leaf = w.clone().requires_grad_(), x.detach().clone().requires_grad_()
    reference = linear(x_leaf, u + mask * (leaf - u) / (1 - p), layer.bias)
    torch.testing.assert_close(y, reference)
    y.pow(2).sum().backward()
    reference.pow(2).sum().backward()
    torch.testing.assert_close(x.grad, x_leaf.grad)
    factor = 1 if gradient == "exact" else 1 - p
    torch.testing.assert_close(layer.weight.grad, leaf.grad * factor)


@pytest.mark.parametrize("unit", UNITS)
def test_hf_conv1d_has_its_units_by_meaning(unit):
    """Trap: mask axis fixed to dimension 0 has the wrong meaning for HF Conv1D, stored as (in, out)."""
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    torch.manual_seed(0)
    p = 0.5
    plain = pytorch_utils.Conv1D(6, 11).double()  # 11 inputs, 6 outputs, weight (11, 6)
    layer, w, u = moved(plain, mixout.Mixout(p, unit=unit))
    assert layer.weight.shape == (11, 6)
    assert isinstance(layer, pytorch_utils.Conv1D)
    state = torch.get_rng_state()
    phi = (layer(torch.eye(11, dtype=torch.float64)) - layer.bias).detach()  # (in, out)
    mask = kept(phi, w, u, p)
    if unit == "input":
        assert (mask == mask[:, :1]).all()  # a ROW of its weight
        assert mask.any(1).sum() not in (0, 11)
    elif unit == "output":
        assert (mask == mask[:1]).all()

    x = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    torch.set_rng_state(state)
    y = layer(x)
    leaf, x_leaf = w.clone().requires_grad_(), x.detach().clone().requires_grad_()
    reference = x_leaf @ (u + mask * (leaf - u) / (1 - p)) + layer.bias.detach()
    torch.testing.assert_close(y, reference)
    y.pow(2).sum().backward()
    reference.pow(2).sum().backward()
    torch.testing.assert_close(x.grad, x_leaf.grad)
    torch.testing.assert_close(layer.weight.grad, leaf.grad)


def kinds():
    yield "linear", nn.Linear(7, 5), torch.randn(3, 7)
    yield "embedding", nn.Embedding(7, 5), torch.tensor([[0, 6, 6], [1, 2, 0]])
    yield "conv1d", nn.Conv1d(4, 6, 3, padding=1, groups=2), torch.randn(2, 4, 9)
    yield "conv2d", nn.Conv2d(3, 5, 3, stride=2, padding=1, padding_mode="reflect"), torch.randn(2, 3, 9, 8)
    yield "conv3d", nn.Conv3d(2, 3, 2, dilation=2), torch.randn(1, 2, 5, 5, 5)


@pytest.mark.parametrize(("layer", "x"), [(layer, x) for _, layer, x in kinds()], ids=[name for name, *_ in kinds()])
def test_in_eval_mode_a_layer_is_the_plain_one(layer, x, monkeypatch):
    """Trap: a draw in eval mode. Bit-identical, RNG state unchanged, no copy of the weight."""
    expected = layer.eval()(x)
    plain = type(layer)
    moved_layer = mixout.apply_(layer, mixout.Mixout(0.9), where=lambda *_: True)
    assert isinstance(moved_layer, plain)
    assert not moved_layer.training
    seen = []
    for name in ("linear", "embedding", "conv1d", "conv2d", "conv3d"):
        original = getattr(nn.functional, name)

        def spy(*args, original=original, name=name, **options):
            seen.append(args[1])
            return original(*args, **options)

        monkeypatch.setattr(nn.functional, name, spy)
    state = torch.get_rng_state()
    assert moved_layer(x).equal(expected)
    assert torch.get_rng_state().equal(state)
    assert [t is layer.weight for t in seen] == [True]


@pytest.mark.parametrize(("layer", "x"), [(layer, x) for _, layer, x in kinds()], ids=[name for name, *_ in kinds()])
def test_every_training_pass_draws_anew(layer, x):
    layer, *_ = moved(layer.train(), mixout.Mixout(0.5))
    passes = [layer(x) for _ in range(12)]  # few columns: two passes alone may agree
    assert any(not y.equal(passes[0]) for y in passes)


@pytest.mark.parametrize(("layer", "x"), [(layer, x) for _, layer, x in kinds()], ids=[name for name, *_ in kinds()])
def test_the_layers_repr_tells_how_it_is_mixed(layer, x):
    plain = repr(layer)
    mixout.apply_(layer, mixout.Mixout(0.5), where=lambda *_: True)
    assert "p=0.5" in repr(layer)
    mixout.remove_(layer)
    assert repr(layer) == plain


@pytest.mark.parametrize("layout", ["jagged", "nested", "sparse"])
def test_inputs_that_are_not_dense_are_refused_in_our_words(layout):
    """nn.Linear takes them, and so does the layer in eval mode."""
    layer = mixout.apply_(nn.Sequential(nn.Linear(8, 4)), mixout.Mixout(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of layouts that are in beta
        if layout != "sparse":
            stored = torch.jagged if layout == "jagged" else torch.strided
            x = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=stored)
        else:
            x = torch.eye(8).to_sparse()
        for _ in range(2):
            with pytest.raises(TypeError, match=r"expected x as a dense tensor, got .*(nested|sparse)"):
                layer(x)
            layer(torch.randn(2, 8))
        layer.eval()(x)


@pytest.mark.parametrize("form", ["auto", "lean"])
@pytest.mark.parametrize("kind", ["pruned", "parametrized", "buffer"])
def test_the_bias_may_be_any_attribute(kind, form):
    layer = nn.Linear(4, 3)
    if kind == "pruned":
        prune.random_unstructured(layer, "bias", 0.5)
    elif kind == "buffer":
        bias = layer.bias.detach()
        del layer.bias
        layer.register_buffer("bias", bias)
    mixout.apply_(nn.Sequential(layer), mixout.Mixout(1.0), anchor=0, form=form, where=lambda *_: True)
    if kind == "parametrized":  # before, the layer is not mixed
        parametrize.register_parametrization(layer, "bias", nn.Tanh())
    for _ in range(2):
        assert layer(torch.ones(2, 4)).equal(layer.bias.expand(2, 3))


@pytest.mark.parametrize("form", ["auto", "fast", "lean"])
@pytest.mark.parametrize("p", [0.1, 0.9])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [2, 64])
def test_an_input_of_another_dtype_is_refused_in_training_as_in_eval_mode(form, p, bias, rows):
    layer = mixout.apply_(nn.Sequential(nn.Linear(4, 3, bias=bias)).bfloat16(), mixout.Mixout(p), form=form)
    for training in (False, True):
        with pytest.raises(RuntimeError, match="dtype"):
            layer.train(training)(torch.ones(rows, 4))


@pytest.mark.parametrize("form", ["auto", "lean"])
@pytest.mark.parametrize("before", [False, True])
def test_a_weight_that_was_resized_is_named(form, before):
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.5), form=form)
    if before:
        model(torch.ones(2, 4))
    model[0].weight = nn.Parameter(model[0].weight[:1].detach())
    model[0].bias = nn.Parameter(model[0].bias[:1].detach())
    with pytest.raises(mixout.AnchorMismatchError, match="resized since apply_"):
        model(torch.ones(2, 4))


def test_a_weight_that_was_resized_is_named_whatever_reads_its_anchor():
    """Siblings of the above: an anchor that moves, and one of the answers."""
    x = torch.ones(2, 4)
    for method in (mixout.Mixout(0.5, every=2, anchor_ema=0.9), mixout.OutputAnchor(1.0)):
        model = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), method)
        model[0].weight = nn.Parameter(torch.zeros(1, 4))
        model[0].bias = nn.Parameter(torch.zeros(1))
        with pytest.raises(mixout.AnchorMismatchError, match=r"'0\.weight' has shape \(1, 4\).*resized since apply_"):
            mixout.output_penalty(model, x, model(x))


@pytest.mark.parametrize(("before", "after"), [(8, 10), (1, 3)])
def test_data_of_another_size_in_the_same_parameter_are_seen(before, after):
    """As transformers' resize_token_embeddings leaves them; one row would be broadcast."""
    model = mixout.apply_(nn.Sequential(nn.Linear(4, before, bias=False)), mixout.Mixout(0.5))
    model(torch.ones(2, 4))
    model[0].weight.data = torch.zeros(after, 4)
    with pytest.raises(mixout.AnchorMismatchError, match=r"'0\.weight' has shape"):
        model(torch.ones(2, 4))
