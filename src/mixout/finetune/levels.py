"""How far from the bottom of a model each parameter lies: what layer-wise rates and new top layers go by.

Blocks are the members of the outermost module lists of the body, in order; an encoder's come before its decoder's. A
model that keeps its blocks otherwise has no levels.
"""

from __future__ import annotations

from torch import nn

from mixout.errors import InputError


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
    outermost: list[str] = []
    found: list[str] = []
    for name, module in body.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in outermost)
        if isinstance(module, nn.ModuleList) and not inside and any(True for _ in module.parameters()):
            outermost.append(name)
            found += [f"{start}{name}.{number}." for number in range(len(module))]
    if not found:
        raise InputError(
            f"expected a model whose blocks lie in a torch.nn.ModuleList, so that layer_decay and reinit_layers can "
            f"tell them apart, got {type(model).__name__} without one; use layer_decay=1.0 and reinit_layers=0"
        )
    return found
