"""One pass: the draw, and the form of :mod:`mixout.ops` that computes with it, by device, size and p.

Nothing is checked here except the input's layout: layers call these with arguments that were checked when the layers
were made, and :mod:`mixout.functional` checks for everybody else.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixout._torch import in_functional_transform
from mixout.masks import (
    Noise,
    Unit,
    draw,
    draw_coefficients,
    draw_element_coefficients,
    draw_elements,
    mask_shape,
    once_a_period,
    scale_of,
    spread,
)
from mixout.ops import linear as forms
from mixout.ops.mix import autocast_dtype, like
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


class MixOptions(NamedTuple):
    """How a pass mixes; see :func:`mixout.functional.mix` and :func:`mixout.functional.mixed_linear`."""

    p: float | Tensor
    unit: Unit = "input"
    gradient: Gradient = "exact"
    noise: Noise = "bernoulli"
    stream: Stream | None = None
    form: Form = "auto"


def phi_pass(
    weight: Tensor, anchor: Tensor | None, options: MixOptions, *, input_dim: int = 1, groups: int = 1
) -> Tensor:
    """Phi itself; see :func:`mixout.functional.mix`."""
    if not isinstance(options.p, Tensor) and options.p == 0.0:
        return weight
    shape = tuple(weight.shape)
    mask = spread(draw_mask(shape, weight.device, options, input_dim=input_dim, groups=groups), shape)
    constant = None if anchor is None else anchor.detach()
    return mix_op(weight, constant, mask, scale_of(options.p), gradient=options.gradient)


def embedding_pass(
    index: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    options: MixOptions,
    **kwargs: Any,  # noqa: ANN401
) -> Tensor:
    """Rows of Phi; see :func:`mixout.functional.mixed_embedding`."""
    rows = torch.nn.functional.embedding(index, weight, **kwargs)
    if not isinstance(options.p, Tensor) and options.p == 0.0:
        return rows
    shape = mask_shape(tuple(weight.shape), options.unit, input_dim=0)
    mask = draw(shape, options.p, noise=options.noise, device=weight.device, stream=options.stream)
    if options.unit in ("input", "element"):
        mask = mask[index]
    anchor_rows = None if anchor is None else torch.nn.functional.embedding(index, like(anchor.detach(), weight))
    if anchor_rows is not None and kwargs.get("max_norm") is not None:  # as the rows of w, but u stays as it is
        flat = anchor_rows.reshape(-1, anchor_rows.shape[-1])
        anchor_rows = torch.renorm(flat, kwargs.get("norm_type", 2.0), 0, kwargs["max_norm"]).view_as(anchor_rows)
    return mix_op(rows, anchor_rows, mask, scale_of(options.p), gradient=options.gradient)


def linear_pass(x: Tensor, weight: Tensor, anchor: Tensor | None, bias: Tensor | None, options: MixOptions) -> Tensor:
    """The linear y = x Phi^T + b; see :func:`mixout.functional.mixed_linear`."""
    p, unit, gradient, noise, stream, _ = options
    if torch.compiler.is_compiling() or isinstance(p, Tensor):
        return _linear_in_graph(x, weight, anchor, bias, options)
    if p == 0.0:
        return torch.nn.functional.linear(x, weight, bias)
    check_dense(x)
    dtype = autocast_dtype(x) or weight.dtype
    if x.numel() < native_up_to(weight, options, autocast=dtype.itemsize == 2):
        shape = mask_shape(tuple(weight.shape), unit)
        if noise == "bernoulli":
            make = draw_element_coefficients if unit == "element" else draw_coefficients
            coefficient = make(shape, p, weight.dtype, weight.device, stream=stream)
        else:
            mask = draw(shape, p, noise=noise, device=weight.device, stream=stream)
            coefficient = mask.to(weight.dtype) * scale_of(p)
        return forms.native(x, weight, anchor, bias, coefficient)
    x, bias = _cast(x, weight, bias)
    operands = x, weight, anchor, bias
    if keeps_columns(options) and not in_functional_transform():  # where each example may have columns of its own
        # On the host: the number of kept columns is known without waiting for a GPU.
        kept = _draw_kept(weight.shape[1], p, weight.device, stream=stream)
        few_tokens = x.numel() * len(kept) <= SPLIT_BELOW * weight.shape[1] ** 2
        return (forms.split if few_tokens else forms.sparse)(*operands, kept, scale_of(p), gradient=gradient)
    mask = draw_mask(tuple(weight.shape), weight.device, options)
    return forms.dense(*operands, mask, scale_of(p), gradient=gradient)


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``x`` and ``bias`` as autocast would cast them; without it they must have the weight's dtype."""
    if (dtype := autocast_dtype(x)) is None:
        if x.dtype != weight.dtype:
            torch.nn.functional.linear(x, weight, bias)  # raises, as a plain layer
        return x, bias
    return x.to(dtype), None if bias is None else bias.to(dtype)


