r"""Methods as the text of a run: those of :mod:`mixout.methods`, and three that only fine-tuning has.

- ``lora(8)``: adapters of peft, W = u + s B A with rank r and s = 2, merged at the end; docs/methods/lora.md.
- ``anchor_decay(40, fisher=200)``: weighted by the Fisher information, which the run measures; docs/methods/ewc.md.
- ``interpolate(0.5)``: after training the weights go half way back, u + t (w - u); docs/methods/interpolation.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixout.errors import InputError, needs
from mixout.finetune.environment import processes
from mixout.finetune.settings import BARE, DECAY
from mixout.layers import is_linear, lora
from mixout.measure import check_t
from mixout.methods import METHODS as LIBRARY
from mixout.methods import AnchorDecay, Method, Plain
from mixout.methods import parse as parse_with
from mixout.methods.likelihood import Batch, fisher
from mixout.selection import Selection

with needs("hf", "fine-tuning"):
    from safetensors.torch import load_file


@dataclass(frozen=True)
class Lora(Method):
    """Low-rank adapters.

    Example:
        >>> parse("lora(8)+mixout(0.7)")[0]
        Lora(r=8)
    """

    r: int
    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        object.__setattr__(self, "r", _whole("r", self.r))


@dataclass(frozen=True, repr=False)
class MeasuredDecay(AnchorDecay):
    """:class:`mixout.AnchorDecay`, weighted by the Fisher information of ``fisher`` rows if that is given.

    Example:
        >>> parse("anchor_decay(40, fisher=200)")[0].fisher
        200
    """

    _: KW_ONLY
    fisher: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fisher is not None:
            object.__setattr__(self, "fisher", _whole("fisher", self.fisher))
            if self.weights is not None or self.selective:
                raise ValueError("expected fisher without weights and without selective=true, got both")

    @property
    def weighted(self) -> bool:
        """Whether each entry has an importance of its own."""
        return self.fisher is not None or super().weighted

    def plain(self, weights: Mapping[str, Tensor] | None = None) -> AnchorDecay:
        """The library's method, with the measured ``weights``."""
        values = {f.name: getattr(self, f.name) for f in fields(AnchorDecay)}
        return AnchorDecay(**values if weights is None else values | {"weights": weights})


@dataclass(frozen=True, repr=False)
class Interpolate(Method):
    """Train as the other methods say, then move all pretrained weights to u + t (w - u), t in [0, 1].

    Example:
        >>> parse("mixout(0.7)+interpolate(0.5)")[1]
        Interpolate(t=0.5)
    """

    t: float
    name: ClassVar[str] = "interpolate"

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", check_t(self.t))


P = 0.7  # default probability
# What a method's name without arguments means.
USUAL = {name: f"{name}({P})" for name in ("mixout", "mixconnect", "gradient_mask")}
USUAL |= {"dropconnect": "dropconnect(0.1)", "dropout": "dropout(0.1)", "anchor_decay": DECAY["classification"]}
METHODS: Mapping[str, type[Method]] = {
    **LIBRARY,
    "anchor_decay": MeasuredDecay,
    "lora": Lora,
    "interpolate": Interpolate,
}


def parse(text: str) -> tuple[Method, ...]:
    """The methods that ``text`` names; ValueError as of :func:`mixout.methods.parse`, or for lora or interpolate twice.

    Example:
        >>> parse("mixout")
        (Mixout(p=0.7),)
        >>> parse("mixout+interpolate(0.5)")[0]
        Mixout(p=0.7)
    """
    methods = parse_with(BARE.sub(lambda bare: USUAL.get(bare[1], bare[0]), text), METHODS)
    if len(methods) > 1 and any(isinstance(method, Plain) for method in methods):
        raise ValueError(f"expected plain alone, got {text!r}; leave it out of the sum")
    for method_type in (Lora, Interpolate):
        if sum(isinstance(method, method_type) for method in methods) > 1:
            raise ValueError(f"expected {method_type.name} once, got {text!r}")
    return methods


def _whole(name: str, value: Any) -> int:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        raise ValueError(f"expected {name} as a whole number, at least 1, got {value!r}")
    return int(value)


def add_lora_(model: nn.Module, method: Lora, where: Selection, new: frozenset[str]) -> None:
    """Put adapters on the linear layers that ``where`` selects; only they and the new parameters are trained.

    The factors are drawn from torch's global stream. InputError where no layer with a weight of its own is selected.
    """
    with needs("lora", "the method lora"):
        from peft import LoraConfig, inject_adapter_in_model
    # An adapter merged into a weight that another module uses too, such as an embedding, would change both.
    users = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    names = [
        name
        for name, module in model.named_modules()
        if is_linear(module) and where.mixes(name, module) and users[id(module.weight)] < 2
    ]
    if not names:
        raise InputError("expected a linear layer for lora whose weight is its own, got none; check where")
    config = LoraConfig(r=method.r, lora_alpha=2 * method.r, target_modules=names)
    inject_adapter_in_model(config, model)
    for name in new:
        model.get_parameter(name).requires_grad_(True)


@torch.no_grad()
def merge_lora_(model: nn.Module) -> None:
    """Replace every adapted layer by the plain layer that computes the same; do nothing without adapters."""
    for name, layer in lora.sites(model).items():
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    vars(model).pop("peft_config", None)


def measured(
    methods: Sequence[Method], model: nn.Module, where: Selection, rows: Sequence[Batch], saved: str | None
) -> tuple[tuple[Method, ...], dict[str, Tensor] | None]:
    """The library's methods, a decay with its Fisher information; and that information if it was measured here.

    It is measured on ``fisher`` of the ``rows``, one example each, evenly spread; or it is read from ``saved``.
    """
    weights: dict[str, Tensor] | None = None
    library_methods: list[Method] = []
    for method in methods:
        if not isinstance(method, MeasuredDecay):
            library_methods.append(method)
        elif method.fisher is None:
            library_methods.append(method.plain())
        elif saved is not None:
            library_methods.append(method.plain(load_file(saved)))
        else:
            count = min(method.fisher, len(rows))
            sample = [rows[index * len(rows) // count] for index in range(count)]
            # With several processes each one measures, on the CPU, where all get the same result.
            if torch.accelerator.is_available() and processes() == 1:
                model.to(torch.accelerator.current_accelerator())
            weights = fisher(model, sample, examples=method.fisher, where=where)
            library_methods.append(method.plain(weights))
    return tuple(library_methods), weights
