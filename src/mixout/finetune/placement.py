"""Where a run's methods go: as the settings say, but never onto weights that have no pretrained values.

A new layer's only anchor would be its random initialisation, and pulling it there is a mistake that other
implementations make in silence. Inside the body (a new pooler, say) such a layer is left out; where somebody asks for
it by name, that is an error. Only ``head`` does it on purpose, as the paper's table 3 does: the new output layer mixed
with its first weights, or its input dropped. What a mixed layer does is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import mixout
from mixout import dropouts
from mixout.errors import InputError
from mixout.finetune.environment import own_streams
from mixout.finetune.models import Loaded
from mixout.finetune.run_methods import Lora, add_lora_, measured
from mixout.finetune.settings import Settings
from mixout.integrations.huggingface import pretrained_only
from mixout.layers import is_linear
from mixout.methods import AnchorDecay, Method, MixingMethod, OutputAnchor, Plain
from mixout.methods.likelihood import Batch
from mixout.selection import Selection, body, resolve


def apply_methods(
    loaded: Loaded, settings: Settings, rows: Sequence[Batch] = (), saved: str | None = None
) -> dict[str, Tensor] | None:
    """Apply ``settings.method`` to the model; the anchor is the weights that it holds now.

    Raises:
        InputError: ``where`` selects a layer without pretrained weights, or fits no layer of this model; or the model
            has no head of the kind that ``head`` asks for.
        MissingExtraError: LoRA is asked for, and peft is not installed.
    """
    methods, low_rank = settings.methods, next((m for m in settings.methods if isinstance(m, Lora)), None)
    if loaded.new and any(isinstance(method, OutputAnchor) and method.on == "logits" for method in methods):
        raise InputError(
            f"expected output_anchor with on=hidden for a model whose head is new, got {settings.method!r}: a head "
            "that nobody has trained has no answers to keep"
        )
    try:
        where = _pretrained_only(loaded, methods, settings.where)
        methods, measured_ = measured([m for m in methods if m is not low_rank], loaded.model, where, rows, saved)
        if low_rank is not None:
            with own_streams():
                torch.manual_seed(settings.stream_seed("init"))
                add_lora_(loaded.model, low_rank, where, loaded.new)
            # Once more: the layers of the body are others now.
            where = _pretrained_only(loaded, methods, settings.where)
        if settings.head == "mixout":
            where = _with_new_head(loaded, where)
        # By a seed: the same masks on any number of processes.
        mixout.apply_(loaded.model, methods or (Plain(),), where=where, seed=settings.stream_seed("mask"))
    # Already a message for the user; it only has to become an error of the input.
    except (TypeError, ValueError) as error:
        raise InputError(f"method {settings.method!r} with where={settings.where!r}: {error}") from error
    if settings.head == "dropout":
        _drop_before_head(loaded, next(method.p for method in methods if isinstance(method, MixingMethod)))
    return measured_


def _pretrained_only(loaded: Loaded, methods: Sequence[Method], where: str) -> Selection:
    """``where``, without layers that have new parameters."""
    chosen = resolve(where, loaded.model)
    if not any(map(_needs_anchor, methods)):
        return chosen
    fresh = {name.rpartition(".")[0] for name in loaded.new}
    # A mixing method takes layers that can be mixed, a decay alone takes every module.
    layers = any(isinstance(method, (MixingMethod, Lora)) for method in methods)
    select = chosen.mixes if layers else chosen.covers
    caught = sorted(name for name in fresh if select(name, loaded.model.get_submodule(name)))
    if caught and where not in ("body", "paper"):
        raise InputError(
            f"expected where to select layers with pretrained weights, got {where!r}, which selects "
            f"{', '.join(caught)}: a head anchored by request without weights; use where='body', or an expression "
            f"that leaves it out"
        )
    return pretrained_only(loaded.model, loaded.new, chosen)


def _needs_anchor(method: Method) -> bool:
    return isinstance(method, (AnchorDecay, Lora)) or (isinstance(method, MixingMethod) and method.anchor == "given")


def _with_new_head(loaded: Loaded, chosen: Selection) -> Selection:
    """``chosen`` and the new linear layers outside the body, to be mixed but not to be decayed."""
    in_body = body(loaded.model)
    fresh = {name: loaded.model.get_submodule(name) for name in (key.rpartition(".")[0] for key in loaded.new)}
    heads = {name for name, module in fresh.items() if is_linear(module) and not in_body(name, module)}
    if not heads:
        raise InputError("expected a model with a new linear output head for head='mixout', got none; use 'plain'")
    return replace(chosen, mixes=lambda name, module: name in heads or chosen.mixes(name, module))


def _drop_before_head(loaded: Loaded, p: float) -> None:
    """Set the dropouts outside the body, which a mixing method has switched off, to ``p``."""
    in_body = body(loaded.model)
    names = [site.module for site in dropouts.find(loaded.model) if site.kind == "module"]
    modules = {name: loaded.model.get_submodule(name) for name in names}
    outside = [module for name, module in modules.items() if not in_body(name, module)]
    if not outside:
        raise InputError("expected a model with a dropout before its head for head='dropout', got none; use 'plain'")
    for module in outside:
        module.p = p  # type: ignore[assignment]
