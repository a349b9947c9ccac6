"""A model's blocks and what its shape allows: layer-wise rates, new weights for the top ones; and where methods act.

Blocks are the members of the outermost module lists of the body, in order; an encoder's come before its decoder's.

New top layers are the baseline "Re-init" of Zhang et al. 2021 (https://arxiv.org/abs/2006.05987): the top blocks of a
pretrained encoder suit pretraining more than the task. As there, what lies above the blocks (a pooler, a last norm)
starts anew, too. Such parameters count as new ones: nothing is anchored or measured there.

Methods act where the settings say, but never on weights without pretrained values: their only anchor would be a random
initialisation, and pulling there is a mistake that other implementations make in silence. Inside the body (a new
pooler, say) such a layer is left out; where somebody asks for it by name, that is an error. Only ``head`` does it on
purpose, as the paper's table 3 does: the new output layer mixed with its first weights, or its input dropped.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

import mixout
from mixout import dropouts
from mixout._names import nearest
from mixout.errors import FineTunedAnchorWarning, InputError
from mixout.finetune.environment import own_streams
from mixout.finetune.models import Loaded, longest_input
from mixout.finetune.run_methods import Interpolate, Lora, add_lora_, measured
from mixout.finetune.settings import PRESETS, Settings
from mixout.integrations.huggingface import pretrained_only
from mixout.layers import is_linear
from mixout.methods import AnchorDecay, Method, MixingMethod, OutputAnchor, Plain
from mixout.methods.likelihood import Batch
from mixout.selection import Selection, body, resolve
from mixout.selection import blocks as body_blocks


def layer_levels(model: nn.Module) -> dict[str, int]:
    """The level of each parameter: embeddings 0, block k (from 0) k + 1, head and pooler the highest.

    What lies between blocks takes the level of the block before it. InputError where the body has no module list.

    Example:
        >>> model = nn.Module()
        >>> model.embed = nn.Embedding(3, 2)
        >>> model.layer = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(2)])
        >>> model.head = nn.Linear(2, 1, bias=False)
        >>> layer_levels(model)
        {'embed.weight': 0, 'layer.0.weight': 1, 'layer.1.weight': 2, 'head.weight': 3}
    """
    prefixes = blocks(model)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    levels: dict[str, int] = {}
    current = 0
    for name, parameter in model.named_parameters():
        block = next((number for number, prefix in enumerate(prefixes) if name.startswith(prefix)), None)
        if block is not None:
            current = levels[name] = block + 1
        elif id(parameter) in embeddings or "embed" in name:
            levels[name] = 0
        else:
            levels[name] = current + 1 if current == len(prefixes) else current
    return levels


def blocks(model: nn.Module) -> list[str]:
    """Name prefixes of the blocks, bottom first; InputError where the body has no module list."""
    body = getattr(model, "base_model", model)
    start = next((f"{name}." for name, module in model.named_modules() if module is body and name), "")
    prefixes = [f"{start}{name}." for name, _ in body_blocks(body)]
    if not prefixes:
        raise InputError(
            f"expected a model whose blocks lie in a torch.nn.ModuleList, so that layer_decay and reinit_layers can "
            f"tell them apart, got {type(model).__name__} without one; use layer_decay=1.0 and reinit_layers=0"
        )
    return prefixes


def reinitialise_(loaded: Loaded, layers: int, seed: int) -> Loaded:
    """Give the top blocks new weights, in place; a new output head stays. The global streams are left as they were.

    InputError where the model has fewer blocks, or none that can be found.

    Example:
        >>> from mixout.finetune.models import load
        >>> loaded = load("minilm", labels=("no", "yes"), init_seed=0)
        >>> len(loaded.new), len(reinitialise_(loaded, 1, seed=0).new)  # 16 in a block, 2 in the pooler
        (2, 20)
    """
    if layers == 0:
        return loaded
    below = blocks_below(loaded.model, layers)
    names = {name for name, level in layer_levels(loaded.model).items() if level > below} - loaded.new
    with own_streams(), torch.no_grad():
        torch.manual_seed(seed)
        # A whole model, since some classes scale a block's weights by the model's depth.
        new_model = type(loaded.model)(copy.deepcopy(loaded.model.config))
        for name in names:
            loaded.model.get_parameter(name).copy_(new_model.get_parameter(name))
    return replace(loaded, new=loaded.new | names)


def blocks_below(model: nn.Module, layers: int) -> int:
    """How many blocks lie below the top ``layers``; InputError where the model has fewer."""
    depth = len(blocks(model))
    if layers > depth:
        raise InputError(f"expected reinit_layers <= {depth}, the blocks that the model has, got {layers}")
    return depth - layers


def check_limits(settings: Settings, loaded: Loaded) -> None:
    """Refuse, by an InputError, settings that the model cannot take.

    These are texts longer than it has positions, more new top layers than it has blocks, layer-wise rates without
    blocks, and a ``where`` that selects none of its layers for a method that mixes.

    Example:
        >>> from mixout.finetune.models import outline
        >>> check_limits(Settings(reinit_layers=7), outline("minilm"))
        Traceback (most recent call last):
        mixout.errors.InputError: expected reinit_layers <= 6, the blocks that the model has, got 7
    """
    limit = longest_input(loaded)
    if limit is not None and settings.max_length > limit:
        raise InputError(
            f"expected max_length <= {limit}, the most that {settings.model!r} takes, got {settings.max_length}"
        )
    if settings.reinit_layers:
        blocks_below(loaded.model, settings.reinit_layers)
    if settings.layer_decay != 1.0:
        blocks(loaded.model)
    try:
        selection = resolve(settings.where, loaded.model)
    except ValueError as error:
        raise InputError(f"where={settings.where!r}: {error}") from error
    mixes = any(isinstance(method, (MixingMethod, Lora)) for method in settings.methods)
    if mixes and not any(selection.mixes(name, module) for name, module in loaded.model.named_modules()):
        raise InputError(
            f"expected where as {', '.join(PRESETS)}, or a regular expression that matches a layer of "
            f"{settings.model!r}, got {settings.where!r}{nearest(settings.where, PRESETS)}"
        )


def apply_methods(
    loaded: Loaded, settings: Settings, rows: Sequence[Batch] = (), saved: str | None = None
) -> dict[str, Tensor] | None:
    """Apply ``settings.method`` to the model; the anchor is the weights that it holds now. Returns what was measured.

    InputError where the model has no layer, or no head, for the method, or where a layer has no pretrained weights.
    """
    methods, low_rank = settings.methods, next((m for m in settings.methods if isinstance(m, Lora)), None)
    if loaded.new and any(isinstance(method, OutputAnchor) and method.on == "logits" for method in methods):
        raise InputError(
            f"expected output_anchor with on=hidden for a model whose head is new, got {settings.method!r}: a head "
            "that nobody has trained has no answers to keep"
        )
    try:
        where = _pretrained_only(loaded, methods, settings.where)
        methods, measured_ = measured(
            [m for m in methods if not isinstance(m, (Lora, Interpolate))], loaded.model, where, rows, saved
        )
        if low_rank is not None:
            with own_streams():
                torch.manual_seed(settings.stream_seed("init"))
                add_lora_(loaded.model, low_rank, where, loaded.new)
            # Again, since the body has other layers now.
            where = _pretrained_only(loaded, methods, settings.where)
        if settings.head == "mixout":
            where = _with_new_head(loaded, where)
        # With a seed: the same masks on any number of processes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FineTunedAnchorWarning)  # the run has said so
            mixout.apply_(loaded.model, methods or (Plain(),), where=where, seed=settings.stream_seed("mask"))
    # Already a message for the user; only its type becomes InputError.
    except (TypeError, ValueError) as error:
        raise InputError(f"method {settings.method!r} with where={settings.where!r}: {error}") from error
    if settings.head == "dropout":
        _drop_before_head(loaded, next(method.p for method in methods if isinstance(method, MixingMethod)))
    return measured_


def _pretrained_only(loaded: Loaded, methods: Sequence[Method], where: str) -> Selection:
    selection = resolve(where, loaded.model)
    anchored = (AnchorDecay, Lora)
    if not any(isinstance(m, anchored) or (isinstance(m, MixingMethod) and m.anchor == "given") for m in methods):
        return selection
    new_modules = {name.rpartition(".")[0] for name in loaded.new}
    # A mixing method takes layers that can be mixed, a decay alone takes every module.
    by_layer = any(isinstance(method, (MixingMethod, Lora)) for method in methods)
    select = selection.mixes if by_layer else selection.covers
    selected = sorted(name for name in new_modules if select(name, loaded.model.get_submodule(name)))
    if selected and where not in ("body", "paper"):
        raise InputError(
            f"expected where to select layers with pretrained weights, got {where!r}, which selects "
            f"{', '.join(selected)}: a head anchored by request without weights; use where='body', or an expression "
            f"that leaves it out"
        )
    return pretrained_only(loaded.model, loaded.new, selection)


def _with_new_head(loaded: Loaded, selection: Selection) -> Selection:
    """``selection`` and the new linear layers outside the body, to be mixed but not to be decayed."""
    in_body = body(loaded.model)
    new_modules = {name: loaded.model.get_submodule(name) for name in (key.rpartition(".")[0] for key in loaded.new)}
    heads = {name for name, module in new_modules.items() if is_linear(module) and not in_body(name, module)}
    if not heads:
        raise InputError("expected a model with a new linear output head for head='mixout', got none; use 'plain'")
    return replace(selection, mixes=lambda name, module: name in heads or selection.mixes(name, module))


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
