"""What the masks of all layers of one model follow from: a seed, shared by ranks, and the period that a mask is kept.

``scope="all"``: every rank draws the same masks; without a seed they follow from one number of rank 0, which it
publishes in the process group's key-value store. No collective is called, so a pass of one rank alone blocks no other.
With a period of k steps the masks of step n are those of period n // k. docs/design.md, "Randomness", says why.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import weakref
from collections import OrderedDict
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from numbers import Integral, Real
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from mixout._torch import in_backward, key_value_store
from mixout.errors import RankMismatchError
from mixout.parts import check_stepped, stepped_by_zero

Scope = Literal["all", "rank"]
Every: TypeAlias = int | Literal["run"]


# How long a rank waits for rank 0's first training pass.
PATIENCE = timedelta(minutes=5)
_DISTRIBUTED = dist.is_available()  # in this build of torch
# Keys in the store of the process group.
_RUN, _APPLIED = "mixout/run", "mixout/applied"


@dataclass(frozen=True)
class Seed:
    """Where masks come from, and which ranks share them: for ``seed`` of :func:`mixout.apply_`.

    Args:
        value: as ``seed`` itself: an integer from which masks follow, or None for torch's default generators.
        scope: in a distributed run, whether ``"all"`` ranks draw the same masks, as one device would (without a value
            they take rank 0's in their first training pass), or each ``"rank"`` its own. See docs/integrations/ddp.md.

    Raises:
        TypeError: if ``value`` is no integer.
        ValueError: if ``scope`` is neither.

    Example:
        >>> Seed(3, scope="rank")
        Seed(value=3, scope='rank')
    """

    value: int | None = None
    _: KW_ONLY
    scope: Scope = "all"

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, (Integral, type(None))):
            raise TypeError(f"expected seed to be an integer or None, got {self.value!r}")
        object.__setattr__(self, "value", None if self.value is None else int(self.value))  # numpy's too
        if self.scope not in get_args(Scope):
            raise ValueError(f"expected scope in {get_args(Scope)}, got {self.scope!r}")


def ranks() -> int:
    """How many processes train together; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if _DISTRIBUTED and dist.is_initialized() else 1


class SharedSeed:
    """The seed that the masks of all layers of one :func:`mixout.apply_` follow from; ``agreed``: on all ranks."""

    def __init__(self, given: int | None, scope: Scope = "all", *, agreed: bool = False) -> None:
        self.given = given
        self.scope = scope
        self.subject = ""  # what was applied; must be the same on every rank
        self.value = given
        self._compared = agreed
        # (layer, number of torch's generator) to (count of the draw, whether its pass recorded gradients); see streams.
        self.remembered: OrderedDict[tuple[int, int], tuple[int, bool]] = OrderedDict()
        self.warned = False  # that a draw was forgotten

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "remembered": OrderedDict()}  # a copy makes draws of its own

    def restore(self, value: int | None) -> None:
        """Go on with the seed of a saved state; ranks agree anew before they draw."""
        self.value, self._compared = value, False

    @property
    def in_force(self) -> bool:
        """Whether masks follow from this seed; if not, from torch's default generators alone, as dropout's do."""
        return self.value is not None or ranks() > 1

    @property
    def own(self) -> str:
        """The seed and this rank."""
        return f"{self.value}/rank {dist.get_rank()}" if ranks() > 1 else str(self.value)

    def settled(self) -> int | str:
        """The seed of this rank's masks; first agreed on, or drawn from the default generator's state, if needed."""
        if ranks() > 1 and not self._compared and (self.scope == "all" or self.value is None):
            self._agree()
            self._compared = True
        if self.value is None:  # in one process, for masks that are kept for several steps
            self.value = digest_bits(f"{_proposal()}/{self.subject}") >> 1
        return self.value if self.scope == "all" else self.own

    def _agree(self) -> None:
        """Take the run's number from rank 0, once it has drawn masks for the same subject and seed."""
        store = key_value_store()
        applied = f"{self.subject}, seed {self.value}"
        key = f"{_APPLIED}/{digest_bits(applied):x}"
        if dist.get_rank() == 0:
            if not store.check([_RUN]):
                store.set(_RUN, str(_proposal()))
            earlier = json.loads(store.get(_APPLIED)) if store.check([_APPLIED]) else []
            store.set(_APPLIED, json.dumps([*earlier, applied]))
            store.set(key, "")
        try:
            store.wait([key], PATIENCE)
        except RuntimeError as error:
            drawn = json.loads(store.get(_APPLIED)) if store.check([_APPLIED]) else []
            raise RankMismatchError(
                f"rank {dist.get_rank()} draws masks for {applied}, but in {PATIENCE} rank 0 has drawn none for it (it "
                f"has drawn masks for: {'; '.join(drawn) or 'nothing'}). Call apply_ with the same method, layers, "
                "anchor and seed on every rank and train on every rank, or give each rank masks of its own: "
                'apply_(..., seed=mixout.Seed(scope="rank"))'
            ) from error
        if self.value is None:
            self.value = digest_bits(f"{store.get(_RUN).decode()}/{self.subject}") >> 1


