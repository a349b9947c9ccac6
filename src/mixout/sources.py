"""Where starting weights are read from: the model itself, a state dict, another model, safetensors, or 0.

:func:`lookup` turns what a caller may pass as ``anchor=`` into a function that finds one tensor at a time, so that a
checkpoint is never in memory as a whole. It downloads nothing and unpickles nothing.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mixout.errors import AnchorMismatchError, FineTunedAnchorWarning, InputError, needs, outside

AnchorSource: TypeAlias = Mapping[str, Tensor] | str | Path | nn.Module | int | None

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What the Trainer of transformers leaves in a checkpoint's folder, what trainer.save_model and mixout finetune leave.
_MARKS = ("trainer_state.json", "training_args.bin", "record.json")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, eq=False)
class Anchor:
    """What is mixed in, and how it is kept: for ``anchor`` of :func:`mixout.apply_`.

    Args:
        source: as ``anchor`` itself: None for a copy of the current weights, a state dict, a file, a model, or 0.
        dtype: in which it is kept, and which must hold it exactly, as bfloat16 does for a checkpoint in bfloat16; it is
            cast in each pass. None for the dtype of the weights.
        device: ``"cpu"`` keeps it in the host's memory, pinned where there is a GPU, and copies each weight's in the
            pass that reads it, for models whose anchors do not fit beside them. None: it follows the weights.

    Raises:
        TypeError: if ``dtype`` is not a torch.dtype.
        ValueError: if ``dtype`` or ``device`` is out of its range.

    Example:
        >>> import mixout
        >>> model = nn.Sequential(nn.Linear(4, 3)).bfloat16().float()
        >>> _ = mixout.apply_(model, "mixout(0.9)", anchor=mixout.Anchor(dtype=torch.bfloat16))
    """

    source: AnchorSource = None
    _: KW_ONLY
    dtype: torch.dtype | None = None
    device: Literal["cpu"] | None = None

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu"):
            raise ValueError(
                f"expected device 'cpu' or None, got {self.device!r}; by default anchors follow the weights"
            )
        if not isinstance(self.dtype, (torch.dtype, type(None))):
            raise TypeError(f"expected dtype as a torch.dtype or None, got {self.dtype!r}")
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise ValueError(f"expected dtype as a floating point dtype, got {self.dtype}")


OF_LORA = "a LoRA model starts at its frozen base, which apply_ takes for the anchor; or merge the adapters first"


class WeightMissingError(AnchorMismatchError):
    """The source holds no weight of that name."""


def lookup(model: nn.Module, source: AnchorSource) -> Callable[[str, Tensor], Tensor | None]:
    """A function (name, parameter) -> the starting weight of a parameter of ``model``, maybe not a copy; None is 0."""
    if is_zero(source):
        return lambda name, parameter: None  # noqa: ARG005
    if source is None:
        return _current
    read, names = _reader(source), dict[int, list[str]]()
    for alias, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(alias)
    body = getattr(model, "base_model_prefix", "")
    prefix = f"{body}." if isinstance(body, str) and body else ""

    def find(name: str, parameter: Tensor) -> Tensor:
        # A checkpoint holds a tied parameter under one name, and may be of the body or of the whole model.
        aliases = [name, *names.get(id(parameter), [])]
        keys = (key for alias in aliases for key in (alias, alias.removeprefix(prefix), prefix + alias))
        tensor = next((t for t in map(read, dict.fromkeys(keys)) if t is not None), None)
        if tensor is None:
            raise WeightMissingError(
                f"expected the anchor to hold {name!r}, got none; leave the layer out with where=, "
                f"or pass an anchor that has it{_hint(source, name)}"
            )
        if not isinstance(tensor, Tensor):
            raise TypeError(f"expected the anchor to hold tensors, got {type(tensor).__name__} for {name!r}")
        if tensor.shape != parameter.shape:
            raise AnchorMismatchError(
                f"expected an anchor of shape {tuple(parameter.shape)} for {name!r}, got {tuple(tensor.shape)}"
            )
        return tensor

    return find


def is_zero(source: AnchorSource) -> bool:
    """Whether the source is the number 0."""
    return isinstance(source, (int, float)) and not isinstance(source, bool) and source == 0


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` or DDP has wrapped, whose names its weights have; others as they are."""
    inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _current(name: str, parameter: Tensor) -> Tensor:
    if parameter.is_meta:
        raise ValueError(f"expected loaded weights, got {name} on the meta device; load them first")
    return parameter


