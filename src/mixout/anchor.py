"""Frozen starting weights: held beside the weights, and identified.

An anchor is neither parameter nor buffer, and nothing writes to its tensor, so layers that share a weight and deep
copies of a model share it. Its :func:`digest` is that of what was captured; a model's :func:`fingerprint` follows.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixout.errors import AnchorMismatchError, InputError, MixoutError
from mixout.parts import laid_out, local, whole
from mixout.sources import Anchor, AnchorSource, WeightMissingError, lookup

ZERO = "0"  # the digest of u = 0


class AnchorTensor:
    """The tensor u that a weight is mixed with; ``tensor`` None stands for u = 0."""

    def __init__(self, tensor: Tensor | None = None, digest: str = ZERO, *, fixed: bool = False) -> None:
        self.tensor = tensor  # constant: nobody writes to it
        self.digest = digest  # of u as it was captured
        self.fixed = fixed  # keeps its dtype and device, whatever happens to the weight: cast and moved in each pass
        self.name = "a weight"  # of the weight, for messages

    def __deepcopy__(self, memo: dict[int, Any]) -> AnchorTensor:
        return copy.copy(self)  # shares the tensor, which is constant

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the weight through ``Module.to``, ``half``, ``cuda``, ..., but never to the meta device."""
        if self.tensor is None or self.fixed:
            return
        # ``fn`` sees an example only: ``Module.to_empty`` would leave garbage in the anchor.
        example = fn(torch.empty((), dtype=self.tensor.dtype, device=self.tensor.device))
        if not example.is_meta:
            self.tensor = self.tensor.to(example.device, example.dtype)

    def check(self, weight: Tensor) -> None:
        """Refuse a weight of another shape."""
        if self.tensor is not None and self.tensor.shape != weight.shape:
            raise AnchorMismatchError(
                f"{self.name} has shape {tuple(weight.shape)}, its anchor {tuple(self.tensor.shape)}: it was resized "
                "since apply_; call mixout.remove_(model), resize, then apply_ (if the model was trained, with the "
                "pretrained weights in the new size as anchor=), or leave the layer out with where="
            )

    def beside(self, weight: Tensor) -> Tensor | None:
        """The tensor on the device and in the dtype of ``weight``, which a pass reads; a fixed one as it is."""
        if self.tensor is None:
            return None
        self.check(weight)
        found = self.tensor
        if not self.fixed and (found.device != weight.device or found.dtype != weight.dtype):
            # The weight was moved without its module, or is no Parameter: one that is passed in for a single call.
            with torch.inference_mode(mode=False):  # a later pass may save it for its backward
                found = found.to(weight.device, weight.dtype)
            # Not for later passes: what FakeTensorMode makes, and a meta tensor.
            if isinstance(weight, nn.Parameter) and type(found) is type(self.tensor) and not found.is_meta:
                self.tensor = found
        return laid_out(found, weight)

    def cast(self, weight: Tensor) -> Tensor | None:
        """The tensor on the device and in the dtype of ``weight``; a fixed one too."""
        found = self.beside(weight)
        return None if found is None else found.to(weight.device, weight.dtype)


class OwnWeight(AnchorTensor):
    """The weight itself as the anchor: Phi is w, and only the gradient is masked."""

    def beside(self, weight: Tensor) -> Tensor:
        """The weight, as a constant."""
        return weight.detach()


