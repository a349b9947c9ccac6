"""What mix, mixed_linear and mixed_embedding refuse, and odd inputs that they take."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import mixout
from mixout.functional import mix, mixed_embedding, mixed_linear

W = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.2}, r"expected p in \[0, 1\].*got 1.2"),
        ({"p": -0.1}, r"expected p in \[0, 1\].*got -0.1"),
        ({"unit": "column"}, r"expected unit in .*'input'.*got 'column'"),
        ({"gradient": "right"}, r"expected gradient in .*'exact'.*got 'right'"),
        ({"noise": "cauchy"}, r"expected noise in .*'bernoulli'.*got 'cauchy'"),
        ({"noise": "gaussian", "p": 1.0}, r"expected p in \[0, 1\) for gaussian"),
        ({"anchor": torch.ones(3, 4)}, r"expected an anchor of shape \(4, 3\).*got \(3, 4\)"),
        ({"anchor": torch.ones(4, 3, device="meta")}, r"expected the anchor on cpu.*got meta"),
        ({"weight": torch.ones(4, 3, dtype=torch.int64), "anchor": None}, "expected a floating point weight.*int64"),
    ],
)
def test_bad_arguments_say_expected_and_got(arguments, message):
    given = {"weight": W, "anchor": torch.zeros(4, 3), "p": 0.5, **arguments}
    with pytest.raises(ValueError, match=message):
        mix(**given)
    with pytest.raises(ValueError, match=message):
        mixed_embedding(torch.tensor([0]), **given)
    with pytest.raises(ValueError, match=message):
        mixed_linear(torch.ones(2, 3), **given)


@pytest.mark.parametrize("p", [1.2, -0.1, float("nan"), [0.5, 0.5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_p_is_checked_too(p, dtype):
    given = {"weight": W, "anchor": None, "p": torch.tensor(p, dtype=dtype)}
    with pytest.raises(ValueError, match="expected p"):
        mix(**given)
    with pytest.raises(ValueError, match="expected p"):
        mixed_embedding(torch.tensor([0]), **given)
    assert mix(W, None, torch.tensor(1.0, dtype=dtype)).equal(torch.zeros(4, 3))


def test_bad_shapes_and_types():
    with pytest.raises(ValueError, match=r"expected x of shape \(\.\.\., 3\), got \(2, 4\)"):
        mixed_linear(torch.ones(2, 4), W, None, p=0.5)
    with pytest.raises(ValueError, match="at least two dimensions"):
        mix(torch.ones(3), None, 0.5)
    with pytest.raises(ValueError, match="expected input_dim 0 or 1, got 2"):
        mix(W, None, 0.5, input_dim=2)
    with pytest.raises(TypeError, match="expected p to be a number"):
        mix(W, None, "0.5")


@pytest.mark.parametrize("unit", ["input", "output", "element"])
def test_a_frozen_weight_and_an_x_without_grad(unit):
    x, u = torch.randn(5, 3), torch.randn(4, 3)
    weight = torch.randn(4, 3)
    y = mixed_linear(x, weight, u, p=0.5, unit=unit)
    assert not y.requires_grad
    x.requires_grad_()
    torch.manual_seed(0)
    mixed_linear(x, weight, u, p=0.5, unit=unit).sum().backward()  # frozen weight, x learns
    torch.manual_seed(0)
    phi = mix(weight, u, 0.5, unit=unit)
    torch.testing.assert_close(x.grad, phi.sum(0).expand(5, 3))
    bias = torch.zeros(4, requires_grad=True)
    mixed_linear(x.detach(), weight, u, bias, p=0.5, unit=unit).sum().backward()  # only the bias learns
    assert bias.grad.tolist() == [5.0] * 4
    weight.requires_grad_()
    mixed_linear(x.detach(), weight, u, p=0.5, unit=unit).sum().backward()  # first layer: x without grad
    assert weight.grad is not None


def test_the_anchor_is_a_constant_to_autograd():
    anchor = torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(4, 3, requires_grad=True)
    (mixed_linear(torch.randn(5, 3), weight, anchor, p=0.5) + mix(weight, anchor, 0.5).sum()).sum().backward()
    assert weight.grad is not None
    assert anchor.grad is None


def test_a_non_contiguous_x_and_expanded_gradient():
    base = torch.randn(3, 6, 5, dtype=torch.float64)
    weight, u = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    results = []
    for x in (base.permute(2, 1, 0), base.permute(2, 1, 0).contiguous()):
        leaf, x_leaf = weight.clone().requires_grad_(), x.detach().requires_grad_()
        torch.manual_seed(0)
        y = mixed_linear(x_leaf, leaf, u, p=0.5)
        y.sum().backward()  # sum's gradient is an expanded scalar: stride 0
        results.append((y.detach(), x_leaf.grad, leaf.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tokens", [1, 500])
@pytest.mark.parametrize("form", ["auto", "lean"])
@pytest.mark.parametrize("loss", [torch.Tensor.sum, lambda y: y.pow(2).sum()], ids=["sum", "square"])
def test_second_derivatives_are_those_of_a_linear_of_mix(loss, tokens, form):
    """Of a sum too, whose own gradient is constant: there a cut graph went unnoticed."""
    x, w, u = (torch.randn(s, dtype=torch.float64) for s in ((tokens, 30), (4, 30), (4, 30)))
    leaves = x.requires_grad_(), w.requires_grad_()
    found = []
    for mixed in (
        lambda x, w: mixed_linear(x, w, u, p=0.5, form=form),
        lambda x, w: linear(x, mix(w, u, 0.5)),
    ):
        torch.manual_seed(0)
        (grad,) = torch.autograd.grad(loss(mixed(x.sin(), w)), x, create_graph=True)
        found.append(torch.autograd.grad(grad.pow(2).sum(), leaves))
    for ours, theirs in zip(*found, strict=True):
        assert theirs.norm() > 0.1
        torch.testing.assert_close(ours, theirs)


def test_create_graph_alone_changes_no_gradient_of_the_sparse_linear():
    x, w, u = (torch.randn(s, dtype=torch.float64) for s in ((500, 30), (4, 30), (4, 30)))
    found = []
    for create in (False, True):
        torch.manual_seed(0)
        y = mixed_linear(x.requires_grad_(), w.requires_grad_(), u, p=0.5)
        found.append(torch.autograd.grad(y.pow(2).sum(), (x, w), create_graph=create))
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_p_zero_draws_nothing():
    state = torch.get_rng_state()
    x = torch.zeros(2, 3)
    mix(W, None, 0.0)
    mixed_linear(x, W, None, p=0.0)
    mixed_embedding(torch.tensor([0]), W, None, p=0.0)
    assert torch.get_rng_state().equal(state)


def test_meta_tensors_pass_through():
    """Shapes can be inferred without memory, as with F.linear."""
    x, w = torch.empty(2, 3, device="meta"), torch.empty(4, 3, device="meta")
    assert linear(x, w).shape == (2, 4)
    assert mixed_linear(x, w, w.clone(), p=0.5).shape == (2, 4)


def test_vmap_over_weights():
    """torch.func: an ensemble of weights shares one mask, as randomness='same' asks."""
    weights, u = torch.randn(5, 4, 3), torch.randn(4, 3)
    out = torch.func.vmap(lambda w: mix(w, u, 0.5), randomness="same")(weights)
    kept = (out != u).any(dim=1)
    assert out.shape == (5, 4, 3)
    assert (kept == kept[0]).all()


@pytest.mark.parametrize("form", ["auto", "lean"])
@pytest.mark.parametrize("unit", ["input", "output"])
def test_vmap_with_a_mask_for_each_example(unit, form):
    """Oracle: the columns or rows in which each example's gradient is not zero."""
    model = mixout.apply_(nn.Linear(30, 30, bias=False), mixout.Mixout(0.5, unit=unit), form=form)

    def gradients(model, randomness):
        loss = lambda w, x: torch.func.functional_call(model, {"weight": w}, (x,)).sum()  # noqa: E731
        per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness=randomness)
        return per_example(model.weight.detach(), torch.ones(6, 30))

    kept = gradients(model, "different") != 0
    lines = kept.any(dim=1 if unit == "input" else 2)
    assert kept.sum() == 30 * lines.sum()
    assert len({tuple(line.tolist()) for line in lines}) == 6
    assert len(gradients(model, "same").unique(dim=0)) == 1
    for every in (1, 2):
        seeded = mixout.apply_(nn.Linear(30, 30), mixout.Mixout(0.5, unit=unit, every=every), seed=3, form=form)
        with pytest.raises(mixout.MixoutError, match='randomness="same"'):
            gradients(seeded, "different")
        assert len(gradients(seeded, "same").unique(dim=0)) == 1
