"""The model's own dropouts: find them, set them, put them back.

A dropout is kept in one of three places: an ``nn.Dropout`` module's ``p``; a float attribute that a forward hands to
a functional dropout (``self.dropout``, ``self.attention_dropout``, also ``nn.MultiheadAttention.dropout``); or a
field of a configuration that a forward reads while it runs (Falcon, GPT-J). A configuration is shared and saved with
the model, so such a module gets a changed copy of it and the saved one stays as it is.

Dropping whole layers (stochastic depth, LayerDrop) is another regulariser: it is found, reported and left on.
"""

from __future__ import annotations

import copy
import dis
import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeGuard

from torch import nn

from mixout._torch import dropout_base

_NAME = re.compile(r"drop", re.IGNORECASE)
_OF_LAYERS = re.compile(r"layer_?drop|drop_?path|path_?drop|stochastic|droppath", re.IGNORECASE)


Kind = Literal["module", "attribute", "config", "layers"]


@dataclass(frozen=True, kw_only=True)
class DropoutSite:
    """One place that holds a dropout probability; ``module`` is a dotted name, "" the model itself."""

    module: str
    field: str
    p: float
    kind: Kind

    def __str__(self) -> str:
        config = "config." if self.kind == "config" else ""
        return f"{self.module or 'the model'}.{config}{self.field} = {self.p:g}"


@dataclass(frozen=True, kw_only=True)
class DropoutChange:
    """What stood at ``module.field`` before it was changed."""

    module: str
    field: str
    before: Any


def find(model: nn.Module) -> list[DropoutSite]:
    """Every place in ``model`` that holds a dropout probability, whatever its value.

    Example:
        >>> [str(site) for site in find(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))]
        ['1.p = 0.1']
    """
    return [site for name, module in model.named_modules() for site in _sites(name, module)]


def active(model: nn.Module) -> list[DropoutSite]:
    """The dropouts of ``model`` that still drop something while it trains."""
    return [site for site in find(model) if site.p > 0]


def set_(model: nn.Module, p: float) -> list[DropoutChange]:
    """Set every dropout of ``model`` to ``p`` and return what :func:`restore_` needs."""
    changes: list[DropoutChange] = []
    copies: dict[int, Any] = {}
    for site in find(model):
        if site.kind == "layers":
            continue
        module = model.get_submodule(site.module)
        if site.kind != "config":
            changes.append(DropoutChange(module=site.module, field=site.field, before=getattr(module, site.field)))
            setattr(module, site.field, p)
            continue
        config = module.config
        if id(config) not in copies:  # not yet the changed copy
            replaced = copies.setdefault(id(config), copy.copy(config))
            copies[id(replaced)] = replaced
        changed = copies[id(config)]
        setattr(changed, site.field, p)
        if changed is not config:
            changes.append(DropoutChange(module=site.module, field="config", before=config))
            module.config = changed
    return changes


def restore_(model: nn.Module, changes: list[DropoutChange]) -> None:
    """Undo :func:`set_`; a module that is gone since needs nothing."""
    modules = dict(model.named_modules())
    for change in changes:
        if hasattr(modules.get(change.module), change.field):
            setattr(modules[change.module], change.field, change.before)


def _sites(name: str, module: nn.Module) -> Iterator[DropoutSite]:
    if isinstance(module, dropout_base()):
        yield DropoutSite(module=name, field="p", p=module.p, kind="module")
        return
    of_layers = _OF_LAYERS.search(type(module).__name__) is not None
    for field, value in vars(module).items():
        if _NAME.search(field) and _is_probability(value):
            kind: Kind = "layers" if of_layers or _OF_LAYERS.search(field) else "attribute"
            yield DropoutSite(module=name, field=field, p=float(value), kind=kind)
    config = getattr(module, "config", None)
    for field in _fields_read(type(module)):  # type: ignore[arg-type]  # a class is hashable
        value = getattr(config, field, None)
        if _is_probability(value):
            kind = "layers" if _OF_LAYERS.search(field) else "config"
            yield DropoutSite(module=name, field=field, p=float(value), kind=kind)


def _is_probability(value: object) -> TypeGuard[float]:
    # A whole number is one only where it says that nothing drops: others count or point.
    return (isinstance(value, float) and 0 <= value <= 1) or (type(value) is int and value == 0)


@cache
def _fields_read(kind: type) -> tuple[str, ...]:
    """Names of dropout fields that methods of ``kind``, other than its constructor, read as ``self.config.NAME``."""
    found: dict[str, None] = {}
    for base in kind.__mro__:
        if base is nn.Module:
            break
        if base.__module__ == "transformers.modeling_utils":  # reads it to warn, and holds the configuration to save
            continue
        for name, member in vars(base).items():
            if name == "__init__" or not inspect.isfunction(member):
                continue
            loads = [i.argval for i in dis.get_instructions(inspect.unwrap(member)) if i.opname == "LOAD_ATTR"]
            found.update({b: None for a, b in itertools.pairwise(loads) if a == "config" and _NAME.search(b)})
    return tuple(found)
