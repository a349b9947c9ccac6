"""The linear whose weight was mixed before, against plain autograd through w."""

import functools

import pytest
import torch

from mixout.ops.gathered import Draw, gathered_linear

P = 0.4
SCALE = 1 / (1 - P)


def setting(kind):
    """x, w, u, b and a draw of columns (with their indices, and without: "few"), output neurons or elements."""
    generator = torch.Generator().manual_seed(1)
    x, w, u, b = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 5), (4, 5), (4, 5), (4,))
    )
    shape = (4, 5) if kind == "element" else (4, 1) if kind == "output" else (1, 5)
    mask = torch.rand(shape, generator=generator) > P
    draw = Draw(
        mask=mask,
        kept=mask[0].nonzero().squeeze(1) if kind in ("kept", "paper") else None,
        scale=SCALE,
        slope={"paper": 1.0, "dense": None}.get(kind, SCALE),
    )
    assert 0 < mask.sum() < mask.numel()
    return x, w, u, b, draw


def oracle(x, w, u, b, draw):
    """Plain autograd: Phi as a function of w, with the slope that the draw asks for."""
    phi = torch.lerp(u, w, draw.mask.to(w.dtype) * draw.scale).detach()
    slope = 1.0 if draw.slope is None else draw.mask.to(w.dtype) * draw.slope
    return torch.nn.functional.linear(x, phi + slope * (w - w.detach()), b)


def gathered(x, w, u, b, draw):
    """The gathered Phi is a leaf; ``w`` gets the gradient that autograd gives the leaf."""
    phi = _Leaf.apply(w, torch.lerp(u, w.detach(), draw.mask.to(w.dtype) * draw.scale))
    return gathered_linear(x, phi, b, draw, lambda _: None)


class _Leaf(torch.autograd.Function):
    @staticmethod
    def forward(w, phi):
        return phi.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def _loss(linear, u, b, draw, x, w):
    return linear(x, w, u, b, draw).pow(3).sum()


KINDS = ("kept", "few", "paper", "dense", "output", "element")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", ["none", "x", "w"])
def test_first_and_second_derivatives_are_those_of_plain_autograd(kind, frozen):
    found = []
    for linear in (oracle, gathered):
        x, w, u, b, draw = setting(kind)
        inputs = [t.requires_grad_() for name, t in (("x", x), ("w", w), ("b", b)) if name != frozen]
        y = linear(x, w, u, b, draw)
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs)
        found.append([y, *first, *second])
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-9)
    assert all(float(g.detach().abs().max()) > 1e-3 for g in found[0])


@pytest.mark.parametrize("kind", ["kept", "element"])
def test_named_inputs_get_no_silent_zero(kind):
    """``autograd.functional.hessian`` names its inputs; zeros would come back for a graph that is cut."""
    hessians = []
    for linear in (oracle, gathered):
        x, w, u, b, draw = setting(kind)
        f = functools.partial(_loss, linear, u, b, draw)
        hessians.append(torch.autograd.functional.hessian(f, (x, w)))
    for expected_row, row in zip(*hessians, strict=True):
        for expected, one in zip(expected_row, row, strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-9)
            assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_may_be_changed_in_place(shape, bias, kind):
    found = []
    for linear in (oracle, gathered):
        _, w, u, b, draw = setting(kind)
        x = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).view(shape).requires_grad_()
        w.requires_grad_()
        y = linear(x, w, u, b if bias else None, draw)
        assert linear is oracle or not y._is_view()
        y += 1
        y.relu_()
        found.append([y.detach(), *torch.autograd.grad(y.sum(), (x, w))])
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)


def test_columns_that_are_not_kept_are_not_held_for_backward():
    x, _, _, _, draw = setting("kept")
    phi = torch.ones(4, 5, dtype=torch.float64, requires_grad=True)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), t)[1], lambda t: t):
        gathered_linear(x, phi, None, draw, lambda _: None)
    assert sorted(tuple(t.shape) for t in held if t.is_floating_point()) == [(6, len(draw.kept))]


def test_the_check_comes_before_phi_is_read():
    x, _, _, _, draw = setting("kept")
    phi = torch.ones(4, 5, dtype=torch.float64, requires_grad=True)

    def refuse(given):
        assert given is draw
        raise ValueError("another pass")

    y = gathered_linear(x.requires_grad_(), phi, None, draw, refuse)
    with pytest.raises(ValueError, match="another pass"):
        y.sum().backward()
