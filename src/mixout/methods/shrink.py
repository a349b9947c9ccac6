r"""What :class:`mixout.AnchorDecay` does to one weight, or to several alike: three rules on plain tensors.

With w the weight, u its anchor (None for 0) and x = lr / r:

- plain: :math:`w \leftarrow u + e^{-x} (w - u)`, one pass over many weights;
- weighted by importance F: :math:`w \leftarrow u + e^{-x F} (w - u)` (EWC);
- selective: see :func:`shrink_selectively_` (SPD).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mixout.distances import blocks, of_all_ranks


@torch.no_grad()
def shrink_(weights: list[Tensor], anchors: list[Tensor] | None, exponent: float | Tensor) -> None:
    """W <- u + exp(exponent) (w - u), for weights of one dtype, device and mesh; without anchors u is 0."""
    if isinstance(exponent, Tensor):  # of any dtype and device, which lerp does not take
        share = -torch.expm1(exponent)
        for weight, anchor in zip(weights, anchors or weights, strict=True):
            near = share if share.device.type == "cpu" else share.to(weight.device)
            weight.sub_((weight if anchors is None else weight - anchor) * near)
    elif anchors is None:
        torch._foreach_mul_(weights, math.exp(exponent))
    else:
        torch._foreach_lerp_(weights, anchors, -math.expm1(exponent))


@torch.no_grad()
def shrink_weighted_(weight: Tensor, anchor: Tensor | None, importance: Tensor, exponent: float | Tensor) -> None:
    """W <- u + exp(exponent F) (w - u), entry by entry; without an anchor u is 0."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if isinstance(exponent, Tensor):
        exponent = exponent.to(weight.device)
    for w, u, f in blocks(weight, anchor, importance):
        share = (f.to(dtype) * exponent).expm1_()
        w.addcmul_(w if u is None else w - u, share.to(w.dtype))


@dataclass(frozen=True)
class Before:
    """What the selective rule must know of a weight before the step.

    Args:
        agreement: <g, w - u>, above 0 where following the gradient leads back towards u.
        norm: ||w - u||.
    """

    agreement: Tensor
    norm: Tensor


@torch.no_grad()
def before(weight: Tensor, anchor: Tensor | None, gradient: Tensor) -> Before:
    """Two numbers; they stay on the weight's device."""
    agreement, square = _products(weight, anchor, gradient.to_dense() if gradient.is_sparse else gradient)
    return Before(agreement, square.sqrt())


@torch.no_grad()
def shrink_selectively_(weight: Tensor, anchor: Tensor | None, then: Before, strength: float) -> None:
    r"""Undo a part of what the step has added to the distance, where the gradient asked to go back.

    .. math::
        w \leftarrow w - \lambda r (w - u), \quad
        r = \mathrm{clip}\left(\frac{||w - u|| - ||w_- - u||}{||w - u||}, 0, 1\right)
        \ \text{if}\ \langle g, w_- - u \rangle > 0, \ \text{else}\ 0

    with :math:`w_-` and g of before the step. No learning rate. Never beyond u: :math:`\lambda r` counts as 1 at most.
    """
    if _known_to_be_0(then.agreement):
        return
    norm = _products(weight, anchor, None)[1].sqrt()
    ratio = ((norm - then.norm) / norm).nan_to_num(0.0)  # 0 / 0 where w is u
    share = torch.where(then.agreement > 0, (strength * ratio).clamp(0, 1), 0).to(weight.dtype)
    if _known_to_be_0(share):
        return
    for w, u in blocks(weight, anchor):
        if u is None:
            w.mul_(1 - share)
        else:
            w.lerp_(u, share)


def _known_to_be_0(value: Tensor) -> bool:
    """Whether it is 0 or less, where that can be seen without waiting for a GPU."""
    return value.device.type == "cpu" and not bool(value > 0)


def _products(weight: Tensor, anchor: Tensor | None, gradient: Tensor | None) -> Tensor:
    """<g, w - u>, 0 without g, and ||w - u||^2; of all ranks."""
    dtype, found = torch.promote_types(weight.dtype, torch.float32), []
    for w, u, g in blocks(weight, anchor, gradient):
        difference = (w if u is None else w - u).to(dtype).flatten()
        slope = difference.new_zeros(()) if g is None else torch.dot(g.to(dtype).flatten(), difference)
        found.append(torch.stack([slope, torch.dot(difference, difference)]))
    total = torch.stack(found).sum(0)
    return of_all_ranks(total, weight) if hasattr(weight, "placements") else total
