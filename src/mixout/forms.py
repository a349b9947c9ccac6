"""In which form a mixed linear is computed: what decides is p, the number of tokens, the device and the mask.

Every form computes the same Y = x Phi^T + b from the same coins; :mod:`mixout.ops` has one file for each. Not for
compiled graphs, which have a form of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixout.masks import Noise, Unit, coins, draw, mask_shape, scale_of
from mixout.ops.dense import dense_linear
from mixout.ops.native import native_linear
from mixout.ops.reference import Gradient
from mixout.ops.sparse import column_sparse_linear
from mixout.ops.split import split_linear
from mixout.streams import Stream

# Below this p all columns of the gradient are computed: gathering most of them would cost more than it saves.
SPARSE_FROM = 0.3
# Tokens times the share of kept columns up to which Phi is not made.
SPLIT_BELOW = 16
# Multiply-adds that a thin gradient must spare a GPU under autocast: what an H200 does in the time that its host takes
# longer to launch one (benchmarks/results/busy-cuda.csv). 0 takes it always, which keeps less memory, and pays where
# the GPU is slower or the host faster.
SPARSE_ON_GPU_FROM = 2e11
# Columns of 16 bits each that a GPU's matrix units load at once.
_ALIGNED = 8


def has_thin_gradient(unit: Unit, noise: Noise, gradient: Gradient) -> bool:
    """Whether whole columns of the weight's gradient are zero."""
    return unit == "input" and noise == "bernoulli" and gradient != "dense"


def linear(
    x: Tensor,
    weight: Tensor,
    anchor: Tensor | None,
    bias: Tensor | None,
    *,
    p: float,
    unit: Unit,
    gradient: Gradient,
    noise: Noise,
    stream: Stream | None,
    dtype: torch.dtype,
) -> Tensor:
    """One pass of :func:`mixout.functional.mixed_linear`, with its arguments, checked, and p above 0; in ``dtype``."""
    thin = has_thin_gradient(unit, noise, gradient)
    if unit != "element" and gradient == "exact" and _may_wait_for_host(weight, dtype):
        pays = thin and p >= SPARSE_FROM and weight.requires_grad
        if not pays or p * x.numel() * weight.shape[0] < SPARSE_ON_GPU_FROM:
            return native_linear(x, weight, anchor, bias, _coefficient(weight, p, unit, noise, stream))
    read = x.to(dtype), weight, anchor, None if bias is None else bias.to(dtype)
    if not thin:
        return dense_linear(*read, _coins(weight, p, unit, noise, stream), scale_of(p), gradient=gradient)
    # Drawn on the host: the number of kept columns is known without waiting for the device.
    return _thin(read, draw((weight.shape[1],), p, stream=stream), p, gradient)


def _thin(
    read: tuple[Tensor, Tensor, Tensor | None, Tensor | None], kept: Tensor, p: float, gradient: Gradient
) -> Tensor:
    """The linear of a mask of columns, which lies on the host, in the form that suits p and the number of tokens."""
    x, weight = read[:2]
    scale = scale_of(p)
    if p < SPARSE_FROM:
        mask = kept.to(weight.device, non_blocking=True)
        return dense_linear(*read, lambda: mask, scale, gradient=gradient)
    columns = kept.nonzero().squeeze(1)
    form = column_sparse_linear
    if x.numel() * len(columns) <= SPLIT_BELOW * weight.shape[1] ** 2:
        form = split_linear
    elif weight.is_cuda and x.dtype.itemsize == 2 and len(columns):
        # The last one several times, which changes nothing: rows of another length would be read piecemeal.
        columns = torch.cat([columns, columns[-1:].expand(-len(columns) % _ALIGNED)])
    return form(*read, columns.to(weight.device, non_blocking=True), scale, gradient=gradient)


def _may_wait_for_host(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a GPU computes, and keeps a cast weight anyway: in ``dtype``, where the weight is float32."""
    return weight.is_cuda and weight.dtype == torch.float32 and dtype.itemsize == 2


def _coefficient(weight: Tensor, p: float, unit: Unit, noise: Noise, stream: Stream | None) -> Tensor:
    """M / (1-p), laid out to be multiplied with ``weight``; tossed on the host, as a form with a thin gradient does."""
    mask = draw(mask_shape(tuple(weight.shape), unit), p, noise=noise, stream=stream)
    return (mask.to(weight.dtype) * scale_of(p)).to(weight.device, non_blocking=True)


def _coins(weight: Tensor, p: float, unit: Unit, noise: Noise, stream: Stream | None) -> Callable[[], Tensor]:
    """Element masks are drawn again when they are needed again; a mask with one coin a neuron is kept."""
    shape = tuple(weight.shape)
    if unit == "element":
        return coins(shape, p, noise=noise, device=weight.device, stream=stream)
    mask = draw(mask_shape(shape, unit), p, noise=noise, device=weight.device, stream=stream)
    return lambda: mask