def _hint(source: object, name: str) -> str:
    """Why a weight may be missing: it is of an adapter, has another name in a file, or lies in a dict (Lightning)."""
    if "lora_" in name or ".base_layer." in name or name.startswith("base_model.model."):
        return f"; {OF_LORA}"
    if isinstance(source, (str, Path)):
        return "; a file may store it under another name: load the base model and pass it"
    keys = [key for key, value in source.items() if isinstance(value, Mapping)] if isinstance(source, Mapping) else []
    return f"; the one passed holds dicts: is anchor=checkpoint[{keys[0]!r}] meant?" if keys else ""


def _reader(source: object) -> Callable[[str], Tensor | None]:
    if isinstance(source, nn.Module):
        source = unwrapped(source).state_dict()
    if isinstance(source, Mapping):
        return source.get
    if isinstance(source, (str, Path)):
        return _safetensors_reader(source)
    raise TypeError(f"expected anchor to be None, 0, a state dict, a path to safetensors or a model, got {source!r}")


def _safetensors_reader(source: str | Path) -> Callable[[str], Tensor | None]:
    with needs("hf", "an anchor from a safetensors file"):
        from safetensors import SafetensorError, safe_open
    file_by_key: dict[str, Any] = {}
    for file in _safetensors_files(source):
        try:
            opened: Any = safe_open(file, framework="pt")
            file_by_key.update(dict.fromkeys(opened.keys(), opened))
        except SafetensorError as error:
            raise InputError(
                f"expected anchor={str(file)!r} to be a safetensors file, which it is not, or not a whole one "
                f"({error}); if torch.save wrote it, pass the state dict: anchor=torch.load({str(file)!r}, "
                "weights_only=True)"
            ) from error
    return lambda name: file_by_key[name].get_tensor(name) if name in file_by_key else None


def _safetensors_files(source: str | Path) -> list[Path]:
    path = Path(os.path.expanduser(source))  # Path.expanduser raises where there is no such user
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"expected anchor as a safetensors file or a folder that holds one, got {str(source)!r}, where there is "
            f"neither; names on the Hugging Face Hub are not downloaded: load the model and pass it, or pass its "
            f"folder{_cached(source)}"
        )
    if (path / _INDEX).is_file():
        weight_map = json.loads((path / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        return sorted({path / file for file in weight_map.values()})
    if not (path / _SINGLE).is_file():
        files = sorted(file.name for file in path.iterdir() if file.suffix in (*_PICKLED, ".safetensors"))
        raise FileNotFoundError(
            f"expected a folder that holds {_SINGLE}, got {str(path)!r}, which holds "
            f"{', '.join(files[:5]) or 'no file of weights'}; pass a safetensors file by its own path, or a file of "
            "torch.save as anchor=torch.load(file, weights_only=True)"
        )
    return [path / _SINGLE]


def _cached(source: str | Path) -> str:
    """A hint: where the hub's cache holds the model of that name, if its package is loaded and it does."""
    hub = sys.modules.get("huggingface_hub")
    if hub is None or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        return ""
    cached = (hub.try_to_load_from_cache(str(source), file) for file in (_SINGLE, _INDEX))
    folder = next((str(Path(file).parent) for file in cached if isinstance(file, str)), None)
    return f", which is here: anchor={folder!r}" if folder else ""


def mark_of_run(folder: str) -> str | None:
    """The file in ``folder`` that tells that a run has written it, or None."""
    return next((name for name in _MARKS if (Path(os.path.expanduser(folder)) / name).is_file()), None)


def warn_if_fine_tuned(model: nn.Module) -> None:
    """Warn if a part of ``model`` was loaded from a folder that a run wrote; other weights leave no trace."""
    folders = {getattr(module, "name_or_path", None) for module in model.modules()}
    for folder in sorted(folder for folder in folders if isinstance(folder, str) and folder):
        if (mark := mark_of_run(folder)) is not None:
            warnings.warn(
                f"expected pretrained weights as the anchor, got those of a run, loaded from {folder!r}, which holds "
                f"{mark}; load the pretrained model, call apply_, then load the fine-tuned weights or "
                f"resume; or pass anchor={folder!r} if these weights are meant",
                FineTunedAnchorWarning,
                stacklevel=outside(),
            )
