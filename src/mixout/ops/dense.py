"""The linear of any mask: three full GEMMs, as plain fine-tuning, and nothing weight-sized kept for backward.

::

    Phi    = u + M scale (w - u)
    y      = x Phi^T + b
    grad_x = g Phi
    grad_w = scale (g^T x) * M

Phi is built again in backward, from a mask that is a vector, or that is drawn again from its seed. For units without
a sparse form (output, element, Gaussian), and for small p, where gathering columns costs more than it saves.
Differentiable twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixout.ops.autocast import without_autocast
from mixout.ops.mix import interpolate_to, masked_to
from mixout.ops.reference import Gradient


class _DenseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        anchor: Tensor | None,
        bias: Tensor | None,
        mask: Callable[[], Tensor],
        scale: float,
        gradient_scale: float | None,
    ) -> Tensor:
        with without_autocast(x.device):
            y = torch.nn.functional.linear(x, interpolate_to(x.dtype, weight, anchor, mask(), scale), bias)
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None, anchor if needs_x else None)
        ctx.weight_dtype = weight.dtype
        ctx.mask, ctx.scale, ctx.gradient_scale = mask, scale, gradient_scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, anchor = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        with without_autocast(grad.device):
            mask = ctx.mask()
            if ctx.needs_input_grad[0]:
                grad_x = grad @ interpolate_to(grad.dtype, weight, anchor, mask, ctx.scale)
            if ctx.needs_input_grad[1]:
                whole = rows.t() @ x.reshape(-1, x.shape[-1])
                if ctx.gradient_scale is None:
                    grad_weight = whole.to(ctx.weight_dtype)
                else:
                    grad_weight = masked_to(ctx.weight_dtype, whole, mask, ctx.gradient_scale)
            if ctx.needs_input_grad[3]:
                grad_bias = rows.sum(0)
        return grad_x, grad_weight, None, grad_bias, None, None, None


def dense_linear(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    mask: Callable[[], Tensor],
    scale: float,
    *,
    gradient: Gradient = "exact",
) -> Tensor:
    """Y = x Phi^T + b with :func:`mixout.ops.mix.mix`'s Phi.

    Args:
        x: (..., in), in the dtype to compute in.
        weight: w, (out, in).
        anchor: u, like ``weight``, or None for 0.
        bias: (out,) in the dtype of ``x``, or None.
        mask: gives M, broadcastable to ``weight``; called in forward and again in backward, each time with the same
            result.
        scale: 1 / mu, or 0 where mu is 0.
        gradient: ``exact``, the derivative of the forward; ``paper``, without the factor ``scale``; or ``dense``,
            g^T x as it is.

    Returns:
        (..., out).

    Example:
        >>> w, u, x = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[3.0, 5.0]])
        >>> coins = torch.tensor([[False, True]])
        >>> dense_linear(x, w, u, None, lambda: coins, 2.0)  # p = 1/2
        tensor([[10.]])
    """
    result: Tensor = _DenseLinear.apply(  # type: ignore[no-untyped-call]
        x, weight, anchor, bias, mask, scale, {"exact": scale, "paper": 1.0, "dense": None}[gradient]
    )
    return result
