"""What a method is, and what an application of methods leaves on a model.

A method is a frozen description. :meth:`Method.install_` does the work on a :class:`Site`; everything that has to be
undone or saved is written into :class:`Applied`, by dotted names, so that it survives deepcopy and pickle.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from mixout import dropouts
from mixout.anchor import Anchor, AnchorStore, OwnWeight
from mixout.layers import Mixing, Share, attach_, check_scope, mixed_class, obstacle, swap_
from mixout.layers.lora import adapted_layers, is_adapted, within
from mixout.masks import Noise, Unit, check_p
from mixout.methods.adapters import install_adapters_
from mixout.ops.reference import GRADIENTS, Gradient
from mixout.ranks import SharedSeed
from mixout.selection import Selection
from mixout.streams import Stream

if TYPE_CHECKING:
    from mixout.methods.decay import Decay


@dataclass(kw_only=True)
class Applied:
    """What :func:`mixout.apply_` left on a model: enough to report, to save and to undo it."""

    methods: tuple[Method, ...]
    seed: SharedSeed
    anchors: dict[str, Anchor] = field(default_factory=dict)  # by parameter name
    mixing: Mixing | None = None
    decays: list[Decay] = field(default_factory=list)
    dropouts: list[dropouts.DropoutChange] = field(default_factory=list)
    adapted: tuple[str, ...] = ()  # LoRA layers, by name: their anchor is their frozen base

    @property
    def anchored(self) -> bool:
        """Whether there is an anchor to fingerprint and to measure the distance from."""
        return bool(self.anchors or self.adapted)


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a method is installed: the model, the layers chosen, the anchors, and the record to write into."""

    model: nn.Module
    selection: Selection
    anchors: AnchorStore
    keep_dropout: bool
    applied: Applied


class Method(ABC):
    """One way to fine-tune. Abstract; subclasses are final frozen dataclasses."""

    name: ClassVar[str]

    @abstractmethod
    def install_(self, site: Site) -> None:
        """Change ``site.model`` and write into ``site.applied`` how."""


class MixingMethod(Method):
    """A method that replaces weights by Phi. Abstract."""

    p: float
    gradient: Gradient
    unit: Unit
    noise: Noise
    zero_anchor: ClassVar[bool] = False
    own_anchor: ClassVar[bool] = False

    @property
    def takes_anchor(self) -> bool:
        """Whether there is an anchor to choose: not where it is 0, or the weight itself."""
        return not (self.zero_anchor or self.own_anchor)

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            TypeError: if ``p`` is not a number.
            ValueError: if ``p`` or ``gradient`` is out of its range.
        """
        check_p(self.p)
        if self.gradient not in GRADIENTS:
            raise ValueError(f"expected gradient in {GRADIENTS}, got {self.gradient!r}")

    def install_(self, site: Site) -> None:
        """Swap the chosen layers for mixed ones and switch the model's own dropouts off."""
        mixing = Mixing(
            p=torch.tensor(self.p, dtype=torch.float64, device="cpu"),
            unit=self.unit,
            noise=self.noise,
            gradient=self.gradient,
        )
        chosen = chosen_layers(site.model, site.selection)
        check_scope(chosen, site.applied.seed.scope)
        store = AnchorStore(site.model, 0) if self.zero_anchor else site.anchors
        own = OwnWeight() if self.own_anchor else None
        # All anchors first: one that is missing must leave the model as it was.
        shares = {
            name: Share(
                mixing=mixing,
                anchor=own or store.anchor(f"{name}.weight" if name else "weight", _weight(module)),
                plain=type(module),
                stream=Stream(site.applied.seed, name),
            )
            for name, module in chosen.items()
        }
        site.applied.seed.subject = _subject(self, shares, chosen)
        for name, module in chosen.items():
            mixed = mixed_class(module)
            if mixed is not None:
                swap_(module, mixed, shares[name])
            if own is None:
                site.applied.anchors.setdefault(f"{name}.weight" if name else "weight", shares[name].anchor)
        install_adapters_(site, self, mixing)
        attach_(site.model, chosen)
        site.applied.mixing = mixing
        if not site.keep_dropout:
            site.applied.dropouts += dropouts.set_(site.model, 0.0)


def _subject(method: Method, shares: dict[str, Share], layers: dict[str, nn.Module]) -> str:
    """What ranks must have in common, in short: the method, the layers, and a few numbers of each anchor."""
    digest = hashlib.blake2b(digest_size=8)
    for name, share in shares.items():
        weight, anchor = _weight(layers[name]), share.anchor.tensor
        digest.update(f"{name}:{tuple(weight.shape)}".encode())
        # A shard differs from rank to rank, and must.
        if anchor is not None and type(weight.data) is Tensor:
            digest.update(str(anchor.flatten()[:: max(1, anchor.numel() // 16)].tolist()).encode())
    return f"{method} on {len(shares)} layers, digest of layers and anchors {digest.hexdigest()}"


def chosen_layers(model: nn.Module, selection: Selection) -> dict[str, nn.Module]:
    """The layers of ``model`` that ``selection`` takes and that nothing keeps from being mixed, by name.

    Adapted layers of peft are left to :mod:`mixout.methods.adapters`; beside them, what is frozen stays at its anchor.
    """
    adapted = adapted_layers(model)
    return {
        name: module
        for name, module in model.named_modules()
        if not is_adapted(module)
        and within(adapted, name) is None
        and selection.mixes(name, module)
        and obstacle(module, parent(model, name)) is None
        and (not adapted or _weight(module).requires_grad)
    }


def parent(model: nn.Module, name: str) -> nn.Module | None:
    """The module that holds the one called ``name``."""
    return model.get_submodule(name.rpartition(".")[0]) if name else None


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight
