"""Derivatives of every form of the mixed linear: first, second, under torch.func; and results changed in place."""

import pytest
import torch
from linear_case import case

from mixout.ops import linear as forms
from mixout.ops import reference

pytestmark = pytest.mark.usefixtures("every_form")


def written(form, anchored, bias, gradient="exact"):
    """Form as a function of (x, w, b) with its mask fixed, and the oracle's."""
    (x, w, u, b, _), mask = case((2, 3), 4, 7, 0.5)
    anchor, scale, kept = (u if anchored else None), 2.5, mask.nonzero().squeeze(1)
    zero = torch.zeros_like(w)

    def ours(x, w, b):
        offset = b if bias else None
        if form == "native":
            return forms.native(x, w, anchor, offset, mask.double() * scale)
        if form == "dense":
            return forms.dense(x, w, anchor, offset, mask, scale, gradient=gradient)
        return getattr(forms, form)(x, w, anchor, offset, kept, scale, gradient=gradient)

    def oracle(x, w, b):
        phi = reference.mix(w, u if anchored else zero, mask, scale, gradient=gradient)
        return torch.nn.functional.linear(x, phi, b if bias else None)

    return ours, oracle, tuple(t.requires_grad_() for t in (x, w, b))


# torch's own, of its forward-mode derivatives.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
EVERY = ["native", "sparse", "split", "dense"]


@forward_mode
@pytest.mark.parametrize("form", EVERY)
@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_and_gradgradcheck_of_each_form(form, anchored, bias):
    ours, oracle, leaves = written(form, anchored, bias)
    torch.testing.assert_close(ours(*leaves), oracle(*leaves))
    assert torch.autograd.gradcheck(ours, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: ours(*t) ** 3, leaves)


@forward_mode
@pytest.mark.parametrize(
    ("form", "gradient"),
    [*((form, "exact") for form in EVERY), *((form, "paper") for form in EVERY[1:]), ("dense", "dense")],
)
@pytest.mark.parametrize("anchored", [True, False])
def test_second_derivatives_are_those_of_the_definition_however_they_are_asked_for(form, gradient, anchored):
    """hessian and hvp name their inputs: a graph that is cut in the first backward gives zeros there, in silence."""
    ours, oracle, (x, w, b) = written(form, anchored=anchored, bias=True, gradient=gradient)
    v = torch.randn(w.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for function in (ours, oracle):
        loss = lambda w, x=x, function=function: function(x, w, b).tanh().square().sum()  # noqa: E731
        hessian = torch.autograd.functional.hessian(loss, w)
        _, hvp = torch.autograd.functional.hvp(loss, w, v)
        (gradient,) = torch.autograd.grad(loss(w), w, create_graph=True)
        (named,) = torch.autograd.grad((gradient * v).sum(), w)
        mixed = torch.autograd.functional.hessian(lambda w, x: function(x, w, b).tanh().square().sum(), (w, x))[0][1]  # noqa: B023
        along = torch.func.jvp(torch.func.grad(loss), (w.detach(),), (v,))[1]  # forward over reverse
        back = torch.func.grad(lambda w: torch.func.jvp(loss, (w,), (v,))[1])(w.detach())  # noqa: B023
        (by_x,) = torch.autograd.grad(loss(w), x, create_graph=True)  # as a gradient penalty
        penalty = torch.autograd.grad(by_x.square().sum(), (w, x))
        found.append((hessian, hvp, named, mixed, along, back, *penalty))
    assert all(one.norm() > 0.1 for one in found[1])
    for theirs, mine in zip(*reversed(found), strict=True):
        torch.testing.assert_close(mine, theirs)


@forward_mode
@pytest.mark.parametrize("form", EVERY)
@pytest.mark.parametrize("gradient", ["exact", "paper"])
def test_under_torch_func(form, gradient):
    """Per-sample gradients by vmap(grad), and jvp."""
    if form == "native" and gradient == "paper":
        return  # has the exact gradient alone
    ours, oracle, (x, w, b) = written(form, anchored=True, bias=True, gradient=gradient)
    x, w, b = x.detach(), w.detach(), b.detach()
    found = []
    for function in (ours, oracle):
        loss = lambda w, x, function=function: function(x, w, b).square().sum()  # noqa: E731
        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x)
        per_vector = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x.reshape(6, 7))
        _, tangent = torch.func.jvp(lambda w, x: function(x, w, b), (w, x), (torch.ones_like(w), torch.ones_like(x)))  # noqa: B023
        found.append((per_sample, per_vector, tangent))
    for theirs, mine in zip(*reversed(found), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("form", EVERY)
@pytest.mark.parametrize("batch", [(5,), (2, 3), (2, 0, 3)])
def test_a_result_may_be_changed_in_place(form, batch):
    """Trap: an autograd function that returns a view of its own making raises at ReLU(inplace=True) or y += x."""
    gradients = []
    for in_place in (True, False):
        (x, w, u, b, g), mask = case(batch, 4, 7, 0.5)
        leaves = [t.requires_grad_() for t in (x, w, b)]
        arguments = (mask.double() * 2,) if form == "native" else (mask, 2.0)
        if form in ("sparse", "split"):
            arguments = (mask.nonzero().squeeze(1), 2.0)
        y = getattr(forms, form)(x, w, u, b, *arguments)
        if in_place:
            y.mul_(2)
            y += g
            y[..., 0] = 1.0
            torch.relu_(y)
        else:
            y = y * 2 + g
            y = torch.relu(torch.cat([torch.ones_like(y[..., :1]), y[..., 1:]], -1))
        gradients.append(torch.autograd.grad(y.square().sum(), leaves))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
