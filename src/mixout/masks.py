"""Which units keep their fine-tuned weights in this pass.

A mask M has mean ``mu = 1 - p``. Bernoulli: M is 1 with probability 1-p, else 0. Gaussian: M ~ N(1-p, p(1-p)),
the same mean and variance. One coin belongs to one *unit*:

- ``input``: an input neuron; all weights that leave it share the coin (mixout, Lee et al. 2020, section 3);
- ``output``: an output neuron; all weights that enter it share the coin;
- ``element``: every weight has its own (mixconnect).

Randomness is dropout's: without a seed the masks come from torch's default generators, so that
``torch.manual_seed`` decides them, a restored RNG state repeats them and activation checkpointing replays them.
With a seed, and on several ranks, they come from a :class:`mixout.streams.Stream`. This file knows neither weights nor
models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, overload

import torch
from torch import Tensor

from mixout.streams import NO_STREAM, Stream

Unit = Literal["input", "output", "element"]
Noise = Literal["bernoulli", "gaussian"]

UNITS: tuple[Unit, ...] = ("input", "output", "element")
NOISES: tuple[Noise, ...] = ("bernoulli", "gaussian")


@dataclass(frozen=True, kw_only=True)
class Coins:
    """A mask as the seed it is drawn from: the same mask each time, so that a backward pass need not keep it.

    Args:
        seed: of a generator of its own.
        shape: of the mask.
        p: probability that a unit is replaced by the anchor.
        noise: the law of M.
        device: where to draw.
    """

    seed: int
    shape: tuple[int, ...]
    p: float
    noise: Noise
    device: torch.device

    def __call__(self) -> Tensor:
        """The mask; see :func:`draw`."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        if self.noise == "gaussian":
            return _gaussian(
                torch.randn(self.shape, device=self.device, dtype=torch.float32, generator=generator), self.p
            )
        if self.device.type == "cpu":
            return _bytewise(self.shape, self.p, generator)
        return torch.rand(self.shape, device=self.device, dtype=torch.float32, generator=generator) >= self.p


def coins(
    shape: tuple[int, ...],
    p: float,
    *,
    noise: Noise = "bernoulli",
    device: torch.device | str = "cpu",
    stream: Stream | None = None,
) -> Coins:
    """A mask with the law of :func:`draw`'s that is drawn when it is called; arguments as there.

    Example:
        >>> mask = coins((4, 3), 0.5)
        >>> mask().equal(mask())
        True
    """
    generator = None if stream is None else stream.generator()
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator))
    return Coins(seed=seed, shape=shape, p=p, noise=noise, device=torch.device(device))


def _bytewise(shape: tuple[int, ...], p: float, generator: torch.Generator) -> Tensor:
    """Bernoulli coins from a random byte each: the host draws one number after the other, and so eight coins at once.

    A byte below a bound falls on the anchor. The bound is a whole number, 256 p is none: the nearer one is taken, and
    the few coins that are too many on one side are turned over, each with the same probability. Where these lie is a
    Bernoulli process of its own, whose gaps are geometric.
    """
    count = math.prod(shape)
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bound = round(256 * p)
    every = words.view(torch.uint8)[:count]
    kept = every >= bound if bound < 256 else torch.zeros_like(every, dtype=torch.bool)
    if 256 * p > bound:  # too many are kept
        share = (256 * p - bound) / (256 - bound)
        # Turned over on what is kept only: a coin that fell on the anchor stays there.
        kept[_process(count, share, generator)] = False
    elif 256 * p < bound:
        kept[_process(count, (bound - 256 * p) / bound, generator)] = True
    return kept.view(shape)


