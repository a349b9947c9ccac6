"""New top layers: their pretrained weights are dropped, and they start as the model's class starts new weights.

The baseline "Re-init" of Zhang et al. 2021 (https://arxiv.org/abs/2006.05987): the top blocks of a pretrained encoder
suit pretraining more than the task. As there, what lies above the blocks (a pooler, a last norm) starts anew, too.
Such parameters count as new ones: nothing is anchored or measured there.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from mixout.errors import InputError
from mixout.finetune.isolation import own_streams
from mixout.finetune.levels import blocks, layer_levels
from mixout.finetune.models import Loaded


def reinitialise_(loaded: Loaded, layers: int, seed: int) -> Loaded:
    """Give the top blocks new weights, in place.

    Args:
        loaded: changed; an output head that is new stays as it was drawn.
        layers: number of blocks, from the top; 0 changes nothing.
        seed: of the new weights; the global streams are left as they were.

    Returns:
        The same model, with the names of what is new now.

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
