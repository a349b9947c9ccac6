"""Which units keep their fine-tuned weights in this pass.

A mask M has mean ``mu = 1 - p``. Bernoulli: M is 1 with probability 1-p, else 0. Gaussian: M ~ N(1-p, p(1-p)),
the same mean and variance. One coin belongs to one *unit*:

- ``input``: an input neuron; all weights that leave it share the coin (mixout, Lee et al. 2020, section 3);
- ``output``: an output neuron; all weights that enter it share the coin;
- ``element``: every weight has its own (mixconnect).

Randomness is dropout's: without a seed the masks come from torch's default generators, so that
``torch.manual_seed`` decides them, a restored RNG state repeats them and activation checkpointing replays them.
With a seed they come from a :class:`Stream`. Unit coins are tossed on the host, so that their number is known
there without asking the device. This file knows neither weights nor models.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor

Unit = Literal["input", "output", "element"]
Noise = Literal["bernoulli", "gaussian"]

UNITS: tuple[Unit, ...] = ("input", "output", "element")
NOISES: tuple[Noise, ...] = ("bernoulli", "gaussian")

# Forward passes that a checkpointed block may lie behind; one entry is about 150 bytes.
REMEMBERED_DRAWS = 65_536


class Stream:
    """Masks that follow from ``(seed, key, count)`` alone: equal on every rank, whatever else is drawn.

    ``count`` is the number of draws that the layer called ``key`` has made. A recomputation under activation
    checkpointing must see the masks of its own forward, not new ones: each draw also takes one number from
    torch's default generator, whose state checkpointing restores, and in a backward pass that number leads back to
    the count.

    Args:
        seed: any integer.

    Example:
        >>> a, b = Stream(7), Stream(7)
        >>> bool((a.uniform((4,), "layer") == b.uniform((4,), "layer")).all())
        True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts: dict[str, int] = {}
        self._replay: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._enlist()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enlist()

    def uniform(self, shape: tuple[int, ...], key: str) -> Tensor:
        """Uniform numbers in [0, 1) of ``shape``, on the host."""
        return self._draw(shape, key, False)

    def normal(self, shape: tuple[int, ...], key: str) -> Tensor:
        """Standard normal numbers of ``shape``, on the host."""
        return self._draw(shape, key, True)

    def restore(self, counts: dict[str, int]) -> None:
        """Continue after ``counts`` draws."""
        self.counts = dict(counts)
        self._replay.clear()

    def generator(self, key: str) -> torch.Generator:
        """A generator for the next draw of ``key``, or for the draw that a backward pass recomputes."""
        nonce = int(torch.empty((), dtype=torch.int64).random_())
        # As torch.utils.checkpoint asks it: -1 outside a backward pass.
        recomputing = torch._C._current_graph_task_id() != -1
        count = self._replay.get((key, nonce)) if recomputing else None
        if count is None:
            count = self.counts[key] = self.counts.get(key, 0) + 1
            self._replay[key, nonce] = count
            if len(self._replay) > REMEMBERED_DRAWS:
                self._replay.popitem(last=False)
        digest = hashlib.blake2b(f"{self.seed}/{key}/{count}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def _draw(self, shape: tuple[int, ...], key: str, normal: bool) -> Tensor:
        numbers: Tensor = torch.ops.mixout.draw(self.number, key, list(shape), normal)
        return numbers

    def _enlist(self) -> None:
        self.number = next(_NUMBERS)
        _STREAMS[self.number] = self


# A compiled graph can hold neither a Stream nor a generator: it calls an op, which finds the stream by its number.
_NUMBERS = itertools.count()
_STREAMS: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()


def _draw_from_stream(stream: int, key: str, shape: list[int], normal: bool) -> Tensor:
    toss = torch.randn if normal else torch.rand
    return toss(shape, generator=_STREAMS[stream].generator(key))


torch.library.define(
    "mixout::draw",
    "(int stream, str key, int[] shape, bool normal) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),  # never merged with an equal call, never computed again in backward
)
torch.library.impl("mixout::draw", "CompositeExplicitAutograd", _draw_from_stream)
torch.library.register_fake("mixout::draw", lambda stream, key, shape, normal: torch.empty(shape))  # noqa: ARG005


def check_p(p: float) -> float:
    """Return ``p`` as a float, or say what is wrong with it.

    Raises:
        TypeError: if ``p`` is not a number.
        ValueError: if ``p`` is outside [0, 1].
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"expected p to be a number in [0, 1], got {p!r}")
    if not 0.0 <= p <= 1.0:  # also refuses nan
        raise ValueError(f"expected p in [0, 1], the probability that a unit is replaced by the anchor, got {p}")
    return float(p)


def draw(
    shape: tuple[int, ...],
    p: float | Tensor,
    *,
    noise: Noise = "bernoulli",
    device: torch.device | str = "cpu",
    stream: Stream | None = None,
    key: str = "",
) -> Tensor:
    """Draw a mask M with mean 1-p and variance p(1-p).

    Args:
        shape: shape of the mask.
        p: probability that a unit is replaced by the anchor, in [0, 1]; in [0, 1) for Gaussian masks.
        noise: the law of M.
        device: where to draw; a stream draws on the host and moves the result.
        stream: the seeded stream, or None for torch's default generator of ``device``.
        key: the layer's name within ``stream``.

    Returns:
        Bernoulli: a bool tensor, True where the fine-tuned weight is kept. Gaussian: float32.

    Example:
        >>> draw((3,), 0.0).tolist(), draw((3,), 1.0).tolist()
        ([True, True, True], [False, False, False])
    """
    if noise == "gaussian":
        normal = torch.randn(shape, device=device) if stream is None else stream.normal(shape, key).to(device)
        return (1 - p) + (p * (1 - p)) ** 0.5 * normal
    uniform = torch.rand(shape, device=device) if stream is None else stream.uniform(shape, key).to(device)
    return uniform >= p


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
