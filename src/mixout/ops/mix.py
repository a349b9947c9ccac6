"""Phi for any unit: one weight-sized result, and nothing weight-sized is kept but an element mask.

``Phi = u + M * scale * (w - u)`` as in :mod:`mixout.ops.reference`. Backward needs M alone, which for input and
output units is a vector. Differentiable twice, and under ``torch.func``.

Autocast is done by us: the ops cast what they read and keep autocast from casting Phi a second time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mixout.ops import kernels
from mixout.ops.reference import Gradient, slope_of

# Asked for once: a compiled graph cannot ask, in some versions of torch.
_KINDS = frozenset(filter(torch.amp.is_autocast_available, ("cpu", "cuda", "xpu", "mps", "hpu", "xla")))


def interpolate(weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float | Tensor) -> Tensor:
    """Compute Phi in one element-wise pass; ``anchor`` None stands for u = 0.

    lerp(u, w, c) returns u at c = 0 and w at c = 1 to the bit, so the ends are exact. Its coefficient has the
    weight's dtype, which in 16 bits would round the scale (3.33 to 3.328 at p = 0.7 in bfloat16): there M is the tensor
    and the scale stays a Python number, which addcmul holds in float32.
    """
    if anchor is None:
        return scaled(weight, mask, scale)
    anchor = like(anchor, weight)
    if weight.dtype.itemsize > 2:  # u at M = 0 and w at M scale = 1 to the bit
        return torch.lerp(anchor, weight, mask.to(weight.dtype) * scale)
    if isinstance(scale, Tensor):  # in a compiled graph, which fuses the casts
        return torch.lerp(anchor.float(), weight.float(), mask.float() * scale).to(weight.dtype)
    return torch.addcmul(anchor, weight - anchor, mask.to(weight.dtype), value=scale)


def interpolate_to(dtype: torch.dtype, weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float) -> Tensor:
    """:func:`interpolate`, then a cast to ``dtype``; on a GPU in one kernel."""
    if kernels.available(weight):
        device_anchor = None if anchor is None else anchor.to(weight.device, non_blocking=True)
        return kernels.phi(weight, device_anchor, mask, scale, dtype)
    return interpolate(weight, anchor, mask, scale).to(dtype)


def like(anchor: Tensor, weight: Tensor) -> Tensor:
    """The anchor on the device and in the dtype of ``weight``: itself, unless it is kept smaller or on the host."""
    return anchor.to(weight.device, weight.dtype, non_blocking=True)


def scaled(x: Tensor, mask: Tensor, scale: float | Tensor) -> Tensor:
    """Compute ``x * M * scale`` in the dtype of ``x``, without rounding the scale to it."""
    wide = torch.float32 if x.dtype.itemsize == 2 else x.dtype
    return (x * (mask.to(wide) * scale)).to(x.dtype)


class _Mix(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float, slope: float) -> Tensor:
        return interpolate(weight, anchor, mask, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, mask, _, ctx.slope = inputs
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (mask,) = ctx.saved_tensors
        return scaled(grads[0], mask, ctx.slope), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (mask,) = ctx.saved_tensors
        return scaled(tangents[0], mask, ctx.slope)


def mix(
    weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float | Tensor, *, gradient: Gradient = "exact"
) -> Tensor:
    """Phi, whose derivative with respect to ``weight`` is M * scale (``exact``), M (``paper``) or 1 (``dense``).

    Arguments as of :func:`mixout.ops.reference.mix`; ``anchor`` None stands for 0. ``scale`` is a tensor where p is
    a tensor, in a compiled graph: there autograd derives Phi and the compiler fuses it.
    """
    if gradient == "dense":
        return with_slope(weight, anchor, mask, scale, None)
    if isinstance(scale, Tensor):  # where p is a tensor: in a compiled graph, which fuses Phi
        phi = interpolate(weight, anchor, mask, scale)
        return phi if gradient == "exact" else phi.detach() + mask.to(weight.dtype) * (weight - weight.detach())
    return with_slope(weight, anchor, mask, scale, slope_of(gradient, scale))


def with_slope(
    weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float | Tensor, slope: float | None
) -> Tensor:
    """Phi, whose derivative with respect to ``weight`` is M * slope, or 1 where that is None."""
    if slope is None:
        return interpolate(weight.detach(), anchor, mask, scale) + (weight - weight.detach())
    result: Tensor = _Mix.apply(weight, anchor, mask, scale, slope)  # type: ignore[no-untyped-call]
    return result


def as_function_of_weight(phi: Tensor, mask: Tensor, slope: float) -> Tensor:
    """Phi, made elsewhere, in the place of w for autograd: a hook turns its gradient into dL/dw."""
    phi_view = phi.view_as(phi)
    if phi_view.requires_grad:
        phi_view.register_hook(lambda grad: scaled(grad, mask, slope))  # type: ignore[no-untyped-call]
    return phi_view


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes a linear of ``x``, or None: it skips float64, and lacks some devices."""
    device_type = x.device.type
    if x.dtype == torch.float64 or not _enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which tensors on ``device`` keep their dtypes."""
    device_type = device.type
    return torch.autocast(device_type, enabled=False) if _enabled(device_type) else nullcontext()


def _enabled(device_type: str) -> bool:
    available = device_type in _KINDS or torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)
