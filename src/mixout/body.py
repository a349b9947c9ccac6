"""What a model tells of itself: its pretrained body, its blocks, and whether a run has trained it already.

Models of transformers, timm and torchvision tell their output layers and new heads, also within other modules: what
lies around is then no body. A model that holds none of these is body all over.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from mixout.errors import FineTunedAnchorWarning

# What the Trainer of transformers leaves in a checkpoint's folder, and what trainer.save_model leaves.
_MARKS = ("trainer_state.json", "training_args.bin")

_Parts: TypeAlias = tuple[list[nn.Module], list[nn.Module]]


def body(model: nn.Module) -> Callable[[str, nn.Module], bool]:
    """Whether a module lies in the pretrained body of ``model``."""
    inside, outside = _parts(model)
    if not inside:
        return lambda *_: True
    return lambda _, module: id(module) in inside and id(module) not in outside


def tells_its_heads(model: nn.Module) -> bool:
    """Whether a part of ``model`` tells which layers are its output layers or new heads."""
    return bool(_parts(model)[0])


def blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of ``model`` by name, in order: the members of its outermost module lists that hold parameters."""
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and any(True for _ in module.parameters()):
            lists.append(name)
            yield from ((f"{name}.{number}", block) for number, block in enumerate(module))


def _parts(model: nn.Module) -> tuple[set[int], set[int]]:
    """The ids of the modules of pretrained bodies, and of output layers; none where no part tells them."""
    inside: set[int] = set()
    outside: set[int] = set()
    for module in model.modules():
        for bodies, heads in (_of_transformers(module), _of_others(module, inside)):
            inside.update(id(m) for part in bodies for m in part.modules())
            outside.update(id(m) for head in heads for m in head.modules())
    return inside, outside


def _of_transformers(module: Any) -> _Parts:  # noqa: ANN401
    """The body and the output embedding of a model of transformers; nothing for another module."""
    # Of the class: wrappers such as peft's hand their model's attributes through.
    if not isinstance(getattr(type(module), "base_model_prefix", None), str):
        return [], []
    output = module.get_output_embeddings()
    is_body = module.base_model is not module or not _has_head(module)
    return [module.base_model] if is_body else [], [] if output is None else [output]


def _of_others(module: Any, inside: set[int]) -> _Parts:  # noqa: ANN401
    """The same for a model of timm, which tells its classifier, and of torchvision, where it has a usual name."""
    if callable(getattr(type(module), "get_classifier", None)):
        found = module.get_classifier()
        several = found if isinstance(found, (tuple, list)) else [found]
        return [module], [head for head in several if isinstance(head, nn.Module)]
    if type(module).__module__.startswith("torchvision.models.") and id(module) not in inside:
        ends = [child for name, child in module.named_children() if name in ("fc", "classifier", "head", "heads")]
        linears: list[nn.Module] = [m for end in ends for m in end.modules() if isinstance(m, nn.Linear)]
        return [module], linears[-1:]
    return [], []


def _has_head(module: nn.Module) -> bool:
    """Whether a model of transformers that is its own ``base_model`` is a body with a head around it.

    Some classes (CLIPForImageClassification, T5ForQuestionAnswering) do not keep their body under its prefix; then
    the pretrained models among their parts are the body. Beside a list of layers such a part is no body but a feature
    extractor (LightGlueForKeypointMatching).
    """
    parts = (type(m) for m in module.modules() if m is not module)
    lists = (child for child in module.children() if isinstance(child, nn.ModuleList))
    return (
        re.search(r"For[A-Z]", type(module).__name__) is not None
        and any(isinstance(getattr(kind, "base_model_prefix", None), str) for kind in parts)
        and not any(True for one in lists for _ in one.parameters())
    )


def warn_if_fine_tuned(model: nn.Module) -> None:
    """Warn if a part of ``model`` was loaded from a folder that a Trainer wrote; other weights leave no trace."""
    folders = {getattr(module, "name_or_path", None) for module in model.modules()}
    for folder in sorted(folder for folder in folders if isinstance(folder, str) and folder):
        mark = next((name for name in _MARKS if (Path(folder) / name).is_file()), None)
        if mark is not None:
            warnings.warn(
                f"expected pretrained weights as the anchor, got those of a run, loaded from {folder!r}, which holds "
                f"{mark}; load the pretrained model, call apply_, then load the fine-tuned weights or "
                f"resume; or pass anchor={folder!r} if these weights are meant",
                FineTunedAnchorWarning,
                stacklevel=3,  # who called apply_
            )
