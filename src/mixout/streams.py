"""One layer's random numbers where they follow from a seed: equal on every rank, and again under recomputation.

Without a seed numbers come from torch's default generators; the op that compiled graphs draw with serves both. What is
made of the numbers is decided in :mod:`mixout.masks`.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from mixout._torch import in_backward
from mixout.ranks import SharedSeed

# Forward passes that may lie between a layer's forward and its recomputation; one entry is about 100 bytes.
REMEMBERED_DRAWS = 1024


class Stream:
    """One layer's masks, which follow from ``(seed, key, count)`` alone: equal on every rank, whatever else is drawn.

    Where each rank has its own coins and there is no seed, they follow from the default generator and the rank instead.

    ``count`` is the number of draws so far. A recomputation under activation checkpointing must see the masks of its
    own forward, not new ones: each draw also takes one number from torch's default generator, whose state
    checkpointing restores, and in a backward pass that number leads back to the count.

    Args:
        seed: any integer; or the seed that the layers of a model share.
        key: tells the layers of a model apart.

    Example:
        >>> a, b = Stream(7, "layer"), Stream(7, "layer")
        >>> bool((a.draw((4,)) == b.draw((4,))).all())
        True
    """

    def __init__(self, seed: int | SharedSeed, key: str = "") -> None:
        self.seed = seed
        self.key = key
        self.count = 0
        self._enlist()

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self.seed, "key": self.key, "count": self.count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enlist()

    def draw(self, shape: tuple[int, ...], *, normal: bool = False) -> Tensor:
        """Uniform numbers in [0, 1), or standard normal ones, of ``shape``, float32, on the host."""
        numbers: Tensor = torch.ops.mixout.draw(self._number, list(shape), normal)
        return numbers

    def restore(self, count: int) -> None:
        """Continue after ``count`` draws."""
        self.count = count
        self._replay.clear()

    def generator(self) -> torch.Generator:
        """A generator for the next draw, or for the draw that a backward pass recomputes."""
        if not isinstance(self.seed, int) and self.seed.by_pass:
            return _generator(f"{_nonce()}/{self.seed.settled()}/{self.key}")
        seed = self.seed if isinstance(self.seed, int) else self.seed.settled()
        nonce = _nonce()
        count = self._replay.get(nonce) if in_backward() else None
        if count is None:
            count = self.count = self.count + 1
            self._replay[nonce] = count
            if len(self._replay) > REMEMBERED_DRAWS:
                self._replay.popitem(last=False)
        return _generator(f"{seed}/{self.key}/{count}")

    def drawn(self, count: int, size: int) -> Tensor:
        """The uniform numbers of draw ``count``, of shape (size,), again; not where each rank has its own coins."""
        seed = self.seed if isinstance(self.seed, int) else self.seed.settled()
        return torch.rand(size, generator=_generator(f"{seed}/{self.key}/{count}"), dtype=torch.float32)

    def _enlist(self) -> None:
        self._replay: OrderedDict[int, int] = OrderedDict()
        # A tensor, not an integer, which a compiled graph would take for a constant and be compiled for each layer.
        self._number = torch.tensor(next(_NUMBERS), device="cpu")
        _STREAMS[int(self._number)] = self


def _nonce() -> int:
    return int(torch.empty((), dtype=torch.int64).random_())


def _generator(origin: str) -> torch.Generator:
    digest = hashlib.blake2b(origin.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


# A compiled graph can hold neither a Stream nor a generator: it calls an op, which finds the stream by its number.
_NUMBERS = itertools.count()
_STREAMS: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
NO_STREAM = torch.tensor(-1, device="cpu")


def _draw_from_stream(stream: Tensor, shape: list[int], normal: bool) -> Tensor:
    toss = torch.randn if normal else torch.rand
    generator = None if int(stream) < 0 else _STREAMS[int(stream)].generator()
    return toss(shape, generator=generator, dtype=torch.float32)


torch.library.define(
    "mixout::draw",
    "(Tensor stream, int[] shape, bool normal) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),  # never merged with an equal call, never computed again in backward
)
torch.library.impl("mixout::draw", "cpu", _draw_from_stream)
torch.library.register_fake(
    "mixout::draw",
    lambda stream, shape, normal: torch.empty(shape, dtype=torch.float32, device="cpu"),  # noqa: ARG005
)
