"""A gathered Phi in the place of w, against plain autograd through w."""

import pytest
import torch

from mixout.ops.mix import as_function_of_weight

SCALE = 1 / (1 - 0.4)


class _Leaf(torch.autograd.Function):
    """Phi as a leaf, whose gradient ``w`` gets."""

    @staticmethod
    def forward(w, phi):
        return phi.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None


@pytest.mark.parametrize("slope", [SCALE, 1.0])
@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (4, 5)])
def test_first_and_second_derivatives_are_those_of_plain_autograd(slope, shape):
    generator = torch.Generator().manual_seed(1)
    x, w, u = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, 3, 5), (4, 5), (4, 5)))
    mask = torch.rand(shape, generator=generator) > 0.4
    phi = torch.lerp(u, w, mask.to(w.dtype) * SCALE)
    found = []
    for gathered in (False, True):
        inputs = x.clone().requires_grad_(), w.clone().requires_grad_()
        if gathered:
            weight = as_function_of_weight(_Leaf.apply(inputs[1], phi), mask, slope)
        else:
            weight = phi + slope * mask.to(w.dtype) * (inputs[1] - w)
        y = torch.nn.functional.linear(inputs[0], weight)
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs)
        found.append([y, *first, *second])
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-9)
    assert all(float(g.detach().abs().max()) > 1e-3 for g in found[0])
