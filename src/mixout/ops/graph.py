"""The column-sparse linear in a compiled graph: static shapes, every mask exact, no compilation for a new p.

The arithmetic is that of :mod:`mixout.ops.sparse`. Phi is written in plain torch, for the compiler to fuse. Two ops are
opaque to it, since how many columns are kept changes from pass to pass:

- ``mixout::keep`` gathers x[:, K] into a buffer of the size it needs, and shows the graph the first N elements of it,
  a static shape. The rest travels in the storage behind them.
- ``mixout::columns`` looks behind, and makes grad_w.

So no capacity bounds the number of kept columns, and there is no overflow. K is known on the host: no synchronisation.
A tool that copies what a graph keeps for backward (offloading through saved-tensor hooks) loses the rest: refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixout.ops.autocast import without_autocast
from mixout.ops.mix import interpolate
from mixout.ops.reference import Gradient
from mixout.ops.sparse import thin_gradient


def _keep(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    kept = mask.nonzero().squeeze(1)
    tokens = rows.shape[0]
    buffer = rows.new_empty(tokens * max(len(kept), 1))
    behind = buffer[: tokens * len(kept)].view(tokens, len(kept))
    torch.index_select(rows, 1, kept.to(x.device, non_blocking=True), out=behind)
    return buffer[:tokens], mask.clone()


def _columns(grad: Tensor, x_kept: Tensor, mask: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    kept = mask.nonzero().squeeze(1)
    tokens = x_kept.shape[0]
    if x_kept.untyped_storage().nbytes() < tokens * len(kept) * x_kept.itemsize:
        raise RuntimeError(
            "expected the tensors that a compiled mixout layer keeps for backward as they were, got copies; "
            "do not offload them through saved-tensor hooks, or do not compile"
        )
    behind = x_kept.as_strided((tokens, len(kept)), (len(kept), 1), 0)
    place = kept.to(grad.device, non_blocking=True)
    return thin_gradient(grad.reshape(tokens, -1), behind, place, tuple(weight.shape), weight.dtype, float(scale))


torch.library.define("mixout::keep", "(Tensor x, Tensor mask) -> (Tensor, Tensor)")
torch.library.impl("mixout::keep", "default", _keep)
torch.library.register_fake(
    "mixout::keep",
    lambda x, mask: (x.new_empty(x.numel() // x.shape[-1]), torch.empty_like(mask)),
)
torch.library.define(
    "mixout::columns", "(Tensor grad, Tensor x_kept, Tensor mask, Tensor weight, Tensor scale) -> Tensor"
)
torch.library.impl("mixout::columns", "default", _columns)
torch.library.register_fake(
    "mixout::columns",
    lambda grad, x_kept, mask, weight, scale: weight.new_empty(weight.shape),  # noqa: ARG005
)


class _GraphLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        anchor: Tensor | None,
        bias: Tensor | None,
        mask: Tensor,
        scale: Tensor,
        exact: bool,
    ) -> Tensor:
        with without_autocast(x.device):
            phi = interpolate(weight, anchor, mask.to(weight.device, non_blocking=True), scale)
            y = torch.nn.functional.linear(x, phi.to(x.dtype), bias)
        x_kept, same = torch.ops.mixout.keep(x, mask)
        ctx.save_for_backward(x_kept, same, weight, anchor, scale)
        ctx.exact = exact
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_kept, mask, weight, anchor, scale = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        with without_autocast(grad.device):
            if ctx.needs_input_grad[0]:
                phi = interpolate(weight, anchor, mask.to(weight.device, non_blocking=True), scale)
                grad_x = grad @ phi.to(grad.dtype)
            if ctx.needs_input_grad[1]:
                gradient_scale = scale if ctx.exact else torch.ones_like(scale)
                grad_weight = torch.ops.mixout.columns(grad, x_kept, mask, weight, gradient_scale)
            if ctx.needs_input_grad[3]:
                grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_x, grad_weight, None, grad_bias, None, None, None


def graph_linear(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    mask: Tensor,
    scale: Tensor,
    *,
    gradient: Gradient = "exact",
) -> Tensor:
    """As :func:`mixout.ops.sparse.column_sparse_linear`, for use while compiling.

    Args:
        x: (..., in), in the dtype to compute in.
        weight: w, (out, in).
        anchor: u, like ``weight``, or None for 0.
        bias: (out,) in the dtype of ``x``, or None.
        mask: M, (in,), bool, on the host.
        scale: 1 / (1 - p), or 0 at p = 1; a tensor without dimensions on the host.
        gradient: ``exact``, the derivative of the forward; or ``paper``, without the factor ``scale``.

    Returns:
        (..., out).

    Example:
        >>> w, u, x = torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[3.0, 5.0]])
        >>> graph_linear(x, w, u, None, torch.tensor([False, True]), torch.tensor(2.0))  # p = 1/2
        tensor([[10.]])
    """
    result: Tensor = _GraphLinear.apply(  # type: ignore[no-untyped-call]
        x, weight, anchor, bias, mask, scale, gradient == "exact"
    )
    return result
