"""Phi for any unit, with one weight-sized result and nothing weight-sized kept but an element mask.

``Phi = u + M * scale * (w - u)`` as in :mod:`mixout.ops.reference`. Backward needs M alone, which for input and
output units is a vector. Differentiable twice, and under ``torch.func.vmap``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixout.ops import fused
from mixout.ops.ahead import fetch
from mixout.ops.reference import Gradient


def interpolate(weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float | Tensor) -> Tensor:
    """Compute Phi in one element-wise pass; ``anchor`` None stands for u = 0.

    lerp(u, w, c) returns u at c = 0 and w at c = 1 to the bit, so the ends are exact. Its coefficient has the
    weight's dtype, which in 16 bits would round the scale (3.33 to 3.328 at p = .7 in bf16): there M is the tensor
    and the scale stays a Python number, which addcmul holds in float32.
    """
    if anchor is None:
        return scaled(weight, mask, scale)
    anchor = beside(anchor, weight)
    if mask.dtype == torch.bool and mask.shape == weight.shape and not isinstance(scale, Tensor):
        # No coefficient as large as the weight; and in place: a CPU pays more for fresh memory than for the pass.
        phi = torch.lerp(anchor, weight, scale)
        return torch.where(mask, phi, anchor, out=None if phi.requires_grad else phi)
    if weight.dtype.itemsize > 2:
        return torch.lerp(anchor, weight, mask.to(weight.dtype) * scale)
    if isinstance(scale, Tensor):  # in a compiled graph, which fuses the casts
        return torch.lerp(anchor.float(), weight.float(), mask.float() * scale).to(weight.dtype)
    return torch.addcmul(anchor, weight - anchor, mask.to(weight.dtype), value=scale)


def interpolate_to(dtype: torch.dtype, weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float) -> Tensor:
    """:func:`interpolate`, then a cast to ``dtype``; on a GPU in one kernel."""
    if fused.fuses(weight):
        return fused.phi(weight, None if anchor is None else _near(anchor, weight), mask, scale, dtype)
    return interpolate(weight, anchor, mask, scale).to(dtype)


def beside(anchor: Tensor, weight: Tensor) -> Tensor:
    """The anchor where the weight is and in its dtype: itself, but for anchors that are kept smaller or elsewhere.

    One that comes from the host is good until the next is asked for.
    """
    return _near(anchor, weight).to(weight.device, weight.dtype, non_blocking=True)


def _near(anchor: Tensor, weight: Tensor) -> Tensor:
    """The anchor on the GPU of the weight, in its own dtype; elsewhere as it is."""
    if weight.is_cuda and not anchor.is_cuda and not torch.compiler.is_compiling():
        return fetch(anchor, weight.device)
    return anchor


def scaled(x: Tensor, mask: Tensor, scale: float | Tensor) -> Tensor:
    """Compute ``x * M * scale`` in the dtype of ``x``, without rounding the scale to it."""
    wide = torch.float32 if x.dtype.itemsize == 2 else x.dtype
    return (x * (mask.to(wide) * scale)).to(x.dtype)


def masked_to(dtype: torch.dtype, grad: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Compute ``grad * M * scale`` in ``dtype``, without rounding the scale to it; may overwrite ``grad``."""
    if fused.fuses(grad):
        return fused.phi(grad, None, mask, scale, dtype)
    grad = grad.to(dtype)
    if mask.shape != grad.shape and grad.dtype.itemsize > 2:
        return grad.mul_(mask.to(grad.dtype) * scale)  # one pass: the coefficient is small
    if mask.dtype == torch.bool:
        return grad.mul_(mask).mul_(scale)
    return grad.mul_(mask.to(grad.dtype)).mul_(scale)


class _Mix(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float, gradient_scale: float) -> Tensor:
        return interpolate(weight, anchor, mask, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, mask, _, ctx.gradient_scale = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (mask,) = ctx.saved_tensors
        return scaled(grads[0], mask, ctx.gradient_scale), None, None, None, None


def mix(
    weight: Tensor,
    anchor: Tensor | None,
    mask: Tensor,
    scale: float | Tensor,
    *,
    gradient: Gradient = "exact",
) -> Tensor:
    """Phi, whose derivative with respect to ``weight`` is M * scale (``exact``), M (``paper``) or 1 (``dense``).

    Args:
        weight: w, any shape and floating dtype.
        anchor: u, like ``weight``, or None for 0.
        mask: M, broadcastable to ``weight``; bool or floating.
        scale: 1 / mu, or 0 where mu is 0. A tensor where p is one, in a compiled graph: there autograd derives
            Phi and the compiler fuses it.
        gradient: which derivative autograd sees.

    Example:
        >>> mix(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([True, False]), 2.0)
        tensor([[2., 0.]])
    """
    if gradient == "dense":
        return interpolate(weight.detach(), anchor, mask, scale) + (weight - weight.detach())
    if isinstance(scale, Tensor):
        phi = interpolate(weight, anchor, mask, scale)
        return phi if gradient == "exact" else phi.detach() + mask.to(weight.dtype) * (weight - weight.detach())
    result: Tensor = _Mix.apply(weight, anchor, mask, scale, scale if gradient == "exact" else 1.0)  # type: ignore[no-untyped-call]
    return result
