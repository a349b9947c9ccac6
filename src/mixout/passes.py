"""One pass: the draw, and the form of :mod:`mixout.ops` that computes with it, by device, size and p.

But for the input's layout nothing is checked here: layers call these with arguments that were checked when the layers
were made, and :mod:`mixout.functional` checks for everybody else.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mixout.masks import (
    Noise,
    Unit,
    draw,
    draw_coefficients,
    draw_elements,
    mask_shape,
    once_a_period,
    scale_of,
    spread,
)
from mixout.ops import linear as forms
from mixout.ops.autocast import autocast_dtype
from mixout.ops.compiled import compiled
from mixout.ops.mix import like
from mixout.ops.mix import mix as mix_op
from mixout.ops.reference import Gradient
from mixout.streams import Stream

Form = Literal["auto", "fast", "lean"]

FORMS: tuple[Form, ...] = ("auto", "fast", "lean")

# Below this p all columns of the gradient are computed: gathering most of them would cost more than it saves.
SPARSE_FROM = 0.3
# Tokens times the share of kept columns up to which Phi is not made.
SPLIT_BELOW = 16
# Weights of a layer up to which torch's own operations, which keep Phi for backward, may be used on a CPU.
NATIVE_ON_CPU_BELOW = 2**20
# Multiply-adds that a thin gradient must spare a CPU to pay for an autograd function and a second Phi.
SPARSE_ON_CPU_FROM = 6e7
# Multiply-adds that a thin gradient must spare a GPU under autocast: what an H200 does in the time that its host takes
# longer to launch one (benchmarks/results/busy-cuda.csv).
SPARSE_ON_GPU_FROM = 2e11


def phi_pass(
    weight: Tensor,
    anchor: Tensor | None,
    p: float | Tensor,
    unit: Unit,
    gradient: Gradient,
    noise: Noise,
    stream: Stream | None,
    *,
    input_dim: int = 1,
    groups: int = 1,
) -> Tensor:
    """Phi itself; see :func:`mixout.functional.mix`."""
    if not isinstance(p, Tensor) and p == 0.0:
        return weight
    scale = scale_of(p)
    shape = tuple(weight.shape)
    if unit == "element" and noise == "bernoulli" and not isinstance(p, Tensor) and not torch.compiler.is_compiling():
        mask = draw_elements(shape, p, device=weight.device, stream=stream)
    else:
        drawn = mask_shape(shape, unit, input_dim=input_dim, groups=groups)
        mask = spread(draw(drawn, p, noise=noise, device=weight.device, stream=stream), shape)
    return mix_op(weight, constant_like(anchor, weight), mask, scale, gradient=gradient)


def linear_pass(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    p: float | Tensor,
    unit: Unit,
    gradient: Gradient,
    noise: Noise,
    stream: Stream | None,
    form: Form,
) -> Tensor:
    """Y = x Phi^T + b; see :func:`mixout.functional.mixed_linear`."""
    if torch.compiler.is_compiling() or isinstance(p, Tensor):
        return _linear_in_graph(x, weight, anchor, bias, p, unit, gradient, noise, stream)
    if p == 0.0:
        return torch.nn.functional.linear(x, weight, bias)
    check_dense(x)
    dtype = autocast_dtype(x) or weight.dtype
    if x.numel() < native_up_to(weight, p, unit, gradient, noise, form, autocast=dtype.itemsize == 2):
        shape = neuron_mask_shape(weight, unit)
        if noise == "bernoulli":
            coefficient = draw_coefficients(shape, p, weight, stream)
        else:
            mask = draw(shape, p, noise=noise, device=weight.device, stream=stream)
            coefficient = mask.to(weight.dtype) * scale_of(p)
        return forms.native(x, weight, anchor, bias, coefficient)
    read = x.to(dtype), weight, anchor, None if bias is None else bias.to(dtype)
    scale = scale_of(p)
    if keeps_columns(p, unit, gradient, noise, lean=form == "lean"):
        # On the host: the number of kept columns is known without waiting for a GPU.
        kept = once_a_period(stream, _draw_kept, weight.shape[1], p, weight.device)
        few = x.numel() * len(kept) <= SPLIT_BELOW * weight.shape[1] ** 2
        return (forms.split if few else forms.sparse)(*read, kept, scale, gradient=gradient)
    if unit == "element" and noise == "bernoulli":
        mask = draw_elements(tuple(weight.shape), p, device=weight.device, stream=stream)
    else:
        mask = draw(mask_shape(tuple(weight.shape), unit), p, noise=noise, device=weight.device, stream=stream)
    return forms.dense(*read, mask, scale, gradient=gradient)


def _draw_kept(stream: Stream | None, columns: int, p: float, device: torch.device) -> Tensor:
    """The kept columns: on the host, or within a period where the weight is."""
    kept = draw((columns,), p, device=device, stream=stream, on_host=True).nonzero().squeeze(1)
    return kept if stream is None or stream.period is None else kept.to(device, non_blocking=True)


def _linear_in_graph(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    p: float | Tensor,
    unit: Unit,
    gradient: Gradient,
    noise: Noise,
    stream: Stream | None,
) -> Tensor:
    """While compiling: on a GPU plain torch, for the compiler to fuse; on a CPU an op of ours."""
    if _is_fused(weight):
        phi = phi_pass(weight, anchor, p, unit, gradient, noise, stream)
        return torch.nn.functional.linear(x, phi, bias)
    dtype = autocast_dtype(x) or weight.dtype
    thin = _has_thin_gradient(unit, noise, gradient)
    shape = (weight.shape[1],) if thin else mask_shape(tuple(weight.shape), unit)
    mask = draw(shape, p, noise=noise, stream=stream)
    scale = scale_of(p)
    scale = scale if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float64, device="cpu")
    cast = None if bias is None else bias.to(dtype)
    return compiled(x.to(dtype), weight, constant_like(anchor, weight), cast, mask, scale, gradient=gradient)


def _is_fused(weight: Tensor) -> bool:
    """Whether a compiler is to fuse Phi with what is around it."""
    return weight.device.type != "cpu"


def native_up_to(
    weight: Tensor, p: float, unit: Unit, gradient: Gradient, noise: Noise, form: Form, *, autocast: bool = False
) -> float:
    """Numbers that an input may have for the linear to be computed in torch's own operations; 0 for none."""
    if gradient != "exact" or unit == "element" or form == "lean" or weight.dtype.itemsize <= 2:
        return 0.0
    if form == "fast":
        return math.inf
    thin = keeps_columns(p, unit, gradient, noise) and weight.requires_grad
    if weight.is_cuda:
        # Under autocast plain fine-tuning keeps a cast weight, whose place Phi takes.
        most = SPARSE_ON_GPU_FROM if weight.dtype == torch.float32 and autocast else 0.0
    else:
        most = SPARSE_ON_CPU_FROM if weight.numel() <= NATIVE_ON_CPU_BELOW else 0.0
    return most / (p * weight.shape[0]) if thin or most == 0.0 else math.inf


def neuron_mask_shape(weight: Tensor, unit: Unit) -> tuple[int, ...]:
    """Shape of a mask of neurons, or of a whole layer, as :func:`mixout.ops.linear.native` takes it."""
    return {"input": (weight.shape[1],), "output": (weight.shape[0], 1)}.get(unit, (1,))


def _has_thin_gradient(unit: Unit, noise: Noise, gradient: Gradient) -> bool:
    """Whether whole columns of the weight's gradient are zero."""
    return unit == "input" and noise == "bernoulli" and gradient != "dense"


def keeps_columns(p: float, unit: Unit, gradient: Gradient, noise: Noise, *, lean: bool = False) -> bool:
    """Whether the gradient is computed for kept columns alone; ``lean``: with every p."""
    return _has_thin_gradient(unit, noise, gradient) and (lean or p >= SPARSE_FROM)


def constant_like(anchor: Tensor | None, weight: Tensor) -> Tensor | None:
    """The anchor as a constant, on the device and in the dtype of ``weight``."""
    return None if anchor is None else like(anchor.detach(), weight)


def check_dense(x: Tensor) -> None:
    """Refuse an input that the forms cannot flatten; asked in each pass, since a layer sees it there alone."""
    if x.layout != torch.strided:
        raise TypeError(f"expected x as a dense tensor, got one of layout {x.layout}; pad it, or call x.to_dense()")
