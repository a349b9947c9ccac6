r"""anchor_decay: weight decay towards the pretrained weights u instead of towards zero.

Decoupled (the default), after each optimizer step with learning rate :math:`\eta`:

.. math:: w \leftarrow u + e^{-\eta / r} (w - u), \qquad \text{rate} = 1 / r

If no step moves a weight by more than s, then :math:`|w - u| \le s / (e^{\eta / r} - 1) < r s / \eta`.
Relative (``relative=True``): the radius of each weight is r times the root mean square of its u.

Coupled (``decoupled=False``): ``rate (w - u)`` is added to the gradient before the step. It is the derivative of the
paper's wdecay(u, lambda), :math:`L(w) + (\lambda / 2) ||w - u||^2`; with the pretrained u this is L2-SP without its
head term. It overshoots as any gradient step does, and bounds nothing.

Selective (``selective=True``, SPD): only where the step went away from u though its gradient asked to go back. With
:math:`w_-` and g of before the step, where :math:`\langle g, w_- - u \rangle > 0`, for each weight as a whole:

.. math:: w \leftarrow w - \text{rate} \cdot c \, (w - u), \quad c = \mathrm{clip}(1 - ||w_- - u|| / ||w - u||, 0, 1)

Weighted (``weights=F``, EWC): each entry decays with its own importance, :math:`w_i \leftarrow u_i + e^{-\eta F_i / r}
(w_i - u_i)`; coupled, ``rate F (w - u)`` is added to the gradient.

Of nested optimizers (SAM, Lookahead, ZeroRedundancyOptimizer) the innermost decays; coupled, at the weights that it
steps. A line search (LBFGS) does not see that penalty in the loss, and it stays in the gradient: two steps without
``zero_grad`` between them add it twice.

Source: Lee, Cho, Kang, ICLR 2020, sections 2 and 5; Li, Grandvalet, Davoine, ICML 2018 (L2-SP); Kirkpatrick et al.,
PNAS 2017, arXiv 1612.00796 (EWC); Tian, Huang, Kira, NeurIPS 2024, arXiv 2411.01713 (SPD). The radius is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mixout.distances import blocks, norm, of_all_ranks
from mixout.methods.mixing import Method


@dataclass(frozen=True, repr=False)
class AnchorDecay(Method):
    """Weight decay towards the pretrained weights. Give it a radius, or a rate.

    Args:
        rate: strength, at least 0; in units of 1 / (learning rate x step) if decoupled, else of the loss's curvature.
            A run of T steps multiplies w - u by exp(-rate x the sum of its T learning rates): rate 0.01 with a
            learning rate of 2e-5 removes 0.002 % in 100 steps, which is nothing.
        radius: 1 / rate, above 0. Under Adam it is about the farthest that a weight goes from its start, whatever the
            learning rate: 0.005 is a good first value for transformers. Others: docs/methods/anchor-decay.md.
        relative: the radius is a share of each weight's root mean square at the start: 0.1 lets the entries of a weight
            whose entries are about 0.03 go about 0.003 far. Takes a radius.
        decoupled: shrink the distance after the step, by the factor exp(-learning rate * rate); or, if False, add
            the penalty's gradient before the step, which takes a rate.
        selective: only where a step went away from the start and its gradient did not; takes a rate without a unit, 1
            to take back what such a step has added to the distance. Costs twice as much as the plain decay.
        weights: importance of each entry, at least 0: tensors by parameter name, as :func:`mixout.fisher` makes them,
            or a safetensors file of them. Kept in bfloat16. A checkpoint holds their digest, not them: keep the file,
            or measure again with the same seed.

    Raises:
        TypeError: if ``rate`` or ``radius`` is not a number, or ``weights`` neither tensors nor a path.
        ValueError: if both are given or none, if one is out of its range, or if options exclude each other.

    Example:
        >>> AnchorDecay(radius=0.005)
        AnchorDecay(radius=0.005)
        >>> AnchorDecay(200.0).strength == AnchorDecay(radius=0.005).strength
        True
    """

    rate: float | None = None
    _: KW_ONLY
    radius: float | None = None
    relative: bool = False
    decoupled: bool = True
    selective: bool = False
    weights: Mapping[str, Tensor] | str | Path | None = None
    name: ClassVar[str] = "anchor_decay"

    def __post_init__(self) -> None:
        strengths = {name: value for name in ("radius", "rate") if (value := getattr(self, name)) is not None}
        if len(strengths) != 1:
            both = " and ".join(f"{name} {value}" for name, value in strengths.items())
            raise ValueError(
                "expected anchor_decay with either a radius, about the farthest that a weight may go, for example "
                f"anchor_decay(radius=0.005), or a rate = 1 / radius; got {both or 'neither'}"
            )
        for name, value in strengths.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"expected {name} to be a number, got {value!r}")
        self._check_options()
        if self.weights is not None:
            if not isinstance(self.weights, (Mapping, str, Path)):
                raise TypeError(f"expected weights as tensors by name, or a path, got {self.weights!r}")
            weights = _Held(self.weights) if isinstance(self.weights, Mapping) else str(self.weights)
            object.__setattr__(self, "weights", weights)

    def _check_options(self) -> None:
        if self.rate is not None and not (self.rate >= 0 and math.isfinite(self.rate)):
            raise ValueError(f"expected a finite rate, at least 0, got {self.rate}")
        if self.radius is not None:
            if not (self.radius > 0 and math.isfinite(self.radius) and math.isfinite(self.strength)):
                raise ValueError(f"expected a finite radius above 0, got {self.radius}")
            if not self.decoupled or self.selective:
                option = "selective=True" if self.selective else "decoupled=False"
                raise ValueError(f"expected a rate with {option}, which bounds no distance, got a radius")
        if self.relative and self.radius is None:
            raise ValueError(f"expected a radius with relative=True, got rate {self.rate}")
        if self.selective and (not self.decoupled or self.weights is not None):
            option = "no weights" if self.decoupled else "decoupled=True"
            raise ValueError(f"expected {option} with selective=True, which treats each weight as a whole")

    @property
    def strength(self) -> float:
        """The rate, or 1 / radius."""
        return self.rate if self.rate is not None else 1 / self.radius  # type: ignore[operator]  # one is given

    def strength_on(self, start: Tensor | None) -> float:
        """The strength on a weight that starts at ``start`` (None: at 0); if relative, infinite on a start at 0."""
        if not self.relative:
            return self.strength
        root_mean_square = 0.0 if start is None else norm(start, None) / math.sqrt(max(1, start.numel()))
        return self.strength / root_mean_square if root_mean_square else math.inf

    @property
    def weighted(self) -> bool:
        """Whether each entry has an importance of its own."""
        return self.weights is not None

    @property
    def shrinks(self) -> bool:
        """Whether it acts after the step alone, with its learning rate; others look at the gradient."""
        return self.decoupled and not self.selective


class _Held(dict[str, Tensor]):
    """Tensors by name, which a frozen method can hold: equal to itself only, and with a short repr."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # dict's is None

    def __eq__(self, other: object) -> bool:
        return self is other

    def __deepcopy__(self, memo: dict[int, Any]) -> _Held:
        return self  # nobody writes to it

    def __repr__(self) -> str:
        return f"<{len(self)} tensors>"


