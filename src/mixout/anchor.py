"""Frozen starting weights: where they come from, what they are, how far the model has gone.

An :class:`Anchor` is neither parameter nor buffer: absent from the state dict, from DDP's broadcasts and from every
optimizer. It never shares memory with the weight. Layers that share a weight share its anchor.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from mixout.errors import AnchorMismatchError, MissingExtraError, MixoutError
from mixout.parts import laid_out, whole

AnchorSource: TypeAlias = Mapping[str, Tensor] | str | Path | nn.Module | int | None


class Anchor:
    """The tensor u that a weight is mixed with; ``tensor`` None stands for u = 0.

    Args:
        tensor: u.
        fixed: it keeps its dtype and place, whatever happens to the weight, and is cast and moved in each pass.
    """

    def __init__(self, tensor: Tensor | None, *, fixed: bool = False) -> None:
        self.tensor = tensor
        self.fixed = fixed
        self._elsewhere: Tensor | None = None

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the weight through ``Module.to``, ``half``, ``cuda``, ...; idempotent, as those are."""
        if self.tensor is not None and not self.fixed:
            self.tensor = fn(self.tensor)
            self._elsewhere = None

    def follow(self, weight: Tensor) -> Tensor | None:
        """The tensor, moved for good to the device and dtype of ``weight``, the module's own parameter."""
        if self.tensor is None or _alike(self.tensor, weight):
            return None if self.tensor is None else laid_out(self.tensor, weight)
        moved = self.tensor.to(weight.device, weight.dtype)
        if not self.fixed:
            self.tensor = moved
        return laid_out(moved, weight)

    def beside(self, weight: Tensor) -> Tensor | None:
        """The tensor on the device and in the dtype of ``weight``, which a pass reads; a fixed one as it is.

        A weight that was moved without its module's knowledge, or only lent (``functional_call``), gets a copy, made
        once; the anchor itself stays what it is.
        """
        if self.tensor is None:
            return None
        if self.fixed or _alike(self.tensor, weight):
            return laid_out(self.tensor, weight)
        copy = self._elsewhere
        if copy is None or not _alike(copy, weight):
            copy = self._elsewhere = self.tensor.to(weight.device, weight.dtype)
        return laid_out(copy, weight)


class OwnWeight(Anchor):
    """The weight itself as the anchor: Phi is w, and only the gradient is masked."""

    def __init__(self) -> None:
        super().__init__(None)

    def beside(self, weight: Tensor) -> Tensor:
        """The weight, as a constant."""
        return weight.detach()


def _alike(tensor: Tensor, weight: Tensor) -> bool:
    return tensor.device == weight.device and tensor.dtype == weight.dtype


class AnchorStore:
    """Makes one anchor per parameter of ``model``, from a source, at the moment it is asked.

    Args:
        model: whose parameters are to be anchored.
        source: None for the current weights; a state dict; a safetensors file, or a folder that holds one, read
            tensor by tensor; another model; or 0.
        dtype: to keep anchors in; None for the weights' own.
        host: keep anchors in the host's memory, pinned where there is a GPU.

    Raises:
        TypeError: if the source is none of these.
        FileNotFoundError: if a path holds no safetensors file.
    """

    def __init__(
        self, model: nn.Module, source: AnchorSource, *, dtype: torch.dtype | None = None, host: bool = False
    ) -> None:
        self._dtype = dtype
        self._host = host
        self._made: dict[int, Anchor] = {}
        self._zero = is_zero(source)
        self._read = None if source is None or self._zero else _reader(source)
        self.of_this_moment = source is None
        self._prefixes = _prefixes(model)
        self._names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(parameter), []).append(name)

    def anchor(self, name: str, parameter: Tensor) -> Anchor:
        """The anchor of ``parameter``, whose dotted name is ``name``; the same object for a tied parameter.

        Raises:
            AnchorMismatchError: if the source lacks the name or has another shape.
            MixoutError: if the host's memory was asked for and the parameter lies in parts on several ranks.
            ValueError: if the current weights were asked for and the parameter has none (meta device), or if the dtype
                does not hold the anchor exactly.
        """
        if id(parameter) not in self._made:
            tensor = None if self._zero else self._stored(name, self._tensor(name, parameter))
            self._made[id(parameter)] = Anchor(tensor, fixed=self._host or self._dtype is not None)
        return self._made[id(parameter)]

    def _stored(self, name: str, tensor: Tensor) -> Tensor:
        """In the dtype and the memory in which anchors are kept."""
        if self._dtype is not None:
            narrow = tensor.to(self._dtype)
            if not narrow.to(tensor.dtype).equal(tensor):
                raise ValueError(
                    f"expected an anchor that {self._dtype} holds exactly, got {name!r}, which it would round; "
                    "leave anchor_dtype out, or start from a checkpoint in that dtype"
                )
            tensor = narrow
        if self._host:
            if hasattr(tensor, "placements"):
                raise MixoutError(
                    f"expected the anchor of {name!r} beside its weight, which lies in parts on several ranks, got "
                    'anchor_device="cpu"; leave it out: the anchor lies in parts too'
                )
            tensor = tensor.cpu().pin_memory() if torch.cuda.is_available() else tensor.cpu()
        return tensor

    def _tensor(self, name: str, parameter: Tensor) -> Tensor:
        if self._read is None:
            if parameter.is_meta:
                raise ValueError(f"expected loaded weights, got {name} on the meta device; load them first")
            return parameter.detach().clone()
        # A checkpoint holds a tied parameter under one of its names only.
        names = [name, *self._names.get(id(parameter), [])]
        spellings = dict.fromkeys(spelling for one in names for spelling in self._spellings(one))
        found = next((t for t in map(self._read, spellings) if t is not None), None)
        if found is None:
            raise AnchorMismatchError(
                f"expected the anchor to hold {name!r}, got none; leave the layer out with where=, "
                "or pass an anchor that has it"
            )
        if found.shape != parameter.shape:
            raise AnchorMismatchError(
                f"expected an anchor of shape {tuple(parameter.shape)} for {name!r}, got {tuple(found.shape)}"
            )
        return laid_out(found.detach().to(parameter.device, parameter.dtype, copy=True), parameter)

    def _spellings(self, name: str) -> list[str]:
        """A checkpoint of the body alone lacks the prefix that the model with a head has, or the other way round."""
        bare = [name[len(prefix) :] for prefix in self._prefixes if name.startswith(prefix)]
        return [name, *bare, *(prefix + name for prefix in self._prefixes)]


