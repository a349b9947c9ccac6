"""The linear whose weight is Phi already: mixed elsewhere, before this op sees it.

::

    y           = x Phi^T + b
    grad_x      = g Phi
    grad_w[:,K] = s g^T x[:, K]      with kept columns K; or s (g^T x) * M for any other mask

Autograd sees Phi in place of w, and gets w's gradient. Phi itself is kept for backward, not made again: under FSDP2 it
is a parameter whose memory is freed and filled again in between. Differentiable twice: in ``grad_x`` Phi stands for a
function of w with the slope s M. The result is no view: FSDP2 warns of modules that return views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixout.ops.linear import masked, thin_gradient
from mixout.ops.mix import scaled, without_autocast


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """How Phi was made, told to the layer that computes with it."""

    mask: Tensor  # M, broadcastable to the whole weight
    kept: Tensor | None  # indices of the kept columns, where the gradient has no others
    scale: float  # 1 / mu, or 0 where mu is 0
    slope: float | None  # what M is multiplied by in the gradient; None where the gradient is not masked


class _GatheredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        x_kept: Tensor | None,
        phi: Tensor,
        bias: Tensor | None,
        draw: Draw | None,
        check: Callable[[Draw | None], None],
    ) -> Tensor:
        y = x.new_empty(*x.shape[:-1], phi.shape[0])
        rows, out, weight = x.reshape(-1, x.shape[-1]), y.view(-1, phi.shape[0]), phi.to(x.dtype).t()
        with without_autocast(x.device):
            if bias is None:
                torch.mm(rows, weight, out=out)
            else:
                torch.addmm(bias, rows, weight, out=out)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x_kept, phi, _, ctx.draw, ctx.check = inputs
        ctx.save_for_backward(x_kept, phi if ctx.needs_input_grad[0] else None)
        ctx.shape, ctx.dtype = phi.shape, phi.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x_kept, phi = ctx.saved_tensors
        draw: Draw | None = ctx.draw
        ctx.check(draw)
        grad_x = grad_weight = grad_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        with without_autocast(grad.device):
            if ctx.needs_input_grad[0]:
                if draw is not None and torch.is_grad_enabled():  # with create_graph
                    phi = _FunctionOfWeight.apply(phi, draw)  # type: ignore[no-untyped-call]
                grad_x = grad @ phi.to(grad.dtype)
            if ctx.needs_input_grad[2]:
                grad_weight = _grad_weight(rows, x_kept, draw, ctx.shape, ctx.dtype)
            if ctx.needs_input_grad[3]:
                grad_bias = rows.sum(0)
        return grad_x, None, grad_weight, grad_bias, None, None


class _FunctionOfWeight(torch.autograd.Function):
    """Phi itself, with the derivative that it has with respect to w."""

    @staticmethod
    def forward(phi: Tensor, draw: Draw) -> Tensor:
        return phi.view_as(phi)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.draw = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), draw = grads, ctx.draw
        return grad if draw.slope is None else scaled(grad, draw.mask, draw.slope), None


def _grad_weight(grad: Tensor, x: Tensor, draw: Draw | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``x`` holds the kept columns, where there are such, else all."""
    if draw is None:
        return (grad.t() @ x).to(dtype)
    if draw.kept is not None and draw.slope is not None:
        return thin_gradient(grad, x, draw.kept, shape, dtype, draw.slope)
    return masked(grad.t() @ x, dtype, draw.mask, draw.slope)


def gathered_linear(
    x: Tensor, phi: Tensor, bias: Tensor | None, draw: Draw | None, check: Callable[[Draw | None], None]
) -> Tensor:
    """The linear ``y = x Phi^T + b``, whose gradient with respect to ``phi`` is the one with respect to w.

    ``check`` is called with ``draw`` in the backward pass before ``phi`` is read, and raises if that is another draw's.
    """
    x_kept = None
    if phi.requires_grad and torch.is_grad_enabled():
        x_kept = x.reshape(-1, x.shape[-1])
        if draw is not None and draw.kept is not None:
            x_kept = x_kept.index_select(1, draw.kept)
    y: Tensor = _GatheredLinear.apply(x, x_kept, phi, bias, draw, check)  # type: ignore[no-untyped-call]
    return y
