"""What :func:`mixout.apply_` leaves on a model, and where: on each module that it changed.

A changed module holds, in its ``__dict__``, what undoes the change and a reference to the :class:`Applied` that all
modules of one call share. No module is named and none is special: any part of a model, a copy of it or the whole can be
asked, saved and undone. A model whose parts were given methods of their own holds several of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from mixout.errors import NotAppliedError
from mixout.layers.mixed import Mixing, Share
from mixout.masks import check_p
from mixout.methods import Method, spell
from mixout.ranks import SharedSeed

_FIELD = "_mixout"


@dataclass(kw_only=True, eq=False)
class Applied:
    """What the modules of one :func:`mixout.apply_` share; it holds no module and no name.

    Args:
        methods: what was applied.
        seed: what the masks follow from.
        mixing: what the mixed layers share, if a method mixes.
    """

    methods: tuple[Method, ...]
    seed: SharedSeed
    mixing: Mixing | None = None

    def __str__(self) -> str:
        return spell(self.methods)


def applications(model: nn.Module) -> list[Applied]:
    """What was applied to ``model`` or to parts of it, in the order of the first module of each."""
    return list(dict.fromkeys(held for module in model.modules() if (held := applied_here(module)) is not None))


def applied_to(model: nn.Module) -> list[Applied]:
    """:func:`applications`, at least one.

    Raises:
        NotAppliedError: if there is none.
    """
    found = applications(model)
    if not found:
        raise NotAppliedError("apply_ has not been called on this model; call mixout.apply_(model, method) first")
    return found


def applied_here(module: nn.Module) -> Applied | None:
    """What was applied to ``module`` itself."""
    found = vars(module).get(_FIELD)
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


def mark_(modules: Iterable[nn.Module], applied: Applied) -> None:
    """Let each of ``modules`` refer to ``applied``."""
    for module in modules:
        vars(module)[_FIELD] = applied


def unmark_(module: nn.Module) -> None:
    """Take the reference away, where there is one."""
    vars(module).pop(_FIELD, None)


def subject(methods: str, shares: Mapping[str, Share], layers: Mapping[str, nn.Module]) -> str:
    """What ranks must have in common, in short: the methods, the layers, and their anchors."""
    found = hashlib.blake2b(digest_size=8)
    for name, share in shares.items():
        found.update(f"{name}:{tuple(layers[name].weight.shape)}:{share.anchor.digest}".encode())  # type: ignore[arg-type]
    return f"{methods} on {len(shares)} layers, digest of layers and anchors {found.hexdigest()}"
