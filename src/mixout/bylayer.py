"""Methods by layer: a dict from regular expressions to methods, and one that follows the depth."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from mixout.body import blocks
from mixout.layers import is_linear
from mixout.methods import Dropout, Method, as_methods
from mixout.selection import Selection

ByLayer: TypeAlias = Mapping[str, Method | str | Sequence[Method | str]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Methods, and the regular expression on the names of the layers on which they act; None for all."""

    pattern: str | None
    methods: tuple[Method, ...]

    def fits(self, name: str) -> bool:
        """Whether the methods act on a layer called ``name``, if no rule before does."""
        return self.pattern is None or re.search(self.pattern, name) is not None

    def within(self, selection: Selection, rules: Sequence[Rule]) -> Selection:
        """What of ``selection`` is this rule's, which is the first of ``rules`` that fits."""
        if self.pattern is None:
            return selection
        text = f", in the part {self.pattern!r}"
        return selection.but(lambda name, _: next((one for one in rules if one.fits(name)), None) is not self, text)


def rules_of(method: Any) -> list[Rule]:  # noqa: ANN401  whatever a caller may write
    """What a caller may write as ``method=``, as rules.

    Raises:
        TypeError: if it is neither methods nor a dict of them.
        ValueError: if a key is no regular expression, the dict is empty, or it sets dropouts, which lie between layers.
    """
    if not isinstance(method, Mapping):
        return [Rule(pattern=None, methods=as_methods(method))]
    rules = []
    for pattern, given in method.items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"expected regular expressions as keys of the methods, got {pattern!r}: {error}"
            ) from error
        rules.append(Rule(pattern=pattern, methods=as_methods(given)))
        if any(isinstance(one, Dropout) for one in rules[-1].methods):
            raise ValueError(
                f"expected methods that act on layers, got Dropout for {pattern!r}, which sets all of the model's "
                "dropouts; leave it out, or pass keep_dropout=True to keep them as they are"
            )
    if not rules:
        raise ValueError("expected methods by layer, such as {'encoder': mixout.Mixout(0.5)}, got an empty dict")
    return rules


def by_depth(model: nn.Module, method: Callable[[float], Method]) -> dict[str, Method]:
    """Methods that follow the depth of a layer, for :func:`mixout.apply_`.

    Blocks are the members of the outermost ``nn.ModuleList`` that hold linear layers, in order: an encoder's before
    its decoder's. What lies in no block counts as the last.

    Args:
        model: the model.
        method: the method of a block, given its depth: 0 for the first one, 1 for the last.

    Returns:
        Methods by regular expression.

    Raises:
        ValueError: if ``model`` has no such list.

    Example:
        >>> from mixout import Mixout
        >>> model = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
        >>> [method.p for method in by_depth(model, lambda depth: Mixout(0.9 - 0.4 * depth)).values()]
        [0.9, 0.7, 0.5]
    """
    names = [name for name, block in blocks(model) if any(map(is_linear, block.modules()))]
    if not names:
        raise ValueError(
            f"expected a model whose blocks lie in a torch.nn.ModuleList, got {type(model).__name__} without one; "
            "write the methods by layer as a dict"
        )
    last = len(names) - 1
    found = {f"^{re.escape(name)}(\\.|$)": method(place / max(1, last)) for place, name in enumerate(names[:-1])}
    return {**found, "": method(1.0)}