class MovingAnchor(AnchorTensor):
    r"""The anchor of GMixout: a moving average of the weight that it is mixed with.

    .. math:: A_0 = u, \qquad A \leftarrow b A + (1 - b) w \ \text{ after the last optimizer step of each period}

    Kept in float32 or wider: in 16 bits steps of 1 - b, where b is ``rate``, would be rounded away. A copy of the
    model has its own; ``start``, the anchor of the pretrained weight u, is shared.

    Source: arXiv 2510.06982 (GMixout). The order of the update is ours, since the paper's text was not to be had.
    """

    tensor: Tensor
    start: AnchorTensor

    def __init__(self, start: AnchorTensor, weight: Tensor, rate: float) -> None:
        u = start.tensor if weight.is_meta else start.beside(weight)  # an anchor is never on the meta device
        initial = torch.zeros_like(weight, device="cpu" if weight.is_meta else None) if u is None else u
        dtype = torch.promote_types(weight.dtype, torch.float32)
        super().__init__(initial.detach().to(dtype, copy=True), start.digest)
        self.start, self.name = start, start.name
        self.rate = rate
        self.moved_in = 0  # the period that it is the anchor of

    def __deepcopy__(self, memo: dict[int, Any]) -> MovingAnchor:
        twin = copy.copy(self)
        twin.start, twin.tensor = copy.copy(self.start), self.tensor.clone()
        return twin

    def apply_(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the weight to another device, and to a wider dtype."""
        self.start.apply_(fn)
        example = fn(torch.empty((), dtype=self.tensor.dtype, device=self.tensor.device))
        if not example.is_meta:
            self.tensor = self.tensor.to(example.device, torch.promote_types(self.tensor.dtype, example.dtype))

    def beside(self, weight: Tensor) -> Tensor:
        """The tensor, which a pass casts."""
        self.check(weight)
        if weight.device != self.tensor.device and not weight.is_meta:
            self.tensor = self.tensor.to(weight.device)
        return self.tensor

    @torch.no_grad()
    def move_(self, weight: Tensor, period: int) -> None:
        """A <- b A + (1-b) w, in place, so that compiled graphs see it."""
        self.moved_in = period
        tensor = self.beside(weight)
        tensor.lerp_(weight.detach().to(tensor.dtype), 1 - self.rate)

    @torch.no_grad()
    def restore_(self, saved: Tensor, period: int) -> None:
        """Take the values of ``saved``, a whole tensor, as those of that period."""
        self.moved_in = period
        self.tensor.copy_(laid_out(saved.to(self.tensor.device, self.tensor.dtype), self.tensor))


class AnchorStore:
    """Makes one anchor per parameter of ``model`` when asked; for weights in parts every rank must ask."""

    def __init__(self, model: nn.Module, anchor: Anchor | AnchorSource = None, *, own: bool = False) -> None:
        self.own = own  # the weights themselves: nothing is read or copied
        self._kept = anchor if isinstance(anchor, Anchor) else Anchor(anchor)
        self._made: dict[int, AnchorTensor] = {}
        self._shared: list[bool] = []  # whether a tensor is the memory of the trained weight that it was asked for
        self.bases: dict[nn.Module, str] = {}  # digests of the frozen bases of LoRA layers, whose anchors are 0
        self._find = lookup(model, self._kept.source)
        self.of_this_moment = self._kept.source is None

    def anchor(self, name: str, parameter: Tensor) -> AnchorTensor:
        """The anchor of ``parameter``, whose dotted name is ``name``; the same object for a tied parameter."""
        if self.own:
            return OwnWeight()
        if id(parameter) not in self._made:
            tensor = self._find(name, parameter)
            anchor = AnchorTensor() if tensor is None else self._capture(name, self._copy(tensor, parameter), parameter)
            self._made[id(parameter)], anchor.name = anchor, repr(name)
        return self._made[id(parameter)]

    def tensor(self, name: str, parameter: Tensor) -> Tensor | None:
        """A copy of the starting weight, laid out as ``parameter`` is, to compare with once; None for 0."""
        found = self._find(name, parameter)
        if found is None:
            return None
        if parameter.requires_grad:
            self._shared.append(local(found).data_ptr() == local(parameter).data_ptr() != 0)
        return laid_out(self._copy(found, parameter), parameter)

    def check_apart(self) -> None:
        """Refuse a source whose tensors, as far as they were asked for, are the weights themselves."""
        if self._shared and all(self._shared):
            raise InputError(
                "expected a start with weights of its own, got those of this model, which training changes; copy them "
                "before you train: start = copy.deepcopy(model.state_dict())"
            )

    def _copy(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        device = tensor.device if parameter.is_meta else parameter.device  # an anchor is never on the meta device
        return tensor.detach().to(device, parameter.dtype, copy=True)

    def _capture(self, name: str, tensor: Tensor, parameter: Tensor) -> AnchorTensor:
        """The anchor in the dtype and memory to keep it in; identified by its values in the weight's dtype."""
        identity = digest(tensor)
        tensor = laid_out(tensor, parameter)
        dtype, on_host = self._kept.dtype, self._kept.device is not None
        if dtype is not None:
            narrow = tensor.to(dtype)
            if not narrow.to(tensor.dtype).equal(tensor):
                raise ValueError(
                    f"expected an anchor that {dtype} holds exactly, got {name!r}, which it would round; "
                    "leave dtype out of mixout.Anchor, or start from a checkpoint in that dtype"
                )
            tensor = narrow
        if on_host:
            if hasattr(tensor, "placements"):
                raise MixoutError(
                    f"expected the anchor of {name!r} beside its weight, which lies in parts on several ranks, got "
                    'mixout.Anchor(device="cpu"); leave it out: the anchor lies in parts too'
                )
            tensor = tensor.cpu().pin_memory() if torch.cuda.is_available() else tensor.cpu()
        return AnchorTensor(tensor, identity, fixed=on_host or dtype is not None)


class ImportanceStore(AnchorStore):
    """One importance per parameter, from a source of tensors: at least 0, in bfloat16, where the weight lies."""

    def __init__(self, model: nn.Module, source: AnchorSource) -> None:
        if isinstance(source, (str, Path)) and not os.path.exists(os.path.expanduser(source)):
            raise FileNotFoundError(
                f"expected weights of anchor_decay as a safetensors file of what mixout.fisher measured, got "
                f"{str(source)!r}, where there is none"
            )
        super().__init__(model, source)

    def anchor(self, name: str, parameter: Tensor) -> AnchorTensor:
        """The importance; 1, the mean, for a weight that was frozen when it was measured but is trained later."""
        try:
            return super().anchor(name, parameter)
        except WeightMissingError as error:
            if not parameter.requires_grad:
                return AnchorTensor()
            raise WeightMissingError(
                f"expected the weights of anchor_decay to hold {name!r}, got none; measure them again with "
                "mixout.fisher, or leave the layer out with where="
            ) from error

    def _copy(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        return tensor.detach().to(tensor.device if parameter.is_meta else parameter.device)

    def _capture(self, name: str, tensor: Tensor, parameter: Tensor) -> AnchorTensor:
        if not bool(((tensor >= 0) & tensor.isfinite()).all()):
            raise ValueError(f"expected weights that are finite and at least 0, got others for {name!r}")
        narrow = tensor.to(torch.bfloat16, copy=True)  # the caller's tensor may change
        return AnchorTensor(laid_out(narrow, parameter), digest(narrow), fixed=True)


def digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes; of the whole of a tensor in parts, and without bytes on the meta device."""
    hasher = hashlib.sha256(f"{tensor.dtype}:{tuple(tensor.shape)};".encode())
    _hash_bytes(hasher, tensor)
    return hasher.hexdigest()


def fingerprint(digests: Iterable[str]) -> str:
    """SHA-256 of digests and their order."""
    lines = "".join(f"{index:06}:{digest};" for index, digest in enumerate(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def old_fingerprint(tensors: Mapping[str, Tensor | None]) -> str:
    """The fingerprint of mixout 0.1: of names, dtypes, shapes and bytes at this moment; None is u = 0."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor is None:
            hasher.update(f"{name}:0;".encode())
        else:
            hasher.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            _hash_bytes(hasher, tensor)
    return hasher.hexdigest()


def _hash_bytes(hasher: Any, tensor: Tensor) -> None:  # noqa: ANN401  hashlib's type has no public name
    if tensor.is_meta:
        return
    data = whole(tensor.detach()).cpu().contiguous()
    if data.numel():  # read in place, without a copy: numpy may not be installed
        hasher.update((ctypes.c_char * data.nbytes).from_address(data.data_ptr()))
