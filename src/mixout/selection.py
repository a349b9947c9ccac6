"""``where``: which layers a method acts on; and what a model tells of itself: its pretrained body, and its blocks.

Models of transformers, timm and torchvision say which layers are outputs and new heads, also inside other modules. What
surrounds such a model is not body. A model that contains none of them is body as a whole.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import nn

from mixout.errors import NothingMixedError
from mixout.layers import entry_of, is_linear, lora, obstacle, parameter, weights

BODY = "body"
"""All linear layers of the pretrained body: the default."""
PAPER = "paper"
"""BODY without the linear layers that feed a nonlinearity, as in the paper."""
ALL = "all"
"""Every linear layer, output layers and new heads too."""
PARTS = "in the parts"  # of methods by layer, in a text

Selector: TypeAlias = Callable[[str, nn.Module], bool]
_Parts: TypeAlias = tuple[list[nn.Module], list[nn.Module]]

# The linear layer that feeds the nonlinearity of a feed-forward block, by its names in transformers, timm and torch.
_FEEDS_NONLINEARITY = re.compile(
    r"(^|\.)(intermediate\.dense|fc1|lin1|linear1|c_fc|fc_in|wi|wi_0|wi_1|gate_proj|up_proj|gate_up_proj|dense_h_to_4h)$"
)


@dataclass(frozen=True, kw_only=True)
class Where:
    r"""Chooses dotted module names by ``re.search``: any of ``include`` must match, and none of ``exclude``.

    Args:
        include: one expression or several.
        exclude: one expression or several.
        types: classes of layers, of which subclasses count too. None for those that are mixed by default: linear
            layers. ``nn.Module`` for all that can be mixed, embeddings and convolutions too.

    Raises:
        TypeError: if an expression is no text, or ``types`` are no classes of modules.
        ValueError: if an expression does not compile.

    Example:
        >>> Where(include="layer", exclude=r"layer\.0\.")("layer.1.query", nn.Linear(1, 1))
        True
        >>> Where(types=nn.Embedding)("words", nn.Embedding(2, 2)), Where()("words", nn.Embedding(2, 2))
        (True, False)
    """

    include: str | Sequence[str] = ""
    exclude: str | Sequence[str] = ()
    types: type[nn.Module] | Sequence[type[nn.Module]] | None = None

    def __post_init__(self) -> None:
        for pattern in (*_several(self.include), *_several(self.exclude)):
            if not isinstance(pattern, str):
                raise TypeError(f"expected include and exclude as regular expressions, got {pattern!r}")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"expected a regular expression in where, got {pattern!r}: {error}") from error
        for layer_type in _several(self.types or ()):
            if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
                raise TypeError(f"expected types= as classes of modules, such as nn.Embedding, got {layer_type!r}")

    def names(self, name: str) -> bool:
        """Whether a module called ``name`` is in, whatever its class."""
        inside, outside = (any(re.search(p, name) for p in _several(exprs)) for exprs in (self.include, self.exclude))
        return inside and not outside

    def __call__(self, name: str, module: nn.Module) -> bool:
        """Whether a layer called ``name`` is in."""
        right_type = is_linear(module) if self.types is None else isinstance(module, _several(self.types))
        return right_type and self.names(name)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What ``where`` means for one model."""

    mixes: Selector  # which layers, of those that can be mixed, a mixing method takes
    covers: Selector  # which modules, of those that hold parameters, a decay takes
    text: str = ""  # what the caller wrote, for messages and reports
    preset: bool = False  # the caller chose a preset, or nothing
    out: Selector = lambda *_: False  # what is in another part
    may_lack: bool = False  # layers that the anchor lacks are left out as new: the model does not name its heads

    def parameters(self, model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
        """Each parameter that is covered, by its dotted name, and the module that holds it."""
        for name, module in model.named_modules():
            if self.covers(name, module):
                for key, parameter in module.named_parameters(prefix=name, recurse=False):
                    yield key, module, parameter

    def but(self, out: Selector, text: str = "", *, elsewhere: bool = False) -> Selection:
        """This selection without the modules for which ``out`` is true; ``elsewhere``: another part has them."""
        return replace(
            self,
            mixes=lambda name, module: self.mixes(name, module) and not out(name, module),
            covers=lambda name, module: self.covers(name, module) and not out(name, module),
            out=lambda name, module: self.out(name, module) or (elsewhere and out(name, module)),
            text=self.text + text,
        )


WhereLike: TypeAlias = str | Where | Selector | Selection | None


def resolve(where: WhereLike, model: nn.Module) -> Selection:
    """What a caller may write as ``where``, see :func:`mixout.apply_`, as a selection for ``model``."""
    if isinstance(where, Selection):
        return where
    if where is None or where in (BODY, PAPER, ALL):
        preset = where or BODY
        inside = (lambda *_: True) if preset == ALL else body(model)
        may_lack = preset != ALL and not names_its_body(model)
        if preset == PAPER and not any(_FEEDS_NONLINEARITY.search(name) for name, _ in model.named_modules()):
            raise ValueError(
                'expected a feed-forward block whose first layer where="paper" can leave out, found none by name; '
                "pass where=mixout.Where(exclude=...) with its name"
            )

        def mixes(name: str, module: nn.Module) -> bool:
            feeds = preset == PAPER and _FEEDS_NONLINEARITY.search(name)
            return is_linear(module) and inside(name, module) and not feeds

        return Selection(mixes=mixes, covers=inside, text=f"where={preset!r}", preset=True, may_lack=may_lack)
    if isinstance(where, type):
        raise TypeError(
            f"expected names or a mixout.Where as where, got a class; write mixout.Where(types={where.__name__})"
        )
    selector = Where(include=where) if isinstance(where, str) else where
    if isinstance(selector, Where):
        covers = selector if selector.types else lambda name, _: selector.names(name)  # a decay takes all types
        return Selection(mixes=selector, covers=covers, text=f"where={where!r}")
    if not callable(selector):
        hint = "; write mixout.Where(include=[...])" * isinstance(where, (list, tuple, set))
        raise TypeError(
            "expected where to be mixout.BODY, PAPER or ALL, a regular expression, a mixout.Where "
            f"or a predicate (name, module) -> bool, got {where!r}{hint}"
        )
    predicate = _checked(selector)
    return Selection(mixes=predicate, covers=predicate, text=f"where={getattr(where, '__name__', where)}")


def _checked(predicate: Callable[..., object]) -> Selector:
    """``predicate``, whose answer counts as true or false; it must take (name, module)."""
    expected = "expected a predicate (name, module) -> bool, called as for name, module in model.named_modules()"
    try:
        signature = inspect.signature(predicate)
        signature.bind("", None)
        names = [p.name for p in signature.parameters.values()][:2]
    except TypeError as error:
        raise TypeError(f"{expected}, got {predicate!r}: {error}") from error
    except ValueError:  # a builtin without a signature
        names = []
    if names[:1] in (["module"], ["mod"], ["m"]) or names[1:] in (["name"], ["fqn"]):
        raise TypeError(f"{expected}, got one that takes ({', '.join(names)}); exchange the two")

    return lambda name, module: bool(predicate(name, module))


def body(model: nn.Module) -> Callable[[str, nn.Module], bool]:
    """Whether a module lies in the pretrained body of ``model``."""
    inside, outside = _parts(model)
    if not inside:
        return lambda *_: True
    return lambda _, module: id(module) in inside and id(module) not in outside


def names_its_body(model: nn.Module) -> bool:
    """Whether a part of ``model`` tells its pretrained body from a new head."""
    return bool(_parts(model)[0])


def blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of ``model`` by name, in order: the members of its outermost module lists that hold parameters."""
    list_names: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{list_name}.") for list_name in list_names)
        if isinstance(module, nn.ModuleList) and not inside and any(True for _ in module.parameters()):
            list_names.append(name)
            yield from ((f"{name}.{number}", block) for number, block in enumerate(module))


def _parts(model: nn.Module) -> tuple[set[int], set[int]]:
    """The ids of the modules of pretrained bodies, and of output layers; both empty if no part names them."""
    inside: set[int] = set()
    outside: set[int] = set()
    for module in model.modules():
        for bodies, heads in (_of_transformers(module), _of_others(module, inside)):
            inside.update(id(m) for part in bodies for m in part.modules())
            outside.update(id(m) for head in heads for m in head.modules())
    return inside, outside


def _of_transformers(module: Any) -> _Parts:  # noqa: ANN401
    """The body and the output embedding of a model of transformers; nothing for another module."""
    # Asked of the class: wrappers such as peft's pass their model's attributes on.
    if not isinstance(getattr(type(module), "base_model_prefix", None), str):
        return [], []
    output, base = module.get_output_embeddings(), module.base_model
    return [base] if base is not module or not _has_head(module) else [], [] if output is None else [output]


def _of_others(module: Any, inside: set[int]) -> _Parts:  # noqa: ANN401
    """The same for a model of timm, which returns its classifier, and of torchvision, whose head has a usual name."""
    if callable(getattr(type(module), "get_classifier", None)):
        classifier = module.get_classifier()
        classifiers = classifier if isinstance(classifier, (tuple, list)) else [classifier]
        return [module], [head for head in classifiers if isinstance(head, nn.Module)]
    if type(module).__module__.startswith("torchvision.models.") and id(module) not in inside:
        heads = [child for name, child in module.named_children() if name in ("fc", "classifier", "head", "heads")]
        linears: list[nn.Module] = [m for head in heads for m in head.modules() if isinstance(m, nn.Linear)]
        return [module], linears[-1:]
    return [], []


def _has_head(module: nn.Module) -> bool:
    """Whether a model of transformers that is its own ``base_model`` is a body with a head around it."""
    # CLIPForImageClassification does not keep its body under its prefix: the pretrained models among its parts are the
    # body. Beside a list of layers such a part is a feature extractor (LightGlueForKeypointMatching).
    classes = (type(m) for m in module.modules() if m is not module)
    lists = (child for child in module.children() if isinstance(child, nn.ModuleList))
    return (
        re.search(r"For[A-Z]", type(module).__name__) is not None
        and any(isinstance(getattr(cls, "base_model_prefix", None), str) for cls in classes)
        and not any(True for layers in lists for _ in layers.parameters())
    )


def is_trained(module: nn.Module) -> bool:
    """Whether a weight of ``module`` that can be mixed requires a gradient."""
    layer_weights = (parameter(module, path) for path in weights(module))
    return any(weight is not None and weight.requires_grad for weight in layer_weights)


def parent(model: nn.Module, name: str) -> nn.Module | None:
    """The module that holds the one called ``name``."""
    return model.get_submodule(name.rpartition(".")[0]) if name else None


def chosen(model: nn.Module, selection: Selection) -> tuple[dict[str, nn.Module], dict[str, tuple[Any, list[str]]]]:
    """The layers to mix; the LoRA layers, each with its adapters to mix; at least one of these."""
    layers: dict[str, nn.Module] = {}
    adapted: dict[str, tuple[Any, list[str]]] = {}
    reasons, sites = [], lora.sites(model)
    for name, site in sites.items():
        if not selection.mixes(name, site.get_base_layer()):
            continue
        problems = lora.problems(sites, name)
        if adapters := [adapter for adapter, problem in problems.items() if problem is None]:
            adapted[name] = site, adapters
        else:
            reasons.append(f"{name}: {next(iter(problems.values()))}")
    for name, module in model.named_modules():
        if name in sites or lora.within(sites, name) is not None:
            continue
        known = selection.covers(name, module) or selection.out(name, module)
        if selection.mixes(name, module):
            problem = obstacle(module, parent(model, name))
            if problem is None and sites and not is_trained(module):  # it stays at its anchor
                problem = "frozen, and without an adapter"
            if problem is None:
                layers[name] = module
            else:
                reasons.append(f"{name}: {problem}")
        elif selection.preset and is_linear(module) and not known:
            reasons.append(f"{name}: an output layer or a new head, left out by default ({selection.text})")
    if layers or adapted:
        return layers, adapted
    reasons = reasons[:5] or [f"{selection.text} matches no linear layer{_others(model, selection)}"]
    raise NothingMixedError(f"expected at least one layer to mix, got none ({'; '.join(reasons)}); see mixout.coverage")


def _others(model: nn.Module, selection: Selection) -> str:
    """The type of most of the layers that could be mixed, or the names where none fits, for a message."""
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    if linear and not any(selection.covers(name, module) for name, module in model.named_modules()):
        return f": names are {', '.join(dict.fromkeys([*linear[:2], linear[-1]]))} and so on"
    counts = Counter(type(m).__name__ for m in model.modules() if entry_of(m) is not None and not is_linear(m))
    return "".join(f"; choose its {n} x {type_name} with types={type_name}" for type_name, n in counts.most_common(1))


def _several(value: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
