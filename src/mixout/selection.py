"""``where``: which layers a method acts on.

Presets know a pretrained body from a new head: for models of transformers the body is ``base_model``, without the
output embedding; a model that holds none is body all over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from mixout.errors import NothingMixedError
from mixout.layers import is_linear, lora, obstacle
from mixout.masks import Unit

Selector: TypeAlias = Callable[[str, nn.Module], bool]

# The linear layer that feeds the nonlinearity of a feed-forward block, by its names in transformers, timm and torch.
_FEEDS_NONLINEARITY = re.compile(
    r"(^|\.)(intermediate\.dense|fc1|lin1|linear1|c_fc|fc_in|wi|wi_0|wi_1|gate_proj|up_proj|gate_up_proj|dense_h_to_4h)$"
)


@dataclass(frozen=True, kw_only=True)
class Where:
    r"""Regular expressions on dotted module names (``re.search``): in if any of ``include`` and none of ``exclude``.

    Args:
        include: one expression or several.
        exclude: one expression or several.

    Raises:
        ValueError: if an expression does not compile.

    Example:
        >>> Where(include="layer", exclude=r"layer\.0\.")("layer.1.query", nn.Linear(1, 1))
        True
    """

    include: str | tuple[str, ...] = ""
    exclude: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*_several(self.include), *_several(self.exclude)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"expected a regular expression in where, got {pattern!r}: {error}") from error

    def __call__(self, name: str, module: nn.Module) -> bool:  # noqa: ARG002
        """Whether the module called ``name`` is in."""
        return any(re.search(p, name) for p in _several(self.include)) and not any(
            re.search(p, name) for p in _several(self.exclude)
        )


@dataclass(frozen=True, kw_only=True)
class Selection:
    """``mixes`` decides for layers that can be mixed, ``covers`` for every module that holds parameters."""

    mixes: Selector
    covers: Selector


WhereLike: TypeAlias = str | Where | Selector | Selection | None


def resolve(where: WhereLike, model: nn.Module) -> Selection:
    """Turn what a caller may write into a selection for ``model``.

    Args:
        where: None or ``"body"``: all linear layers of the pretrained body. ``"paper"``: those without the ones that
            feed a nonlinearity (BERT's intermediate layers), the layers that follow a dropout in the paper. ``"all"``:
            every linear layer, heads included. Another string: a regular expression. A :class:`Where`. Or a predicate
            ``(name, module) -> bool``. The last three choose among all layers that can be mixed, embeddings and
            convolutions too. A :class:`Selection` is returned as it is.
        model: the model.

    Raises:
        TypeError: if ``where`` is none of these.
        ValueError: if ``"paper"`` finds no layer to leave out in ``model``.
    """
    if isinstance(where, Selection):
        return where
    if where is None or where in ("body", "paper"):
        in_body = body(model)
        if where != "paper":
            return Selection(mixes=lambda name, module: is_linear(module) and in_body(name, module), covers=in_body)
        if not any(_FEEDS_NONLINEARITY.search(name) for name, _ in model.named_modules()):
            raise ValueError(
                'expected a feed-forward block whose first layer where="paper" can leave out, found none by name; '
                "pass where=mixout.Where(exclude=...) with its name"
            )
        return Selection(
            mixes=lambda name, module: (
                is_linear(module) and in_body(name, module) and not _FEEDS_NONLINEARITY.search(name)
            ),
            covers=in_body,
        )
    if where == "all":
        return Selection(mixes=lambda _, module: is_linear(module), covers=lambda *_: True)
    chosen = Where(include=where) if isinstance(where, str) else where
    if not callable(chosen):
        raise TypeError(
            'expected where to be "body", "paper", "all", a regular expression, a mixout.Where '
            f"or a predicate (name, module) -> bool, got {where!r}"
        )
    return Selection(mixes=chosen, covers=chosen)


def body(model: nn.Module) -> Selector:
    """Whether a module lies in the pretrained body of ``model``."""
    inside: set[int] = set()
    outside: set[int] = set()
    for module in model.modules():
        # Of the class: wrappers such as peft's hand their model's attributes through.
        if not isinstance(getattr(type(module), "base_model_prefix", None), str):
            continue
        pretrained: Any = module
        if pretrained.base_model is not module or not _has_head(module):
            inside.update(id(m) for m in pretrained.base_model.modules())
        output = pretrained.get_output_embeddings()
        if output is not None:
            outside.update(id(m) for m in output.modules())
    if not inside:
        return lambda *_: True
    return lambda _, module: id(module) in inside and id(module) not in outside


def chosen_layers(model: nn.Module, selection: Selection) -> dict[str, nn.Module]:
    """The layers of ``model`` that ``selection`` takes and that nothing keeps from being mixed, by name.

    Adapted layers of peft are left to :mod:`mixout.layers.lora`; beside them, what is frozen stays at its anchor.
    """
    sites = lora.sites(model)
    return {
        name: module
        for name, module in model.named_modules()
        if not lora.is_adapted(module)
        and lora.within(sites, name) is None
        and selection.mixes(name, module)
        and obstacle(module, parent(model, name)) is None
        and (not sites or module.weight.requires_grad)
    }


def parent(model: nn.Module, name: str) -> nn.Module | None:
    """The module that holds the one called ``name``."""
    return model.get_submodule(name.rpartition(".")[0]) if name else None


def chosen(
    model: nn.Module, selection: Selection, unit: Unit
) -> tuple[dict[str, nn.Module], dict[str, tuple[Any, list[str]]]]:
    """The layers to mix; the LoRA layers, each with its adapters to mix.

    Raises:
        NothingMixedError: if there is neither.
    """
    layers, sites = chosen_layers(model, selection), lora.sites(model)
    selected = {name: site for name, site in sites.items() if selection.mixes(name, lora.base_of(site))}
    adapted = {name: (site, found) for name, site in selected.items() if (found := list(lora.adapters(site, unit)))}
    if layers or adapted:
        return layers, adapted
    reasons = [f"{name}: {lora.why_not(site)}" for name, site in selected.items()]
    for name, module in model.named_modules():
        if name not in sites and lora.within(sites, name) is None and selection.mixes(name, module):
            problem = obstacle(module, parent(model, name)) or "frozen, and without an adapter"
            reasons.append(f"{name}: {problem}")
    detail = "; ".join(reasons[:5]) if reasons else "where= matches no linear layer, or none that can be mixed"
    raise NothingMixedError(f"expected at least one layer to mix, got none ({detail}); see mixout.coverage")


def _has_head(module: nn.Module) -> bool:
    """Whether a model of transformers that is its own ``base_model`` is a body with a head around it.

    Some classes (CLIPForImageClassification, T5ForQuestionAnswering) do not keep their body under its prefix; then
    the pretrained models among their parts are the body.
    """
    parts = (m for m in module.modules() if m is not module)
    return re.search(r"For[A-Z]", type(module).__name__) is not None and any(
        isinstance(getattr(type(part), "base_model_prefix", None), str) for part in parts
    )


def _several(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
