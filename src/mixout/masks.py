"""Random masks: which units keep their fine-tuned weights in a training pass.

A mask M has mean ``mu = 1 - p``. Bernoulli: M is 1 with probability 1-p, else 0. Gaussian: M ~ N(1-p, p(1-p)),
the same mean and variance. One random number belongs to one *unit*:

- ``input``: an input neuron; all weights that leave it share it (mixout, Lee et al. 2020, section 3);
- ``output``: an output neuron; all weights that enter it share it;
- ``element``: every weight has its own (mixconnect);
- ``layer``: the whole weight shares one.

Where the numbers come from is decided in :mod:`mixout.streams`. This file knows neither weights nor models.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, ParamSpec

import torch
from torch import Tensor

from mixout._torch import is_observed
from mixout.streams import NO_STREAM, Stream, draw_in_graph

Unit = Literal["input", "output", "element", "layer"]
Noise = Literal["bernoulli", "gaussian"]
Given = ParamSpec("Given")

UNITS: tuple[Unit, ...] = ("input", "output", "element", "layer")
NOISES: tuple[Noise, ...] = ("bernoulli", "gaussian")


def check_p(p: float, noise: Noise = "bernoulli") -> float:
    """Return ``p`` as a float, or say what is wrong with it for this noise."""
    if isinstance(p, bool) or not isinstance(p, numbers.Real):
        raise TypeError(f"expected p to be a number in [0, 1], got {p!r}")
    if not 0.0 <= p <= 1.0:  # also refuses nan
        raise ValueError(f"expected p in [0, 1], the probability that a unit is replaced by the anchor, got {p}")
    if noise == "gaussian" and p == 1:
        raise ValueError("expected p in [0, 1) for gaussian noise, whose variance p/(1-p) has no limit at 1, got 1")
    return float(p)


def scale_of(p: float | Tensor) -> Any:  # noqa: ANN401  a tensor of a tensor, else a number
    """1 / mu; at p = 1 every unit is replaced and the scale multiplies nothing."""
    if isinstance(p, Tensor):
        return torch.where(p < 1, 1 / (1 - p), torch.zeros_like(p))
    return 0.0 if p == 1.0 else 1.0 / (1.0 - p)


def once_a_period(make: Callable[Given, Tensor]) -> Callable[Given, Tensor]:
    """``make``; within a period of its ``stream``, equal arguments give the tensor that it returned before."""

    @functools.wraps(make)
    def held(*args: Given.args, **options: Given.kwargs) -> Tensor:
        stream: Any = options.get("stream")
        if stream is None or stream.period is None or torch.compiler.is_compiling():
            return make(*args, **options)
        values = tuple(value for name, value in options.items() if name != "stream")
        mask: Tensor = stream.once((stream.period.index, make, args, values), lambda: make(*args, **options))
        return mask

    return held


@once_a_period
def draw(
    shape: tuple[int, ...],
    p: float | Tensor,
    *,
    noise: Noise = "bernoulli",
    device: torch.device | str = "cpu",
    stream: Stream | None = None,
    on_host: bool = False,
) -> Tensor:
    """Draw a mask M with mean 1-p and variance p(1-p): bools, True where w is kept; Gaussian masks in float32.

    Without ``stream`` the numbers are those of torch's default generator of ``device``. ``on_host``: return the mask in
    the host's memory, so that what is kept is known without waiting for a GPU.
    """
    compiling, device, normal = torch.compiler.is_compiling(), torch.device(device), noise == "gaussian"
    if stream is not None and (on_host or device.type == "cpu" or stream.in_force):
        drawn = stream.draw(shape, normal=normal, device=device)
    elif compiling and device.type == "cpu":
        # Opaque to the compiler, which would else replace torch's generator by one of its own.
        drawn = draw_in_graph(NO_STREAM, shape, normal=normal)
    else:
        # float32 whatever the default dtype is: in 16 bits small probabilities would be lost.
        drawn = (torch.randn if normal else torch.rand)(shape, device=device, dtype=torch.float32)
    mask = drawn >= p if not normal else (1 - p) + (p * (1 - p)) ** 0.5 * drawn
    return mask if on_host else mask.to(device, non_blocking=True)


@once_a_period
def draw_elements(shape: tuple[int, ...], p: float, *, device: torch.device, stream: Stream | None = None) -> Tensor:
    """A Bernoulli mask, faster than :func:`draw` on the host, where p is rounded to a multiple of 2^-32."""
    if device.type != "cpu" and (stream is None or not stream.in_force):
        return torch.rand(shape, device=device, dtype=torch.float32) >= p
    integers, bound = _integers(shape, stream, device), _bound(p)
    mask = integers >= bound if bound < 2**31 else torch.zeros(shape, dtype=torch.bool, device="cpu")
    return mask.to(device, non_blocking=True)


def draw_element_coefficients(
    shape: tuple[int, ...], p: float, dtype: torch.dtype, device: torch.device, *, stream: Stream | None = None
) -> Tensor:
    """M / (1-p) of the mask that :func:`draw_elements` gives, in float32 on the host in the memory of its integers."""
    immutable = (stream is not None and stream.period is not None) or is_observed()
    if immutable or device.type != "cpu" or dtype != torch.float32 or _bound(p) == 2**31:
        return draw_elements(shape, p, device=device, stream=stream).to(dtype).mul(scale_of(p))
    scale = torch.tensor(scale_of(p), dtype=dtype, device="cpu").view(torch.int32)
    # 1 or 0, times the bits of the scale: three passes that allocate nothing.
    return _integers(shape, stream, device).ge_(_bound(p)).mul_(scale).view(dtype)


def _integers(shape: tuple[int, ...], stream: Stream | None, device: torch.device) -> Tensor:
    """Random integers of 32 bits on the host, two from each draw."""
    generator = None if stream is None else stream.generator(device, graded=torch.is_grad_enabled())
    count = math.prod(shape)
    words = torch.randint(-(2**63), 2**63 - 1, (-(-count // 2),), device="cpu", generator=generator)
    return words.view(torch.int32)[:count].view(shape)


def _bound(p: float) -> int:
    """The integer from which on a weight is kept; 2^31, which no integer reaches, if none is."""
    return round(2**32 * p) - 2**31


@once_a_period
def draw_coefficients(
    shape: tuple[int, ...], p: float, dtype: torch.dtype, device: torch.device, *, stream: Stream | None = None
) -> Tensor:
    """M / (1-p) for Bernoulli masks, in few operations."""
    if stream is None or not stream.in_force:
        if device.type == "cuda":
            return torch.dropout(torch.ones(shape, device=device, dtype=dtype), p, True)  # one kernel
        drawn = torch.rand(shape, dtype=torch.float32, device="cpu")
    else:
        drawn = stream.draw(shape, device=device)
    return coefficients(drawn, constants(p, dtype)).to(device, non_blocking=True)


def coefficients(drawn: Tensor, of_p: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """M / (1-p) from uniform numbers and :func:`constants`."""
    bound, scale, zero = of_p
    # In place where nobody minds: selective checkpointing forbids it, torch.vmap warns.
    if is_observed() or scale.dtype is not torch.float32:
        return torch.where(drawn.ge(bound), scale, zero)
    return drawn.ge_(bound).mul_(scale)  # nobody else has the numbers


def constants(p: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """P, and 1/(1-p) and 0 in ``dtype``: as tensors of the right dtype torch takes them faster than as numbers."""
    # Under a mode they may be of the mode, as FakeTensorMode's, and are not for later passes.
    return (_constants.__wrapped__ if is_observed() else _constants)(p, dtype)


@functools.lru_cache(maxsize=64)
def _constants(p: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    values = (p, torch.float32), (scale_of(p), dtype), (0.0, dtype)
    bound, scale, zero = (torch.tensor(value, dtype=value_dtype, device="cpu") for value, value_dtype in values)
    return bound, scale, zero


def mask_shape(weight_shape: tuple[int, ...], unit: Unit, *, input_dim: int = 1, groups: int = 1) -> tuple[int, ...]:
    """Shape of a weight's mask, before :func:`spread` lays it over the weight; arguments as of ``functional.mix``."""
    if unit in ("element", "layer"):
        return weight_shape if unit == "element" else (1,) * len(weight_shape)
    kernel = (1,) * (len(weight_shape) - 2)
    dim = input_dim if unit == "input" else 1 - input_dim
    if dim == 1 and groups > 1:
        return (groups, weight_shape[1], *kernel)
    return tuple(size if i == dim else 1 for i, size in enumerate(weight_shape[:2])) + kernel


def spread(mask: Tensor, weight_shape: tuple[int, ...]) -> Tensor:
    """Repeat a grouped convolution's mask over the output channels of its group; else return ``mask`` as it is."""
    rows = weight_shape[0]
    if mask.shape[0] in (1, rows):
        return mask
    return mask.repeat_interleave(rows // mask.shape[0], dim=0)