def is_zero(source: AnchorSource) -> bool:
    """Whether the source is the number 0."""
    return isinstance(source, (int, float)) and not isinstance(source, bool) and source == 0


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` has wrapped, under whose names its weights are known; others as they are."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def _prefixes(model: nn.Module) -> list[str]:
    prefix = getattr(model, "base_model_prefix", "")
    return [f"{prefix}."] if isinstance(prefix, str) and prefix else []


def _reader(source: object) -> Callable[[str], Tensor | None]:
    if isinstance(source, nn.Module):
        source = uncompiled(source).state_dict()
    if isinstance(source, Mapping):
        return source.get
    if isinstance(source, (str, Path)):
        return _safetensors_reader(Path(source))
    raise TypeError(f"expected anchor to be None, 0, a state dict, a path to safetensors or a model, got {source!r}")


def _safetensors_reader(path: Path) -> Callable[[str], Tensor | None]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise MissingExtraError(
            'an anchor from safetensors needs the package safetensors: pip install "mixout[hf]"'
        ) from error
    where: dict[str, Path] = {}
    for file in _safetensors_files(path):
        with safe_open(file, framework="pt") as handle:
            where.update(dict.fromkeys(handle.keys(), file))

    def read(name: str) -> Tensor | None:
        if name not in where:
            return None
        with safe_open(where[name], framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
            return tensor

    return read


def _safetensors_files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return sorted({path / file for file in json.loads(index.read_text())["weight_map"].values()})
    single = path / "model.safetensors"
    if not single.is_file():
        raise FileNotFoundError(f"expected a safetensors file, or a folder that holds model.safetensors, got {path}")
    return [single]


def fingerprint(anchors: Mapping[str, Tensor | None]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the anchors; None (u = 0) counts as such.

    Example:
        >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(2)})
        True
        >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.ones(2)})
        False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(anchors.items()):
        if tensor is None:
            digest.update(f"{name}:0;".encode())
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        data = whole(tensor.detach()).cpu().contiguous()
        if data.numel():  # its bytes where they lie: numpy may not be installed
            digest.update((ctypes.c_char * data.nbytes).from_address(data.data_ptr()))
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Distance:
    """||w - u||: Euclidean, over all anchored weights and for each one."""

    total: float
    by_layer: dict[str, float] = field(repr=False)


def distance(pairs: Mapping[str, tuple[Tensor, Tensor | None]]) -> Distance:
    """||w - u|| of named (w, u) pairs, accumulated in float64; u None is 0; a tied w counts once in the total.

    Example:
        >>> distance({"a": (torch.tensor([3.0, 4.0]), None)}).total
        5.0
    """
    by_layer, squares = {}, {}
    for name, (weight, anchor) in pairs.items():
        # One pair at a time, and in double precision on the host where the device has none (MPS).
        device = weight.device if weight.device.type == "cuda" else torch.device("cpu")
        delta = weight.detach().to(device, copy=True).double()
        if anchor is not None:
            delta -= anchor.to(device).double()
        by_layer[name] = float(whole(torch.linalg.vector_norm(delta)))
        squares[id(weight)] = by_layer[name] ** 2
    return Distance(total=math.sqrt(sum(squares.values())), by_layer=by_layer)
