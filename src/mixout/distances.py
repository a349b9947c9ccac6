"""How far weights are from their anchors, in blocks and over ranks, without a copy of a weight's size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from mixout.parts import laid_out, local

# Numbers that are read at once: what a cache holds, and what fills a GPU.
_BLOCK, _GPU_BLOCK = 2**18, 2**24
# Fewer than torch divides among threads, which on a busy host wait for each other much longer than they compute.
_SERIAL = 2**15 - 2**8
# Norms whose squares float32 holds.
_SQUARES_FIT = 1e-15, 1e15
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """||w - u||: Euclidean, over all anchored weights and for each one."""

    total: float
    by_layer: dict[str, float] = field(repr=False)


def distance(pairs: Mapping[str, tuple[Tensor, Tensor | None]]) -> Distance:
    """||w - u|| of named (w, u) pairs; u None is 0; a tied w counts once in the total.

    Differences are taken in float32 (exact where w is near u) or wider. Their squares are added in the same dtype
    within small blocks, and in float64 over blocks: the relative error is below 1e-5.
    """
    by_layer = {name: norm(weight, anchor) for name, (weight, anchor) in pairs.items()}
    name_by_id = {id(weight): name for name, (weight, _) in pairs.items()}
    return Distance(total=math.hypot(*(by_layer[name] for name in name_by_id.values())), by_layer=by_layer)


def norm(weight: Tensor, anchor: Tensor | None, order: float = 2) -> float:
    """||w - u|| of one weight, of all ranks; with ``order`` infinity its largest entry. In blocks, without a copy."""
    weight, largest = weight.detach(), order == math.inf
    u = None if anchor is None else laid_out(anchor, weight)
    if weight.is_complex():
        weight, u = torch.view_as_real(weight), None if u is None else torch.view_as_real(u)
    value = _of_blocks(_differences(weight, u), order)
    if not largest and value and not _SQUARES_FIT[0] < value < _SQUARES_FIT[1]:  # rare: once more, in float64
        value = _of_blocks((block.double() for block in _differences(weight, u)), order)
    if hasattr(weight, "placements"):
        value = of_all_ranks(value, weight, largest=True) if largest else of_all_ranks(value**2, weight).sqrt()
    return float(value)


def _of_blocks(diffs: Iterator[Tensor], order: float) -> Tensor:
    if order == math.inf:
        largest = [diff.abs().amax() if diff.numel() else diff.new_zeros(()) for diff in diffs]  # vector_norm is slow
        return torch.stack(largest).amax().double()
    norms: list[Tensor] = []
    for diff in diffs:
        # In float32 these are 8 sums of 4,000 numbers each.
        serial = diff.dim() == 1 and diff.numel() <= _SERIAL
        norms.append(torch.linalg.vector_norm(diff, dtype=None if serial else torch.float64))
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), dtype=torch.float64)
    return total


def _differences(weight: Tensor, anchor: Tensor | None) -> Iterator[Tensor]:
    """The differences w - u of each block, valid until the next one is asked for."""
    device = weight.device if weight.is_cuda else torch.device("cpu")  # MPS has no double precision
    buffer = torch.empty(0, device=device)
    for block in blocks(weight, anchor, most=_SERIAL):
        tensors = [tensor for tensor in block if tensor is not None]
        dtype = torch.float32 if all(tensor.dtype in _NARROW for tensor in tensors) else torch.float64
        w, *u = (tensor.to(device, dtype) for tensor in tensors)
        if not u:
            yield w
        elif w.is_cuda or w.dim() != 1:
            yield w - u[0]
        else:  # in one buffer, as the system would else be asked for new memory each time
            buffer = buffer.to(dtype).resize_(w.shape)
            yield torch.sub(w, u[0], out=buffer)


def blocks(first: Tensor, *others: Tensor | None, most: int | None = None) -> Iterator[tuple[Any, ...]]:
    """Views of this rank's part of each tensor (None for None), small enough that results stay in a cache."""
    parts: list[Any] = [local(tensor) for tensor in (first, *others)]
    tensors = [part for part in parts if part is not None]
    if all(tensor.is_contiguous() for tensor in tensors):
        parts = [None if part is None else part.view(-1) for part in parts]
    size, length = (_GPU_BLOCK if first.is_cuda else most or _BLOCK), len(parts[0])
    rows = max(1, size * length // max(1, parts[0].numel()))
    return zip(*(repeat(None) if part is None else part.split(rows) for part in parts), strict=False)


def of_all_ranks(own: Tensor, weight: Tensor, *, largest: bool = False) -> Tensor:
    """The sum of what each rank has found in its part of ``weight``, or the largest of these."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, partial = weight.device_mesh, Partial("max" if largest else "sum")  # type: ignore[attr-defined]
    placements = [Replicate() if placement.is_replicate() else partial for placement in weight.placements]  # type: ignore[attr-defined]
    return DTensor.from_local(own.to(mesh.device_type), mesh, placements, run_check=False).full_tensor()
