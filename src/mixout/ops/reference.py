r"""The definition, in plain torch: the oracle of every other form.

Equation 4 of Lee et al. 2020 (arXiv 1909.11299) with mask M, E M = mu::

    Phi(w; u, M) = ((I - M) u + M w - (1 - mu) u) / mu  =  u + (M / mu) (w - u)

The right-hand side is what is computed: where w equals u it is exactly u in every dtype, while the expanded form
loses digits to cancellation. Nothing here is fast and everything is differentiable as often as you like.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Gradient = Literal["exact", "paper", "dense"]

GRADIENTS: tuple[Gradient, ...] = ("exact", "paper", "dense")


def slope_of(gradient: Gradient, scale: float) -> float | None:
    """What M is multiplied by in the derivative with respect to w; None where that is not masked."""
    return {"exact": scale, "paper": 1.0, "dense": None}[gradient]


def mix(weight: Tensor, anchor: Tensor, mask: Tensor, scale: float, *, gradient: Gradient = "exact") -> Tensor:
    r"""Phi = u + M * scale * (w - u), with ``scale = 1 / mu``.

    The derivative with respect to w is M / mu (``exact``). The authors' code and equation 2 of the paper use M
    (``paper``), which is smaller by the factor mu = 1 - p. ``dense`` is 1, as if nothing were mixed: a control that
    keeps mixout's forward and drops its sparse gradient.

    Args:
        weight: w, any shape and floating dtype.
        anchor: u, the shape of ``weight``; treated as a constant.
        mask: M, broadcastable to ``weight``; bool or floating.
        scale: 1 / mu, or 0 where mu is 0.
        gradient: which derivative autograd sees.

    Example:
        >>> import torch
        >>> w, u = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 0.5]])
        >>> mix(w, u, torch.tensor([True, False]), 2.0)  # p = 1/2
        tensor([[1.5000, 0.5000]])
    """
    anchor = anchor.detach()
    mask = mask.to(weight.dtype)
    if gradient == "exact":
        return anchor + mask * scale * (weight - anchor)
    value = anchor + mask * scale * (weight.detach() - anchor)
    slope = mask if gradient == "paper" else 1.0
    return value + slope * (weight - weight.detach())  # adds zero to the value and M, or 1, to the derivative
