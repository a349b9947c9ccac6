r"""The mixed linear, Y = X Phi^T + b, in the forms that :mod:`mixout.passes` chooses from.

With a mask M of the units, s = 1/(1-p), and, where M is one of columns, the kept columns K, about (1-p) of them::

    Phi         = u + s M (w - u)          one element-wise pass
    y           = x Phi^T + b              a full GEMM
    grad_x      = g Phi                    a full GEMM
    grad_w[:,K] = s g^T x[:, K]            a GEMM of |K| columns; every other column of grad_w is 0

- :func:`native`: in torch's own operations. Least work for the host; Phi is kept for backward.
- :func:`sparse`: the equations above. Kept for backward: x[:, K] and the mask; Phi is made again.
- :func:`split`: for few tokens, where the memory that a weight takes is the bound. Phi is not made at all:
  y = x u^T + x[:, K] (s (w-u)[:, K])^T.
- :func:`dense`: for a mask of any shape; the whole gradient is computed and masked, as ``s (g^T x) * M``.
- :func:`compiled`: as sparse or dense in graphs of ``torch.compile`` on a CPU, as ops that are opaque to the compiler.
  Differentiable once; docs/design.md, "The linear", says why.

The others are differentiable twice, work under ``torch.func``, and return tensors that may be changed in place. All
take x (..., in) in the dtype to compute in, w (out, in), u like w or None for 0, b (out,) in the dtype of x or None,
and give (..., out).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixout._torch import in_functional_transform
from mixout.ops import kernels
from mixout.ops.mix import interpolate_to, like, scaled, with_slope, without_autocast
from mixout.ops.reference import Gradient, slope_of


def native(x: Tensor, weight: Tensor, anchor: Tensor | None, bias: Tensor | None, coefficient: Tensor) -> Tensor:
    """The linear y in torch's own operations, with the exact derivative; autocast casts what it reads.

    ``coefficient`` is s M, broadcastable to ``weight``, in its dtype.
    """
    phi = weight * coefficient if anchor is None else torch.lerp(like(anchor, weight), weight, coefficient)
    return F.linear(x, phi, bias)


class _Linear(torch.autograd.Function):
    """Rows of x to rows of y; x_kept = x[:, kept] is an input, so that a second derivative reaches x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        x_kept: Tensor | None,
        weight: Tensor,
        anchor: Tensor | None,
        bias: Tensor | None,
        kept: Tensor | None,
        mask: Tensor,
        scale: float,
        slope: float | None,
    ) -> Tensor:
        with without_autocast(x.device):
            return F.linear(x, interpolate_to(x.dtype, weight, anchor, mask, scale), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, x_kept, weight, anchor, _, kept, mask, ctx.scale, ctx.slope = inputs
        needs_x, _, needs_weight = ctx.needs_input_grad[:3]
        columns = (x if kept is None else x_kept) if needs_weight else None
        ctx.save_for_backward(columns, weight if needs_x else None, anchor if needs_x else None, kept, mask)
        ctx.save_for_forward(x, weight, anchor, kept, mask)
        ctx.weight_like = weight.shape, weight.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        columns, weight, anchor, kept, mask = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        with without_autocast(grad.device):
            if ctx.needs_input_grad[0]:
                grad_x = grad @ _phi(grad.dtype, weight, anchor, mask, ctx.scale, ctx.slope)
            if ctx.needs_input_grad[2]:
                shape, dtype = ctx.weight_like
                if kept is None:
                    grad_weight = masked(grad.t() @ columns, dtype, mask, ctx.slope)
                else:
                    grad_weight = thin_gradient(grad, columns, kept, shape, dtype, ctx.slope)
            if ctx.needs_input_grad[4]:
                grad_bias = grad.sum(0)
        return grad_x, None, grad_weight, None, grad_bias, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, weight, anchor, _, mask = ctx.saved_tensors
        x_tangent, _, weight_tangent, _, bias_tangent = tangents[:5]
        total = torch.zeros(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
        if x_tangent is not None:
            total = total + F.linear(x_tangent, _phi(x.dtype, weight, anchor, mask, ctx.scale, ctx.slope))
        if weight_tangent is not None:
            phi_tangent = weight_tangent if ctx.slope is None else scaled(weight_tangent, mask, ctx.slope)
            total = total + F.linear(x, phi_tangent.to(x.dtype))
        return total if bias_tangent is None else total + bias_tangent


def _phi(
    dtype: torch.dtype, weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float, slope: float | None
) -> Tensor:
    """Phi in ``dtype`` for a derivative, which may be differentiated again: by the same convention as y."""
    if torch.is_grad_enabled() and slope != scale:
        return with_slope(weight, anchor, mask, scale, slope).to(dtype)
    return interpolate_to(dtype, weight, anchor, mask, scale)


def thin_gradient(
    grad: Tensor, x_kept: Tensor, kept: Tensor, shape: tuple[int, ...], dtype: torch.dtype, slope: float
) -> Tensor:
    """The weight's gradient, (out, in): ``slope`` g^T x[:, K] at ``kept``, where an index counts once; 0 elsewhere."""
    # As its transpose, (|K|, out): a product with few rows is faster than one with few columns.
    rows = x_kept.t() @ grad
    if math.prod(shape) < kernels.LARGEST and kernels.available(rows):
        return kernels.place(rows, kept, shape, dtype, slope)
    columns = rows.t().to(dtype).mul_(slope)
    scatter = torch.Tensor.scatter if torch.is_grad_enabled() else torch.Tensor.scatter_  # vmap knows the former
    gradient: Tensor = scatter(columns.new_zeros(shape), 1, kept.expand(columns.shape), columns)
    return gradient


def masked(gradient: Tensor, dtype: torch.dtype, mask: Tensor, slope: float | None) -> Tensor:
    """``slope`` M times the whole gradient, in ``dtype``; may overwrite ``gradient``."""
    if slope is None:
        return gradient.to(dtype)
    if kernels.available(gradient):
        return kernels.phi(gradient, None, mask, slope, dtype)
    gradient = gradient.to(dtype)
    # The factor in at least float32: in 16 bits it would be rounded.
    return gradient.mul_(mask.to(torch.promote_types(dtype, torch.float32)) * slope)


def sparse(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    kept: Tensor,
    scale: float,
    *,
    gradient: Gradient = "exact",
) -> Tensor:
    """Y, where Phi takes the columns ``kept`` (rising indices) from w, times ``scale`` 1/(1-p), and others from u."""
    if weight.is_cuda:
        if x.dtype.itemsize == 2 and len(kept):  # to a multiple of 8, for aligned loads; a repeated index counts once
            kept = torch.cat([kept, kept[-1:].expand(-len(kept) % 8)])
        kept = kept.to(weight.device, non_blocking=True)
    mask = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device).index_fill_(0, kept, True)
    return dense(x, weight, anchor, bias, mask, scale, gradient=gradient, kept=kept)


def _columns(matrix: Tensor, kept: Tensor) -> Tensor:
    # On a CPU faster than index_select, and its derivative twice as fast; but it keeps all of ``matrix`` for backward.
    return matrix.gather(1, kept.expand(matrix.shape[0], -1))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # -1 would not do for no columns


def split(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    kept: Tensor,
    scale: float,
    *,
    gradient: Gradient = "exact",
) -> Tensor:
    """The linear y as of :func:`sparse`, without Phi, in torch's own operations.

    Where w equals u the second product is 0 and y is the anchor's output to the bit.
    """
    kept = kept.to(weight.device, non_blocking=True)
    w_kept = _columns(weight, kept)
    u = None if anchor is None else like(anchor, weight)
    delta = (w_kept if u is None else w_kept - _columns(u, kept)) * scale
    if gradient == "paper":
        delta = delta.detach() + (w_kept - w_kept.detach())
    delta = delta.to(x.dtype)
    rows = _rows(x)
    x_kept = rows.index_select(1, kept)
    with without_autocast(x.device):
        if u is None:
            y = F.linear(x_kept, delta, bias)
        else:
            y = torch.addmm(F.linear(rows, u.to(x.dtype), bias), x_kept, delta.t())
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])


def dense(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    mask: Tensor,
    scale: float,
    *,
    gradient: Gradient = "exact",
    kept: Tensor | None = None,
) -> Tensor:
    """The linear y with :func:`mixout.ops.mix.mix`'s Phi; ``kept``: columns with a gradient, None for all."""
    rows = _rows(x)
    trained = weight.requires_grad or in_functional_transform()  # there a transform further out may be a derivative
    x_kept = rows.index_select(1, kept) if trained and kept is not None else None
    slope = slope_of(gradient, scale)
    y: Tensor = _Linear.apply(rows, x_kept, weight, anchor, bias, kept, mask, scale, slope)  # type: ignore[no-untyped-call]
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])


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
        rows = _rows(x)
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
    grad, rows = _rows(grad), _rows(x)
    grad_x = _grad_x(grad, weight, anchor, mask, scale).view_as(x) if ctx.needs_input_grad[0] else None
    grad_weight = _grad_weight(grad, rows, weight, mask, slope) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, None, grad.sum(0) if ctx.biased else None, None, None, None


compiled.register_autograd(_backward, setup_context=_setup_context)