def _process(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """The places, in rising order, at which ``count`` coins of a small ``probability`` show heads."""
    found: list[Tensor] = []
    last = -1
    while last < count:
        expected = (count - last) * probability
        gaps = torch.empty(int(expected + 4 * expected**0.5) + 8, dtype=torch.float64)
        places = last + gaps.geometric_(probability, generator=generator).cumsum(0)
        found.append(places)
        last = int(min(float(places[-1]), count))
    every = torch.cat(found)
    return every[every < count].long()


def _gaussian(numbers: Tensor, p: float | Tensor) -> Tensor:
    return (1 - p) + (p * (1 - p)) ** 0.5 * numbers


def check_p(p: float, noise: Noise = "bernoulli") -> float:
    """Return ``p`` as a float, or say what is wrong with it for this noise.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if ``p`` is outside [0, 1], or is 1 for Gaussian noise.
    """
    if isinstance(p, bool) or not isinstance(p, Real):
        raise TypeError(f"expected p to be a number in [0, 1], got {p!r}")
    if not 0.0 <= p <= 1.0:  # also refuses nan
        raise ValueError(f"expected p in [0, 1], the probability that a unit is replaced by the anchor, got {p}")
    if noise == "gaussian" and p == 1:
        raise ValueError("expected p in [0, 1) for gaussian noise, whose variance p/(1-p) has no limit at 1, got 1")
    return float(p)


@overload
def scale_of(p: float) -> float: ...
@overload
def scale_of(p: float | Tensor) -> float | Tensor: ...
def scale_of(p: float | Tensor) -> float | Tensor:
    """1 / mu; at p = 1 every coin falls on the anchor and the scale multiplies nothing."""
    if isinstance(p, Tensor):
        return torch.where(p < 1, 1 / (1 - p), torch.zeros_like(p))
    return 0.0 if p == 1.0 else 1.0 / (1.0 - p)


def draw(
    shape: tuple[int, ...],
    p: float | Tensor,
    *,
    noise: Noise = "bernoulli",
    device: torch.device | str = "cpu",
    stream: Stream | None = None,
) -> Tensor:
    """Draw a mask M with mean 1-p and variance p(1-p).

    Args:
        shape: shape of the mask.
        p: probability that a unit is replaced by the anchor, in [0, 1]; in [0, 1) for Gaussian masks.
        noise: the law of M.
        device: where to draw; a stream draws on the host and moves the result.
        stream: the seeded stream, or None for torch's default generator of ``device``.

    Returns:
        Bernoulli: a bool tensor, True where the fine-tuned weight is kept. Gaussian: float32.

    Example:
        >>> draw((3,), 0.0).tolist(), draw((3,), 1.0).tolist()
        ([True, True, True], [False, False, False])
    """
    # float32 whatever the default dtype is: in 16 bits small probabilities would be lost.
    if stream is not None:
        numbers = stream.draw(shape, normal=noise == "gaussian").to(device)
    elif torch.compiler.is_compiling() and torch.device(device).type == "cpu":
        # Opaque to the compiler, which would else replace torch's generator by one of its own.
        numbers = torch.ops.mixout.draw(NO_STREAM, list(shape), noise == "gaussian")
    else:
        toss = torch.randn if noise == "gaussian" else torch.rand
        numbers = toss(shape, device=device, dtype=torch.float32)
    return numbers >= p if noise == "bernoulli" else _gaussian(numbers, p)


def mask_shape(weight_shape: tuple[int, ...], unit: Unit, *, input_dim: int = 1, groups: int = 1) -> tuple[int, ...]:
    """Shape of the coins of a weight, before :func:`spread` lays them over it.

    Args:
        weight_shape: two dimensions are neurons, ``input_dim`` and the other of the first two; the rest is a kernel.
        unit: what shares a coin.
        input_dim: the dimension of the input neurons: 1 for (out, in, ...), 0 for (in, out).
        groups: groups of a convolution, whose weight is (out, in / groups, ...).

    Example:
        >>> mask_shape((5, 3), "input"), mask_shape((3, 5), "input", input_dim=0), mask_shape((5, 3), "output")
        ((1, 3), (3, 1), (5, 1))
        >>> mask_shape((8, 2, 3, 3), "input", groups=4)  # 8 input channels in 4 groups
        (4, 2, 1, 1)
    """
    if unit == "element":
        return weight_shape
    kernel = (1,) * (len(weight_shape) - 2)
    dim = input_dim if unit == "input" else 1 - input_dim
    if unit == "input" and groups > 1:
        return (groups, weight_shape[1], *kernel)
    return tuple(size if i == dim else 1 for i, size in enumerate(weight_shape[:2])) + kernel


def spread(mask: Tensor, weight_shape: tuple[int, ...]) -> Tensor:
    """Repeat a grouped convolution's coins over the output channels of their group; else return ``mask`` as it is."""
    rows = weight_shape[0]
    if mask.shape[0] in (1, rows):
        return mask
    return mask.repeat_interleave(rows // mask.shape[0], dim=0)
