"""Backward passes that can be taken once: a second derivative through their results is refused, not taken for zero.

torch's ``once_differentiable`` refuses it only where the incoming gradient is itself differentiable, which that of a
sum is not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


def once(backward: Backward) -> Backward:
    """``backward`` of an autograd function, whose results raise a RuntimeError where they are differentiated."""

    @functools.wraps(backward)
    def guarded(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # without create_graph, the usual case
            return results
        return tuple(None if one is None else _last(one) for one in results)

    return guarded


def _last(gradient: Tensor) -> Tensor:
    one: Tensor = _Last.apply(gradient.detach().requires_grad_())  # type: ignore[no-untyped-call]
    return one


class _Last(torch.autograd.Function):
    """The identity, without a derivative."""

    @staticmethod
    def forward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(_ctx: Any, *_grads: Tensor) -> Tensor:
        raise RuntimeError(
            "expected one derivative of a mixed linear, got a second one, for which it keeps too little; "
            "mixout.functional.mix is differentiable twice: use torch.nn.functional.linear(x, mix(w, u, p))"
        )
