"""The mixed linear as ops of their own, for graphs of ``torch.compile`` on a CPU.

Opaque to the compiler, for which the number of kept columns would be a new shape in each pass, and which takes minutes
to fuse the Phi of many layers into one kernel. One graph serves every mask and every p. All of x is kept for backward.
Differentiable once, as torch's compiled graphs are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixout.ops.linear import masked, thin_gradient
from mixout.ops.mix import interpolate_to, without_autocast


@torch.library.custom_op("mixout::linear", mutates_args=())
def compiled(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    mask: Tensor,
    scale: Tensor,
    slope: Tensor | None,
) -> Tensor:
    """As :func:`mixout.ops.linear.sparse` or ``dense``.

    ``mask`` is M, (in,) of bools for a thin gradient, or of two dimensions, broadcastable to ``weight``. ``scale``,
    1 / (1 - p) or 0 at p = 1, and ``slope``, see :func:`mixout.ops.reference.slope_of`, are tensors without dimensions.
    """
    with without_autocast(x.device):
        rows = x.reshape(-1, x.shape[-1])
        y = F.linear(rows, interpolate_to(x.dtype, weight, anchor, mask, float(scale)), bias)
    return y.reshape(*x.shape[:-1], weight.shape[0])


@compiled.register_fake
def _(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("mixout::linear_grad_x", mutates_args=())
def _grad_x(grad: Tensor, weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: Tensor) -> Tensor:
    return grad @ interpolate_to(grad.dtype, weight, anchor, mask, float(scale))


@_grad_x.register_fake
def _(grad: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[1])


@torch.library.custom_op("mixout::linear_grad_weight", mutates_args=())
def _grad_weight(grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, slope: Tensor | None) -> Tensor:
    if slope is None or mask.dim() != 1:
        return masked(grad.t() @ x, weight.dtype, mask, None if slope is None else float(slope))
    kept = mask.nonzero().squeeze(1)
    return thin_gradient(grad, x.index_select(1, kept), kept, tuple(weight.shape), weight.dtype, float(slope))


@_grad_weight.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, anchor, bias, mask, scale, slope = inputs
    ctx.save_for_backward(x, weight, anchor, mask, scale, slope)
    ctx.biased = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, anchor, mask, scale, slope = ctx.saved_tensors
    grad, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    grad_x = _grad_x(grad, weight, anchor, mask, scale).view_as(x) if ctx.needs_input_grad[0] else None
    grad_weight = _grad_weight(grad, rows, weight, mask, slope) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, None, grad.sum(0) if ctx.biased else None, None, None, None


compiled.register_autograd(_backward, setup_context=_setup_context)
