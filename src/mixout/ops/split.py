"""The column-sparse linear for few tokens: Phi is never made.

With kept columns K, about (1-p) of them, s = 1/(1-p) and D = s (w - u)[:, K]::

    y           = x u^T + x[:, K] D^T + b     a full GEMM and one of |K| columns
    grad_x      = g u,  grad_x[:, K] += g D   the same
    grad_w[:,K] = s g^T x[:, K]               a GEMM of |K| columns; every other column of grad_w is 0

That is 2 + 3 (1-p) GEMMs against 2 + (1-p) of :mod:`mixout.ops.sparse`, but D is a thin matrix, where Phi is read and
written in whole, twice: with few tokens a linear is bound by the memory its weight takes, and this form wins.
With u = 0 only 3 (1-p) GEMMs are left. Kept for backward: x[:, K], D and the indices.
Not differentiable twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixout.ops.autocast import without_autocast
from mixout.ops.mix import beside
from mixout.ops.once import once
from mixout.ops.reference import Gradient
from mixout.ops.sparse import thin_gradient


class _SplitLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        anchor: Tensor | None,
        bias: Tensor | None,
        kept: Tensor,
        scale: float,
        gradient_scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        x_kept = rows.index_select(1, kept)
        delta = weight.index_select(1, kept)
        if anchor is not None:
            near = beside(anchor, weight)
            delta -= near.index_select(1, kept)
        delta = delta.mul_(scale).to(x.dtype)
        with without_autocast(x.device):
            if anchor is None:
                y = torch.nn.functional.linear(x_kept, delta, bias)
            else:
                # In this order: where w equals u the second term is 0 and y is the anchor's output to the bit.
                y = torch.nn.functional.linear(rows, near.to(x.dtype), bias).addmm_(x_kept, delta.t())
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            x_kept if needs_weight else None, delta if needs_x else None, anchor if needs_x else None, kept
        )
        ctx.weight_like = weight.shape, weight.dtype
        ctx.gradient_scale = gradient_scale
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_kept, delta, anchor, kept = ctx.saved_tensors
        shape, dtype = ctx.weight_like
        grad_x = grad_weight = grad_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        with without_autocast(grad.device):
            if ctx.needs_input_grad[0]:
                thin = rows @ delta
                if anchor is None:
                    grad_x = rows.new_zeros(rows.shape[0], shape[1]).index_copy_(1, kept, thin)
                else:
                    grad_x = (rows @ beside(anchor, rows)).index_add_(1, kept, thin)
                grad_x = grad_x.view(*grad.shape[:-1], shape[1])
            if ctx.needs_input_grad[1]:
                grad_weight = thin_gradient(rows, x_kept, kept, shape, dtype, ctx.gradient_scale)
            if ctx.needs_input_grad[3]:
                grad_bias = rows.sum(0)
        return grad_x, grad_weight, None, grad_bias, None, None, None


def split_linear(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    kept: Tensor,
    scale: float,
    *,
    gradient: Gradient = "exact",
) -> Tensor:
    """Y = x u^T + x_K D^T + b; arguments and result as :func:`mixout.ops.sparse.column_sparse_linear`.

    Example:
        >>> w, u, x = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[3.0, 5.0]])
        >>> split_linear(x, w, u, None, torch.tensor([1]), 2.0)  # p = 1/2, column 1 kept
        tensor([[10.]])
    """
    result: Tensor = _SplitLinear.apply(  # type: ignore[no-untyped-call]
        x, weight, anchor, bias, kept, scale, scale if gradient == "exact" else 1.0
    )
    return result