def decays(parameter: Tensor) -> bool:
    """Whether it is a weight of at least two dimensions."""
    return parameter.dim() >= 2 and parameter.is_floating_point()


# The rules on plain tensors: w the weight, u its anchor (None for 0).


@torch.no_grad()
def shrink_(weights: list[Tensor], anchors: list[Tensor] | None, exponent: float | Tensor) -> None:
    """Decay w <- u + exp(exponent) (w - u), for weights of one dtype, device and mesh; without anchors u is 0."""
    if isinstance(exponent, Tensor):  # of any dtype and device, which lerp does not take
        share = -torch.expm1(exponent)
        for weight, anchor in zip(weights, anchors or weights, strict=True):
            device_share = share if share.device.type == "cpu" else share.to(weight.device)
            weight.sub_((weight if anchors is None else weight - anchor) * device_share)
    elif anchors is None:
        torch._foreach_mul_(weights, math.exp(exponent))
    else:
        torch._foreach_lerp_(weights, anchors, -math.expm1(exponent))


@torch.no_grad()
def shrink_weighted_(weight: Tensor, anchor: Tensor | None, importance: Tensor, exponent: float | Tensor) -> None:
    """Decay w <- u + exp(exponent F) (w - u), entry by entry; without an anchor u is 0."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if isinstance(exponent, Tensor):
        exponent = exponent.to(weight.device)
    for w, u, f in blocks(weight, anchor, importance):
        share = (f.to(dtype) * exponent).expm1_()
        w.addcmul_(w if u is None else w - u, share.to(w.dtype))


class Before(NamedTuple):
    """What the selective rule must know of a weight before the step: two numbers, on the weight's device."""

    agreement: Tensor  # <g, w - u>, above 0 where following the gradient leads back towards u
    norm: Tensor  # ||w - u||


@torch.no_grad()
def before(weight: Tensor, anchor: Tensor | None, gradient: Tensor) -> Before:
    """What to know of a weight and its gradient before the step."""
    agreement, square = _products(weight, anchor, gradient.to_dense() if gradient.is_sparse else gradient)
    return Before(agreement, square.sqrt())


@torch.no_grad()
def shrink_selectively_(weight: Tensor, anchor: Tensor | None, then: Before, strength: float) -> None:
    """Undo a part of what the step has added to the distance, where the gradient asked to go back; never beyond u."""
    if then.agreement.device.type == "cpu" and not then.agreement > 0:  # known without waiting for a GPU
        return
    norm = _products(weight, anchor, None)[1].sqrt()
    ratio = ((norm - then.norm) / norm).nan_to_num(0.0)  # 0 / 0 where w is u
    share = torch.where(then.agreement > 0, (strength * ratio).clamp(0, 1), 0).to(weight.dtype)
    for w, u in blocks(weight, anchor):
        if u is None:
            w.mul_(1 - share)
        else:
            w.lerp_(u, share)


def _products(weight: Tensor, anchor: Tensor | None, gradient: Tensor | None) -> Tensor:
    """<g, w - u>, 0 without g, and ||w - u||^2; of all ranks."""
    dtype, products = torch.promote_types(weight.dtype, torch.float32), []
    for w, u, g in blocks(weight, anchor, gradient):
        difference = (w if u is None else w - u).to(dtype).flatten()
        slope = difference.new_zeros(()) if g is None else torch.dot(g.to(dtype).flatten(), difference)
        products.append(torch.stack([slope, torch.dot(difference, difference)]))
    total = torch.stack(products).sum(0)
    return of_all_ranks(total, weight) if hasattr(weight, "placements") else total
