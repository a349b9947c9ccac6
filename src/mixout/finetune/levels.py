"""A model's blocks: how far from the bottom each parameter lies, new weights for the top ones, what the shape allows.

Blocks are the members of the outermost module lists of the body, in order; an encoder's come before its decoder's. A
model that keeps its blocks otherwise has no levels.

New top layers are the baseline "Re-init" of Zhang et al. 2021 (https://arxiv.org/abs/2006.05987): the top blocks of a
pretrained encoder suit pretraining more than the task. As there, what lies above the blocks (a pooler, a last norm)
starts anew, too. Such parameters count as new ones: nothing is anchored or measured there.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from mixout._names import nearest
from mixout.body import blocks as body_blocks
from mixout.errors import InputError
from mixout.finetune.environment import own_streams
from mixout.finetune.models import Loaded, longest_input
from mixout.finetune.run_methods import Lora
from mixout.finetune.settings import PRESETS, Settings
from mixout.methods import MixingMethod
from mixout.selection import resolve


def layer_levels(model: nn.Module) -> dict[str, int]:
    """The level of each parameter: embeddings 0, block k (from 0) k + 1, head and pooler the most.

    What lies between blocks takes the level of the block before it.

    Raises:
        InputError: the body has no module list.

    Example:
        >>> model = nn.Module()
        >>> model.embed = nn.Embedding(3, 2)
        >>> model.layer = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(2)])
        >>> model.head = nn.Linear(2, 1, bias=False)
        >>> layer_levels(model)
        {'embed.weight': 0, 'layer.0.weight': 1, 'layer.1.weight': 2, 'head.weight': 3}
    """
    found = blocks(model)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    levels: dict[str, int] = {}
    seen = 0
    for name, parameter in model.named_parameters():
        inside = next((number for number, prefix in enumerate(found) if name.startswith(prefix)), None)
        if inside is not None:
            seen = levels[name] = inside + 1
        elif id(parameter) in tables or "embed" in name:
            levels[name] = 0
        else:
            levels[name] = seen + 1 if seen == len(found) else seen
    return levels


def blocks(model: nn.Module) -> list[str]:
    """Name prefixes of the blocks, bottom first.

    Raises:
        InputError: the body has no module list.
    """
    body = getattr(model, "base_model", model)
    start = next((f"{name}." for name, module in model.named_modules() if module is body and name), "")
    found = [f"{start}{name}." for name, _ in body_blocks(body)]
    if not found:
        raise InputError(
            f"expected a model whose blocks lie in a torch.nn.ModuleList, so that layer_decay and reinit_layers can "
            f"tell them apart, got {type(model).__name__} without one; use layer_decay=1.0 and reinit_layers=0"
        )
    return found


def reinitialise_(loaded: Loaded, layers: int, seed: int) -> Loaded:
    """Give the top blocks new weights, in place; a new output head stays. The global streams are left as they were.

    Raises:
        InputError: the model has fewer blocks, or none that can be found.

    Example:
        >>> from mixout.finetune.models import load
        >>> loaded = load("minilm", labels=("no", "yes"), init_seed=0)
        >>> len(loaded.new), len(reinitialise_(loaded, 1, seed=0).new)  # 16 in a block, 2 in the pooler
        (2, 20)
    """
    if layers == 0:
        return loaded
    below = len(blocks(loaded.model)) - len(top_blocks(loaded.model, layers))
    levels = layer_levels(loaded.model)
    names = {name for name, level in levels.items() if level > below} - loaded.new
    with own_streams(), torch.no_grad():
        torch.manual_seed(seed)
        # All of it: some classes scale a block's weights by the depth of the model.
        fresh = type(loaded.model)(copy.deepcopy(loaded.model.config))
        for name in names:
            loaded.model.get_parameter(name).copy_(fresh.get_parameter(name))
    return replace(loaded, new=loaded.new | names)


def top_blocks(model: nn.Module, layers: int) -> list[str]:
    """Name prefixes of the top ``layers`` blocks.

    Raises:
        InputError: the model has fewer, or none that can be found.
    """
    found = blocks(model)
    if layers > len(found):
        raise InputError(f"expected reinit_layers <= {len(found)}, the blocks that the model has, got {layers}")
    return found[len(found) - layers :]


def check_limits(settings: Settings, loaded: Loaded) -> None:
    """Refuse settings that the model cannot take.

    Raises:
        InputError: texts longer than the model has positions, more new top layers than it has blocks, layer-wise rates
            without blocks, or ``where`` selects none of its layers for a method that mixes.

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
        top_blocks(loaded.model, settings.reinit_layers)
    if settings.layer_decay != 1.0:
        blocks(loaded.model)
    _check_where(settings, loaded)


def _check_where(settings: Settings, loaded: Loaded) -> None:
    try:
        chosen = resolve(settings.where, loaded.model)
    except ValueError as error:
        raise InputError(f"where={settings.where!r}: {error}") from error
    mixes = any(isinstance(method, (MixingMethod, Lora)) for method in settings.methods)
    if mixes and not any(chosen.mixes(name, module) for name, module in loaded.model.named_modules()):
        raise InputError(
            f"expected where as {', '.join(PRESETS)}, or a regular expression that matches a layer of "
            f"{settings.model!r}, got {settings.where!r}{nearest(settings.where, PRESETS)}"
        )
