r"""The authors' formulation, written from equation 4: the stand-in for what people use today. For measuring only.

Expanded forward, a mask as large as the weight, and a gradient without the factor 1/(1-p)::

    Phi    = ((I - M) u + M w - p u) / (1 - p)
    grad_w = grad_Phi * M

Masks (one number per input neuron, drawn anew in every pass), layers and result are those of mixout with
``gradient="paper"``, except for rounding. It is no method of the library and can't be undone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixout import dropouts
from mixout.selection import chosen, resolve


class _ExpandedMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, anchor: Tensor, mask: Tensor, p: float) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(mask)
        return ((1 - mask) * anchor + mask * weight - p * anchor) / (1 - p)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (mask,) = ctx.saved_tensors
        return grads[0] * mask, None, None, None


def expanded_mix(weight: Tensor, anchor: Tensor, mask: Tensor, p: float) -> Tensor:
    """Phi of a weight (out, in), its anchor, and a mask of the same shape that is 1 where w is kept; p in [0, 1).

    Example:
        >>> expanded_mix(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), 0.5)
        tensor([[2., 0.]])
    """
    result: Tensor = _ExpandedMix.apply(weight, anchor, mask, p)  # type: ignore[no-untyped-call]
    return result


class AuthorsLinear(nn.Linear):
    """An ``nn.Linear`` that reads the expanded Phi while training and its weight in eval mode."""

    anchor: Tensor
    p: float

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not self.training:
            return nn.functional.linear(input, self.weight, self.bias)
        kept = torch.rand(1, self.in_features, device=self.weight.device) >= self.p
        mask = kept.to(self.weight.dtype).expand_as(self.weight).contiguous()
        return nn.functional.linear(input, expanded_mix(self.weight, self.anchor, mask, self.p), self.bias)


def apply_authors_(model: nn.Module, p: float) -> nn.Module:
    """Exchange the linears that ``mixout.apply_`` would mix by default, and switch the model's dropouts off.

    Raises:
        ValueError: if ``p`` is not in [0, 1): the form divides by 1-p.

    Example:
        >>> apply_authors_(nn.Sequential(nn.Linear(4, 3)), 0.9)[0]
        AuthorsLinear(in_features=4, out_features=3, bias=True)
    """
    if not 0 <= p < 1:
        raise ValueError(f"expected p in [0, 1), got {p}; the expanded form divides by 1-p")
    for module in chosen(model, resolve(None, model))[0].values():
        if isinstance(module, nn.Linear):
            module.__class__ = AuthorsLinear
            module.anchor, module.p = module.weight.detach().clone(), p  # type: ignore[assignment]
    dropouts.set_(model, 0.0)
    return model
