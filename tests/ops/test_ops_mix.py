"""ops.mix against ops.reference under autograd, with the same masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixout.ops import kernels, reference
from mixout.ops.mix import mix


def case(shape, mask_shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    w, u, g = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return w, u, torch.rand(mask_shape, generator=generator) < 0.4, g


def both(w, u, mask, scale, g, gradient):
    results = []
    for function in (mix, reference.mix):
        leaf = w.clone().requires_grad_()
        phi = function(leaf, u, mask, scale, gradient=gradient)
        results.append((phi.detach(), *torch.autograd.grad(phi, leaf, g)))
    return results


@pytest.mark.parametrize("gradient", ["exact", "paper"])
@pytest.mark.parametrize(
    ("shape", "mask_shape"),
    [
        ((4, 7), (1, 7)),
        ((4, 7), (4, 1)),
        ((4, 7), (4, 7)),
        ((1, 1), (1, 1)),
        ((6, 3, 5), (1, 3, 1)),
        ((2, 3, 2, 2), (2, 1, 1, 1)),
        ((2, 1, 2, 2, 2), (1, 1, 1, 1, 1)),
        ((0, 3), (1, 3)),
    ],
)
@pytest.mark.parametrize("p", [0.25, 0.7, 0.9])
def test_values_and_gradients_match_the_definition(shape, mask_shape, gradient, p):
    w, u, mask, g = case(shape, mask_shape)
    (phi, grad), (phi_reference, grad_reference) = both(w, u, mask, 1 / (1 - p), g, gradient)
    torch.testing.assert_close(phi, phi_reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, grad_reference, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.0, 0.99), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_shape_and_scale(out, inputs, p, exact, seed):
    w, u, mask, g = case((out, inputs), (1, inputs), seed)
    (phi, grad), (phi_reference, grad_reference) = both(w, u, mask, 1 / (1 - p), g, "exact" if exact else "paper")
    torch.testing.assert_close(phi, phi_reference, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grad, grad_reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gradient", ["exact", "paper"])
def test_a_real_valued_mask_and_a_tensor_scale(gradient):
    w, u, _, g = case((4, 7), (4, 7))
    mask = torch.randn(4, 7, dtype=torch.float64)
    (phi, grad), (phi_reference, grad_reference) = both(w, u, mask, 2.5, g, gradient)
    torch.testing.assert_close(phi, phi_reference)
    torch.testing.assert_close(grad, grad_reference)
    leaf = w.clone().requires_grad_()
    again = mix(leaf, u, mask, torch.tensor(2.5, dtype=torch.float64), gradient=gradient)
    torch.testing.assert_close(again.detach(), phi_reference)
    torch.testing.assert_close(torch.autograd.grad(again, leaf, g)[0], grad_reference)


def test_no_anchor_is_anchor_zero():
    w, u, mask, g = case((4, 7), (1, 7))
    leaf, other = w.clone().requires_grad_(), w.clone().requires_grad_()
    phi, zero = mix(leaf, None, mask, 4.0), mix(other, torch.zeros_like(u), mask, 4.0)
    torch.testing.assert_close(phi, zero)
    assert torch.autograd.grad(phi, leaf, g)[0].equal(torch.autograd.grad(zero, other, g)[0])


def test_the_reference_itself_is_equation_4():
    """The oracle's oracle: ((I - M) u + M w - (1 - mu) u) / mu, element by element, in Python."""
    w, u, mask, _ = case((2, 3), (2, 3))
    mu = 0.3
    phi = reference.mix(w, u, mask, 1 / mu)
    for i in range(2):
        for j in range(3):
            m = float(mask[i, j])
            expected = ((1 - m) * u[i, j] + m * w[i, j] - (1 - mu) * u[i, j]) / mu
            assert phi[i, j].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("mask_shape", [(1, 64), (64, 1)])
def test_no_weight_sized_mask_is_kept_for_backward(mask_shape):
    """Trap: mask of weight size stored for backward."""
    w, u, mask, _ = case((64, 64), mask_shape)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        mix(w.requires_grad_(), u, mask, 2.0)
    assert max(saved) <= 64


def test_a_triton_that_does_not_work_is_said_and_not_used(monkeypatch):
    def broken(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(kernels, "phi", broken)
    with pytest.warns(UserWarning, match=r"Triton does not work on meta, so torch's own .*: Failed to find C compiler"):
        assert not kernels._works.__wrapped__(torch.device("meta"))