def digest_bits(text: str) -> int:
    """64 bits of a digest."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _proposal() -> int:
    """A number from the default generator, whose state does not change: a recomputation must find it the same."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator))


def check_every(every: object) -> Every:
    """Return ``every``, whole floats as integers, or say what is wrong with it."""
    if isinstance(every, str) and every == "run":
        return "run"
    if isinstance(every, Real) and not isinstance(every, bool):
        number = float(every)
        if 1 <= number < math.inf and number.is_integer():
            return int(number)
    raise ValueError(f"expected every as a number of optimizer steps, at least 1, or 'run', got {every!r}")


class Period:
    """How many optimizer steps a mask is kept, and which step this is; shared by the layers of one ``apply_``."""

    def __init__(self, every: Every) -> None:
        self.every = every
        self.steps = 0  # counted so far
        self._enlist()

    def __getstate__(self) -> dict[str, Any]:
        return {"every": self.every, "steps": self.steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enlist()

    @property
    def index(self) -> int:
        """The number of this period."""
        return self._after(self.steps - self._unseen)

    def _after(self, steps: int) -> int:
        return 0 if self.every == "run" else steps // self.every

    def restore(self, steps: int) -> None:
        """Continue after ``steps`` steps."""
        self.steps, self._unseen = steps, 0
        self._mixed.clear()

    def begin_pass(self) -> None:
        """A forward pass draws masks: all steps count for it, also those within the last backward pass."""
        self._unseen = 0

    def note(self, name: str, weight: Tensor | None) -> None:
        """A training pass has mixed ``weight``; None where that is not known, and any optimizer counts."""
        if not in_backward():  # a recomputation repeats the masks of its forward pass
            self.begin_pass()
            self._mixed[name] = weight

    def count(self, optimizer: Optimizer) -> None:
        """Count a step of ``optimizer``, if it is one of these weights, and if it was not skipped."""
        moving = [pair for layer in list(self.followers) for pair in layer.moving_anchors()]
        if not self._mixed and all(anchor.moved_in == self._after(self.steps) for anchor, _ in moving):
            return
        # A fused optimizer under GradScaler skips a step with infinite gradients; reading that waits for the GPU.
        if getattr(optimizer, "found_inf", None):
            return
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        noted = list(self._mixed.values())
        own = any(w is not None and (id(w) in stepped or stepped_by_zero(w)) for w in noted)
        self._own_steps |= own
        # In LoRA-FA nothing that is mixed is ever trained: there any optimizer counts.
        untrained = bool(noted) and not self._own_steps and not any(w is not None and w.requires_grad for w in noted)
        if own or untrained or any(w is None for w in noted):
            self.steps += 1
            self._unseen += in_backward()  # what is still to be recomputed has the masks from before the step
            self._mixed.clear()
        index = self._after(self.steps)
        for anchor, weight in moving:
            check_stepped(weight, "anchor_ema")
            if anchor.moved_in != index and id(weight) in stepped:
                anchor.move_(weight, index)

    def _enlist(self) -> None:
        self._mixed: dict[str, Tensor | None] = {}
        self._unseen = 0  # steps within a backward pass, which no forward pass has seen yet
        self._own_steps = False  # an optimizer has stepped what was mixed
        self.followers: weakref.WeakSet[Any] = weakref.WeakSet()  # the layers whose anchors move
        count_steps_(self)


class Counter(Protocol):
    """What counts optimizer steps."""

    def count(self, optimizer: Optimizer) -> None:
        """Take note of a step that ``optimizer`` has taken."""


def count_steps_(counter: Counter) -> None:
    """Call ``counter.count`` after each optimizer step, as long as ``counter`` lives."""
    with _LOCK:
        _COUNTERS.add(counter)
        if not _HANDLES:
            _HANDLES.append(register_optimizer_step_post_hook(_after_step))


def come_last_() -> None:
    """Count steps after what other hooks of this library do with the weights."""
    if _HANDLES:
        _HANDLES.pop().remove()
        _HANDLES.append(register_optimizer_step_post_hook(_after_step))


_LOCK = threading.RLock()  # another thread may apply a method while one steps
_COUNTERS: weakref.WeakSet[Counter] = weakref.WeakSet()
# Once there, the hook stays: torch does not allow a hook to remove itself. Without counters it does nothing.
_HANDLES: list[Any] = []


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:  # noqa: ANN401
    with _LOCK:
        counters = list(_COUNTERS)
    for counter in counters:
        counter.count(optimizer)
