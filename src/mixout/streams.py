"""The random numbers of one layer's masks: where they come from, under a seed, on ranks, in recomputation, compiled.

- No seed, one process: torch's default generator of the layer's device, as dropout.
- A seed, or several ranks: from (seed, layer, count of draws). Each draw also takes one number (a nonce) from the
  generator that dropout would use, which leads a recomputation back to the count of its own forward pass.
- A mask that is kept for several optimizer steps: from (seed, layer, number of its period), see :mod:`mixout.seeds`.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixout._torch import in_backward, is_batched
from mixout.errors import ForgottenMasksWarning, MixoutError, outside
from mixout.seeds import Period, SharedSeed, digest_bits

# Draws of all layers that may lie between a forward pass and its recomputation; an entry is about 200 bytes.
REMEMBERED_DRAWS = 131_072
_HOST = torch.device("cpu")


class Stream:
    """The random numbers of one layer of a model, which ``key`` tells from the others.

    ``period``: for masks that are kept for several optimizer steps. Its numbers follow from ``block``, if there is one,
    instead of from ``key``, so that layers share them.
    """

    _held: tuple[tuple[Any, ...], Tensor] | None  # within a period: the key and the tensor of once()
    _of: dict[str, Stream]

    def __init__(
        self, seed: int | SharedSeed, key: str = "", period: Period | None = None, block: str | None = None
    ) -> None:
        self.seed = seed if isinstance(seed, SharedSeed) else SharedSeed(seed, agreed=True)
        self.key = key
        self.period = period
        self.block = block
        self.count = 0
        self._enlist()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seed", "key", "period", "block", "count")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enlist()

    @property
    def in_force(self) -> bool:
        """Whether numbers follow from a seed; if not, from torch's default generator."""
        return self.period is not None or self.seed.in_force

    def draw(self, shape: tuple[int, ...], *, normal: bool = False, device: torch.device = _HOST) -> Tensor:
        """Uniform numbers in [0, 1), or standard normal ones, float32, on the host; ``device`` is the layer's."""
        if torch.compiler.is_compiling():
            return draw_in_graph(self.handle, shape, normal=normal)
        return _numbers(shape, normal, self.generator(device, graded=torch.is_grad_enabled()))

    def of(self, weight: str) -> Stream:
        """The stream of one of several weights of a layer: within a period each weight has its own."""
        if self.period is None or self.block is not None:
            return self
        if weight not in self._of:
            self._of[weight] = Stream(self.seed, f"{self.key}.{weight}", self.period)
        return self._of[weight]

    def once(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """``make()``, or the tensor that it gave before for the same ``key``, which includes the period."""
        cached = self._held
        if cached is None or cached[0] != key:
            with torch.inference_mode(mode=False):  # a later pass may save it for its backward
                made = _same_for_all(make())
            if type(made) is not Tensor:  # FakeTensorMode's: not for later passes
                return made
            self._held = cached = key, made
        return cached[1]

    def forget(self) -> None:
        """Drop what :meth:`once` keeps, so that it is made again when it is asked for."""
        for stream in (self, *self._of.values()):
            stream._held = None

    @property
    def drawn_in_graphs(self) -> bool:
        """Whether compiled graphs have drawn."""
        return any(stream.drawn for stream in (self, *self._of.values()))

    def generator(self, device: torch.device = _HOST, *, graded: bool = True) -> torch.Generator | None:
        """A generator on the host for the next draw, or the one that is repeated; None for torch's default one."""
        if not self.in_force:
            return _generator(str(_nonce(device))) if device.type == "cuda" else None
        if self.period is None and self.seed.value is None and self.seed.scope == "rank":
            return _generator(f"{_nonce(device)}/{self.seed.own}/{self.key}")
        seed = self.seed.settled()
        if self.period is not None:
            return _generator(f"{seed}/{self.key if self.block is None else self.block}/period {self.period.index}")
        return _generator(f"{seed}/{self.key}/{self._count_of(_nonce(device), graded)}")

    def restore(self, count: int) -> None:
        """Continue after ``count`` draws."""
        self.count = count
        self.forget()
        self.seed.remembered.clear()

    def _count_of(self, nonce: int, graded: bool) -> int:
        """The number of a new draw; or of the draw that ``nonce`` led to, where that pass is repeated now."""
        remembered = self.seed.remembered
        key = int(self.handle), nonce
        count, had_gradients = remembered.get(key, (None, True))
        if in_backward():
            if count is None:
                raise MixoutError(
                    f"the mixed layer {self.key!r} is called in a backward pass (activation checkpointing), but "
                    "torch's random state is not that of its forward pass, so its masks are not found. Leave "
                    "preserve_rng_state=True in torch.utils.checkpoint, or run fewer forward passes before a backward"
                )
            return count
        if count is None or had_gradients or not graded:  # a pass with gradients may repeat one without
            count = self.count = self.count + 1
            remembered[key] = count, graded
            if len(remembered) > REMEMBERED_DRAWS:
                _, (_, had_gradients) = remembered.popitem(last=False)
                if not had_gradients and not self.seed.warned:
                    self._warn()
        return count

    def _warn(self) -> None:
        self.seed.warned = True
        warnings.warn(
            f"with a seed the masks of {REMEMBERED_DRAWS:,} draws are remembered, and a pass without gradients is "
            "further back now. Gradient caching would repeat it with other masks: use fewer chunks, or leave the "
            "seed out. If no such pass is to be repeated with gradients, nothing is wrong",
            ForgottenMasksWarning,
            stacklevel=outside(),
        )

    def _enlist(self) -> None:
        self._held = None
        self._of = {}
        # For compiled graphs: which stream this is. A tensor, since an integer would be a constant of the graph,
        # compiled anew for each layer.
        self.handle = torch.tensor(next(_NUMBERS), device="cpu")
        self.drawn = False  # in a graph
        _STREAMS[int(self.handle)] = self


def _nonce(device: torch.device) -> int:
    """A number from the generator that dropout draws from on ``device``, which moves on as by one dropout."""
    if device.type != "cuda":
        return int(_same_for_all(torch.randint(0, 2**63 - 1, (), device="cpu")))
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    offset: int = generator.get_offset()  # known to the host: nothing waits for the GPU
    generator.set_offset(offset + 4)
    return digest_bits(f"{generator.initial_seed()}/{offset}")


def _same_for_all(drawn: Tensor) -> Tensor:
    if is_batched(drawn):
        raise MixoutError(
            'expected torch.vmap(..., randomness="same") where masks follow from a seed or are kept for several steps, '
            'got "different"; leave seed= and every= out for a mask for each example'
        )
    return drawn


def _generator(origin: str) -> torch.Generator:
    return torch.Generator().manual_seed(digest_bits(origin))


def _numbers(shape: tuple[int, ...] | list[int], normal: bool, generator: torch.Generator | None) -> Tensor:
    sample = torch.randn if normal else torch.rand
    # float32 whatever the default dtype is: in 16 bits small probabilities would be lost.
    return sample(shape, generator=generator, dtype=torch.float32, device="cpu")


# A compiled graph can hold neither a Stream nor a generator: it calls an op, which finds the stream by its number.
_NUMBERS = itertools.count()
_STREAMS: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
NO_STREAM = torch.tensor(-1, device="cpu")


def draw_in_graph(handle: Tensor, shape: tuple[int, ...], *, normal: bool) -> Tensor:
    """Numbers as of :meth:`Stream.draw`, in a compiled graph."""
    # Compilers merge equal calls of an op, whatever its tags say: all layers of one width would have one mask. They
    # never merge torch.empty. An op that writes to an argument is not merged either, but they do not know then that
    # it has to repeat its numbers where a block is checkpointed.
    call = torch.empty(0, device="cpu")
    drawn: Tensor = torch.ops.mixout.draw(handle, call, list(shape), normal, torch.is_grad_enabled())
    return drawn


def _draw(handle: Tensor, _call: Tensor, shape: list[int], normal: bool, graded: bool) -> Tensor:
    stream = None if int(handle) < 0 else _STREAMS[int(handle)]
    if stream is not None:
        stream.drawn = True
        if stream.period is not None:
            stream.period.note(stream.key, None)
    return _numbers(shape, normal, None if stream is None else stream.generator(graded=graded))


torch.library.define(
    "mixout::draw",
    "(Tensor handle, Tensor call, SymInt[] shape, bool normal, bool graded) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),  # in a recomputation it has the generator's state of its forward pass
)
torch.library.impl("mixout::draw", "cpu", _draw)
torch.library.register_fake(
    "mixout::draw",
    lambda handle, call, shape, normal, graded: torch.empty(shape, dtype=torch.float32, device="cpu"),  # noqa: ARG005
)
