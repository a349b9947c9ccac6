"""What :func:`mixout.apply_` leaves on a model, on each module that it changed; p set anew; plain passes.

A changed module holds what undoes the change and a reference to the :class:`Applied` that all modules of one call
share. No module is named and none is special, so a part of a model or a copy of it can be asked, saved and undone.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from mixout.anchor import AnchorTensor
from mixout.errors import GenerationWarning, MixoutError, NotAppliedError, outside
from mixout.layers.mixed import Mixing
from mixout.masks import check_p
from mixout.methods import Method, MixingMethod, spell
from mixout.seeds import SharedSeed

# Attributes of a module. FIELD: what was applied to it. NEW: it was left out, as the anchor has no weight for it.
FIELD, NEW = "_mixout", "_mixout_new"

# The tags that TRL's trainers of policy gradients give their model, from which they sample and which they then train.
_POLICY_GRADIENT = frozenset({"grpo", "rloo", "a2po", "async-grpo", "gmpo", "sdpo"})


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
    return list(dict.fromkeys(applied for module in model.modules() if (applied := applied_here(module)) is not None))


def applied_to(model: nn.Module) -> list[Applied]:
    """What :func:`applications` returns; raises if it is empty."""
    records = applications(model)
    if not records:
        raise NotAppliedError("apply_ has not been called on this model; call mixout.apply_(model, method) first")
    return records


def applied_here(module: nn.Module) -> Applied | None:
    """What was applied to ``module`` itself."""
    applied: Applied | None = vars(module).get(FIELD)
    return applied


def set_p_(model: nn.Module, p: float) -> None:
    """Change p of every mixing method that ``model`` carries; a compiled model is not compiled again.

    All layers of one :func:`apply_` share their p, also where ``model`` is a part that holds only some of them.

    Raises:
        NotAppliedError: if the model carries no mixing method.
        TypeError, ValueError: if ``p`` is not a number in [0, 1].
    """
    records = applied_to(model)
    mixings = [record.mixing for record in records if record.mixing is not None]
    if not mixings:
        raise NotAppliedError(f"expected a mixing method, got {', '.join(map(str, records))}")
    values = [check_p(p, mixing.noise) for mixing in mixings]
    for mixing, value in zip(mixings, values, strict=True):
        mixing.set_p(value)


def follow_(model: nn.Module, p: float) -> None:
    """Change p as a schedule says: the largest becomes ``p``, others keep the methods' proportion to it."""
    set_p_(model, p)
    mixings = [applied.mixing for applied in applications(model) if applied.mixing is not None]
    largest = max(mixing.stated for mixing in mixings)
    for mixing in mixings:
        if mixing.stated < largest:
            mixing.set_p(p * mixing.stated / largest)


def subject(methods: str, anchors: Mapping[str, Mapping[str, AnchorTensor]]) -> str:
    """What ranks must have in common, in short: the methods, the layers, and the anchors of their weights."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, by_path in anchors.items():
        for path, anchor in by_path.items():
            hasher.update(f"{name}:{path}:{anchor.digest}".encode())
    return f"{methods} on {len(anchors)} layers, digest of layers and anchors {hasher.hexdigest()}"


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Let training passes of ``model`` read the fine-tuned weights, unmixed, within a ``with`` block.

    Dropouts stay as :func:`mixout.apply_` has set them, and :class:`mixout.AnchorDecay` decays as before. A compiled
    model is compiled once more, for plain passes. With activation checkpointing the backward pass belongs into the
    block as well: it computes the forward pass again.

    Args:
        model: a model that carries a method, or a part of one; all layers of one :func:`mixout.apply_` are switched.

    Raises:
        NotAppliedError: if the model carries no method.

    Example:
        >>> import torch, mixout
        >>> model = mixout.apply_(nn.Linear(2, 1, bias=False), mixout.Mixout(1.0), anchor=0)
        >>> x = torch.ones(1, 2)
        >>> with disabled(model):
        ...     plain = model(x)
        >>> bool((plain == x @ model.weight.T).all()), model(x).item()
        (True, 0.0)
    """
    switched = [record.mixing for record in applied_to(model) if record.mixing is not None]
    for mixing in switched:
        mixing.switch(off=True)
    try:
        yield model
    finally:
        for mixing in switched:
            mixing.switch(off=False)


def check_policy(model: Any) -> None:  # noqa: ANN401  any module
    """Refuse to mix the policy of a policy-gradient trainer of TRL, if ``model`` is one."""
    tag = (getattr(model, "model_tags", None) or ("",))[-1]  # of the last trainer that had the model
    if tag in _POLICY_GRADIENT and mixing_of(applications(model)):
        raise MixoutError(
            f"expected a method that does not mix for TRL's {tag!r} trainer, got {applications(model)[0]}: it "
            "samples from the unmixed model and would train the mixed one, another policy, so that its gradient would "
            "be no policy gradient; use mixout.AnchorDecay there, and mixing with SFTTrainer or DPOTrainer"
        )


def mixing_of(records: list[Applied]) -> list[Mixing]:
    """The mixing of each record whose training passes differ from those in eval mode, if it is not switched off."""
    found = []
    for record in records:
        # GradientMask, whose anchor is the weight itself, leaves the pass as it is.
        changes = any(isinstance(method, MixingMethod) and method.anchor != "own" for method in record.methods)
        if changes and record.mixing is not None and not record.mixing.off and record.mixing.probability() != 0.0:
            found.append(record.mixing)
    return found


class PlainGenerate:
    """``model.generate`` of the instance, in place of its class's: unmixed in training mode too."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401  a module with a method generate
        self.model = model  # strongly, for ``load().generate(...)``: such a model is freed by gc, not at once
        self.warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """As the method of the class."""
        generate = functools.partial(type(self.model).generate, self.model)
        if not self.model.training or not mixing_of(applications(self.model)):
            return generate(*args, **kwargs)
        check_policy(self.model)
        if not self.warned:
            self.warned = True
            warnings.warn(
                "generate was called in training mode: it reads the fine-tuned weights, unmixed. To do so "
                "without this warning call it in `with mixout.disabled(model):`, or call model.eval() first",
                GenerationWarning,
                stacklevel=outside(),
            )
        with disabled(self.model):
            return generate(*args, **kwargs)


def guard_(model: nn.Module) -> None:
    """Let every part of ``model`` that generates do so unmixed, unless another tool has changed how it does."""
    for module in model.modules():
        if callable(getattr(type(module), "generate", None)) and "generate" not in vars(module):
            vars(module)["generate"] = PlainGenerate(module)


def unguard_(module: nn.Module) -> None:
    """Undo :func:`guard_` on ``module`` itself."""
    if isinstance(vars(module).get("generate"), PlainGenerate):
        del vars(module)["generate"]