def draw_mask(
    shape: tuple[int, ...], device: torch.device, options: MixOptions, *, input_dim: int = 1, groups: int = 1
) -> Tensor:
    """A mask for a weight of ``shape``, before it is spread over a grouped convolution's output channels."""
    p, unit, _, noise, stream, _ = options
    if unit == "element" and noise == "bernoulli" and not isinstance(p, Tensor) and not torch.compiler.is_compiling():
        return draw_elements(shape, p, device=device, stream=stream)
    drawn_shape = mask_shape(shape, unit, input_dim=input_dim, groups=groups)
    return draw(drawn_shape, p, noise=noise, device=device, stream=stream)


@once_a_period
def _draw_kept(columns: int, p: float, device: torch.device, *, stream: Stream | None) -> Tensor:
    """The kept columns: on the host, or within a period where the weight is."""
    kept = draw((columns,), p, device=device, stream=stream, on_host=True).nonzero().squeeze(1)
    return kept if stream is None or stream.period is None else kept.to(device, non_blocking=True)


def _linear_in_graph(
    x: Tensor, weight: Tensor, anchor: Tensor | None, bias: Tensor | None, options: MixOptions
) -> Tensor:
    """While compiling: on a GPU plain torch, for the compiler to fuse; on a CPU an op of ours."""
    if _is_fused(weight):
        return torch.nn.functional.linear(x, phi_pass(weight, anchor, options), bias)
    x, bias = _cast(x, weight, bias)
    shape = (weight.shape[1],) if _has_thin_gradient(options) else mask_shape(tuple(weight.shape), options.unit)
    mask = draw(shape, options.p, noise=options.noise, stream=options.stream)
    scale = scale_of(options.p)
    scale = scale if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float64, device="cpu")
    slope = None if options.gradient == "dense" else scale if options.gradient == "exact" else torch.ones_like(scale)
    u = None if anchor is None else like(anchor, weight)
    result: Tensor = forms.compiled(x, weight, u, bias, mask, scale, slope)
    return result


def _is_fused(weight: Tensor) -> bool:
    """Whether a compiler is to fuse Phi with what is around it."""
    return weight.device.type != "cpu"


def native_up_to(weight: Tensor, options: MixOptions, *, autocast: bool = False) -> float:
    """The size of an input below which the linear is computed in torch's own operations; 0 for never."""
    if options.gradient != "exact" or options.form == "lean" or weight.dtype.itemsize <= 2:
        return 0.0
    if options.unit == "element" and not weight.is_cpu:  # there Phi is one kernel
        return 0.0
    if options.form == "fast":
        return math.inf
    if weight.is_cuda:
        # Under autocast plain fine-tuning keeps a cast weight, whose place Phi takes.
        limit = SPARSE_ON_GPU_FROM if weight.dtype == torch.float32 and autocast else 0.0
    else:
        limit = SPARSE_ON_CPU_FROM if weight.numel() <= NATIVE_ON_CPU_BELOW else 0.0
    thin_gradient = keeps_columns(options) and weight.requires_grad
    return limit / (float(options.p) * max(1, weight.shape[0])) if thin_gradient or limit == 0.0 else math.inf


def _has_thin_gradient(options: MixOptions) -> bool:
    """Whether whole columns of the weight's gradient are zero."""
    return options.unit == "input" and options.noise == "bernoulli" and options.gradient != "dense"


def keeps_columns(options: MixOptions) -> bool:
    """Whether the gradient is computed for kept columns alone."""
    return _has_thin_gradient(options) and (options.form == "lean" or float(options.p) >= SPARSE_FROM)


def check_dense(x: Tensor) -> None:
    """Refuse an input that the forms cannot flatten; checked in each pass, as a layer sees its input only there."""
    if x.layout != torch.strided or x.is_nested:
        layout = "a nested one" if x.is_nested else f"one of layout {x.layout}"
        raise TypeError(f"expected x as a dense tensor, got {layout}; pad it, or call x.to_dense()")
