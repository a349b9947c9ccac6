"""What :func:`mixout.apply_` leaves on a model, and where: on each module that it changed.

A changed module holds, in its ``__dict__``, what undoes the change and a reference to the :class:`Applied` that all
modules of one call share. No module is named and none is special: any part of a model, a copy of it or the whole can be
asked, saved and undone. A model whose parts were given methods of their own holds several of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mixout.anchor import AnchorTensor
from mixout.errors import NotAppliedError
from mixout.layers.mixed import Mixing
from mixout.masks import check_p
from mixout.methods import Method, MixingMethod, spell
from mixout.ranks import SharedSeed

# Attributes of a module: what was applied to it; it was left out, since the anchor has no weight for it.
FIELD, NEW = "_mixout", "_mixout_new"


@dataclass(kw_only=True, eq=False)
class Applied:
    """What the modules of one :func:`mixout.apply_` share; it holds no module and no name."""

    methods: tuple[Method, ...]
    seed: SharedSeed  # what the masks follow from
    where: str = ""  # which layers were chosen, as the caller wrote it
    mixing: Mixing | None = None  # what the mixed layers share, if a method mixes

    def __str__(self) -> str:
        return spell(self.methods)


def applications(model: nn.Module) -> list[Applied]:
    """What was applied to ``model`` or to parts of it, in the order of the first module of each."""
    return list(dict.fromkeys(held for module in model.modules() if (held := applied_here(module)) is not None))


def applied_to(model: nn.Module) -> list[Applied]:
    """:func:`applications`, at least one."""
    found = applications(model)
    if not found:
        raise NotAppliedError("apply_ has not been called on this model; call mixout.apply_(model, method) first")
    return found


def applied_here(module: nn.Module) -> Applied | None:
    """What was applied to ``module`` itself."""
    found = vars(module).get(FIELD)
    return found if isinstance(found, Applied) else None


def set_p_(model: nn.Module, p: float) -> None:
    """Change p of every mixing method that ``model`` carries; a compiled model is not compiled again.

    All layers of one :func:`apply_` share their p, also where ``model`` is a part that holds only some of them.

    Raises:
        NotAppliedError: if the model carries no mixing method.
        TypeError, ValueError: if ``p`` is not a number in [0, 1].
    """
    found = applied_to(model)
    mixings = [applied.mixing for applied in found if applied.mixing is not None]
    if not mixings:
        raise NotAppliedError(f"expected a mixing method, got {', '.join(map(str, found))}")
    checked = [check_p(p, mixing.noise) for mixing in mixings]
    for mixing, value in zip(mixings, checked, strict=True):
        mixing.set_p(value)


def follow_(model: nn.Module, p: float) -> None:
    """Change p as a schedule says: the largest becomes ``p``, others keep the methods' proportion to it."""
    found = [applied for applied in applications(model) if applied.mixing is not None]
    stated = [next((m.p for m in one.methods if isinstance(m, MixingMethod)), 0.0) for one in found]
    most = max(stated, default=0.0)
    set_p_(model, p)
    for applied, own in zip(found, stated, strict=True):
        if applied.mixing is not None and own < most:
            applied.mixing.set_p(p * own / most)


def subject(methods: str, anchors: Mapping[str, Mapping[str, AnchorTensor]]) -> str:
    """What ranks must have in common, in short: the methods, the layers, and the anchors of their weights."""
    found = hashlib.blake2b(digest_size=8)
    for name, held in anchors.items():
        for path, anchor in held.items():
            found.update(f"{name}:{path}:{anchor.digest}".encode())
    return f"{methods} on {len(anchors)} layers, digest of layers and anchors {found.hexdigest()}"
