"""The column-sparse linear: mixout's forward and backward, nothing else.

With kept columns K, about (1-p) of them, and s = 1/(1-p)::

    Phi         = lerp(u, w, s M)          one element-wise pass
    y           = x Phi^T + b              a full GEMM
    grad_x      = g Phi                    a full GEMM
    grad_w[:,K] = s g^T x[:, K]            a GEMM of |K| columns; every other column of grad_w is 0

Plain fine-tuning needs three full GEMMs, this needs 2 + (1-p). Kept for backward: x[:, K], the indices and M; Phi is
built again from w, u and M, so nothing weight-sized outlives the forward but w and u themselves.
Not differentiable twice: that needs all of x; :mod:`mixout.ops.dense` keeps it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixout.ops import fused
from mixout.ops.autocast import without_autocast
from mixout.ops.mix import interpolate_to
from mixout.ops.once import once
from mixout.ops.reference import Gradient


class _ColumnSparseLinear(torch.autograd.Function):
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
        mask = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device).index_fill_(0, kept, True)
        with without_autocast(x.device):
            y = torch.nn.functional.linear(x, interpolate_to(x.dtype, weight, anchor, mask, scale), bias)
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        x_kept = x.reshape(-1, x.shape[-1]).index_select(1, kept) if needs_weight else None
        ctx.save_for_backward(x_kept, weight if needs_x else None, anchor if needs_x else None, kept, mask)
        ctx.weight_like = weight.shape, weight.dtype
        ctx.scales = scale, gradient_scale
        return y

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_kept, weight, anchor, kept, mask = ctx.saved_tensors
        scale, gradient_scale = ctx.scales
        grad_x = grad_weight = grad_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        with without_autocast(grad.device):
            if ctx.needs_input_grad[0]:
                grad_x = grad @ interpolate_to(grad.dtype, weight, anchor, mask, scale)
            if ctx.needs_input_grad[1]:
                shape, dtype = ctx.weight_like
                grad_weight = thin_gradient(rows, x_kept, kept, shape, dtype, gradient_scale)
            if ctx.needs_input_grad[3]:
                grad_bias = rows.sum(0)
        return grad_x, grad_weight, None, grad_bias, None, None, None


def thin_gradient(
    grad: Tensor, x_kept: Tensor, kept: Tensor, shape: tuple[int, ...], dtype: torch.dtype, scale: float
) -> Tensor:
    """The weight's gradient, (out, in): ``scale`` g^T x[:, K] at the places ``kept``, and 0 elsewhere.

    Computed as its transpose, (|K|, out): a product with few rows is faster than one with few columns.
    """
    rows = x_kept.t() @ grad
    if fused.places(rows, shape):
        return fused.place(rows, kept, shape, dtype, scale)
    columns = rows.t().to(dtype).mul_(scale)
    return columns.new_zeros(shape).index_copy_(1, kept, columns)


def column_sparse_linear(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    kept: Tensor,
    scale: float,
    *,
    gradient: Gradient = "exact",
) -> Tensor:
    """Y = x Phi^T + b, where Phi takes the columns ``kept`` from w, rescaled, and the others from u.

    Args:
        x: (..., in), in the dtype to compute in.
        weight: w, (out, in).
        anchor: u, like ``weight``, or None for 0.
        bias: (out,) in the dtype of ``x``, or None.
        kept: int64 indices of the kept columns, on the device of ``weight``.
        scale: 1 / (1 - p), or 0 at p = 1.
        gradient: ``exact``, the derivative of the forward; or ``paper``, without the factor ``scale``.

    Returns:
        (..., out).

    Example:
        >>> w, u, x = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[3.0, 5.0]])
        >>> column_sparse_linear(x, w, u, None, torch.tensor([1]), 2.0)  # p = 1/2, column 1 kept
        tensor([[10.]])
    """
    result: Tensor = _ColumnSparseLinear.apply(  # type: ignore[no-untyped-call]
        x, weight, anchor, bias, kept, scale, scale if gradient == "exact" else 1.0
    )
    return result
