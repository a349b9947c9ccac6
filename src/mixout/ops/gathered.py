"""The linear whose weight is Phi already: mixed elsewhere, before this op saw it.

::

    y           = x Phi^T + b
    grad_x      = g Phi
    grad_w[:,K] = s g^T x[:, K]      with kept columns K; or s (g^T x) * M for any other mask

Autograd sees Phi in place of w, and gets w's gradient. Phi itself is kept for backward, not made again: under FSDP2 it
is a parameter whose memory is freed and filled anew in between.
Not differentiable twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixout.ops.autocast import without_autocast
from mixout.ops.linear import masked, thin_gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """How Phi was made, told to the layer that computes with it.

    Args:
        mask: gives M, broadcastable to the whole weight.
        kept: indices of the kept columns, where M is made of such; else None.
        scale: 1 / mu, or 0 where mu is 0.
        gradient_scale: what M is multiplied by in the gradient; None where the gradient is not masked.
    """

    mask: Callable[[], Tensor]
    kept: Tensor | None
    scale: float
    gradient_scale: float | None


class _GatheredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        phi: Tensor,
        bias: Tensor | None,
        draw: Draw | None,
        check: Callable[[Draw | None], None],
    ) -> Tensor:
        with without_autocast(x.device):
            y = torch.nn.functional.linear(x, phi.to(x.dtype), bias)
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        rows = x.reshape(-1, x.shape[-1]) if needs_weight else None
        if rows is not None and draw is not None and draw.kept is not None:
            rows = rows.index_select(1, draw.kept)
        ctx.save_for_backward(rows, phi if needs_x else None)
        ctx.weight_like = phi.shape, phi.dtype
        ctx.draw, ctx.check = draw, check
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, phi = ctx.saved_tensors
        draw: Draw | None = ctx.draw
        ctx.check(draw)
        grad_x = grad_weight = grad_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        with without_autocast(grad.device):
            if ctx.needs_input_grad[0]:
                grad_x = grad @ phi.to(grad.dtype)
            if ctx.needs_input_grad[1]:
                grad_weight = _grad_weight(rows, x, draw, *ctx.weight_like)
            if ctx.needs_input_grad[2]:
                grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias, None, None


def _grad_weight(grad: Tensor, x: Tensor, draw: Draw | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if draw is not None and draw.gradient_scale is not None and draw.kept is not None:
        return thin_gradient(grad, x, draw.kept, shape, dtype, draw.gradient_scale)
    whole = grad.t() @ x
    if draw is None or draw.gradient_scale is None:
        return whole.to(dtype)
    return masked(whole, dtype, draw.mask(), draw.gradient_scale)


def gathered_linear(
    x: Tensor, phi: Tensor, bias: Tensor | None, draw: Draw | None, check: Callable[[Draw | None], None]
) -> Tensor:
    """Y = x Phi^T + b, whose gradient with respect to ``phi`` is the one with respect to w.

    Args:
        x: (..., in), in the dtype to compute in.
        phi: (out, in).
        bias: (out,) in the dtype of ``x``, or None.
        draw: how ``phi`` was made; None for a plain weight.
        check: called with ``draw`` in the backward pass, before ``phi`` is read; raises if it is another draw's by now.

    Returns:
        (..., out).

    Example:
        >>> x, phi = torch.tensor([[3.0, 5.0]]), torch.tensor([[0.0, 2.0]], requires_grad=True)
        >>> coins = torch.tensor([[False, True]])  # p = 1/2, column 1 kept
        >>> draw = Draw(mask=lambda: coins, kept=torch.tensor([1]), scale=2.0, gradient_scale=2.0)
        >>> y = gathered_linear(x, phi, None, draw, lambda draw: None)
        >>> float(y.detach()), torch.autograd.grad(y, phi)[0]
        (10.0, tensor([[ 0., 10.]]))
    """
    result: Tensor = _GatheredLinear.apply(x, phi, bias, draw, check)  # type: ignore[no-untyped-call]
    return result
