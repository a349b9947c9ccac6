"""The seed of one model's masks, and which ranks of a distributed run share it.

``scope="all"``: every rank tosses the same coins, as one device would with all the examples. Without a seed the ranks
take rank 0's: it draws one when it first needs it and leaves it in the key-value store of the process group, where the
others find it. Nothing is sent in later passes. With a seed nothing is sent but the comparison with rank 0's, once.
``scope="rank"``: each rank tosses its own coins. No collective is called here, so a pass that one rank makes alone
cannot block the others.
"""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from mixout._torch import key_value_store
from mixout.errors import RankMismatchError

Scope = Literal["all", "rank"]

SCOPES: tuple[Scope, ...] = ("all", "rank")

# How long a rank waits for rank 0's first training pass.
PATIENCE = timedelta(minutes=5)

_APPLICATIONS = itertools.count()


def ranks() -> int:
    """How many processes train together; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class SharedSeed:
    """What the masks of all layers of one model follow from.

    Args:
        given: the user's seed, or None.
        scope: ``all`` ranks toss the same coins, or each ``rank`` its own.

    Example:
        >>> SharedSeed(3).settled()
        3
    """

    def __init__(self, given: int | None, scope: Scope = "all") -> None:
        self.given = given
        self.scope = scope
        self.subject = ""  # what is masked; must be the same everywhere
        self.value = given
        self._compared = False
        # Ranks that call apply_ alike count alike.
        self._key = f"mixout/seed/{next(_APPLICATIONS)}"

    @property
    def in_force(self) -> bool:
        """Whether masks follow from this seed; if not, from torch's default generators alone, as dropout's."""
        return self.value is not None or ranks() > 1

    @property
    def by_pass(self) -> bool:
        """Whether each rank's masks follow from its default generator and its rank: own coins, no seed."""
        return self.scope == "rank" and self.value is None

    def settled(self) -> int | str:
        """The seed of this rank's masks, agreed on first if need be.

        Raises:
            RankMismatchError: if rank 0 applied something else, or has drawn no mask within five minutes.
        """
        several = ranks() > 1
        if self.scope == "rank":
            return f"{self.value}/rank {dist.get_rank()}" if several else str(self.value)
        if several and not self._compared:
            self._agree()
            self._compared = True
        if self.value is None:
            raise RuntimeError("expected a seed, or several ranks; see in_force")
        return self.value

    def _agree(self) -> None:
        own = {"subject": self.subject, "seed": self.value}
        store = key_value_store()
        if dist.get_rank() == 0:
            if self.value is None:
                self.value = own["seed"] = _proposal()
            store.set(self._key, json.dumps(own))
            return
        try:
            store.wait([self._key], PATIENCE)
        except RuntimeError as error:
            raise RankMismatchError(
                f"expected rank 0 to draw masks too, got none from it in {PATIENCE}; call apply_ on every rank and "
                'train on every rank, or give each rank masks of its own: apply_(..., scope="rank")'
            ) from error
        first = json.loads(store.get(self._key))
        if first["subject"] != self.subject or self.value not in (None, first["seed"]):
            raise RankMismatchError(
                f"expected every rank to apply what rank 0 applied, {first}, got {own} on rank {dist.get_rank()}; pass "
                'the same method, layers, anchor and seed on every rank, or masks of its own to each: scope="rank"'
            )
        self.value = first["seed"]


def _proposal() -> int:
    """A number from the default generator, whose state stays as it is: a recomputation must find it so."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))
