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
    counted = {id(weight): name for name, (weight, _) in pairs.items()}
    return Distance(total=math.hypot(*(by_layer[name] for name in counted.values())), by_layer=by_layer)


def norm(weight: Tensor, anchor: Tensor | None, order: float = 2) -> float:
    """||w - u|| of one weight, of all ranks; with ``order`` infinity its largest entry.

    In blocks: no copy of the weight's size is made.
    """
    weight, largest = weight.detach(), order == math.inf
    near = None if anchor is None else laid_out(anchor, weight)
    found = _of_blocks(_differences(weight, near), order)
    if not largest and not _SQUARES_FIT[0] < float(found) < _SQUARES_FIT[1]:  # rare: once more, in float64
        found = _of_blocks((one.double() for one in _differences(weight, near)), order)
    if hasattr(weight, "placements"):
        found = of_all_ranks(found, weight, largest=True) if largest else of_all_ranks(found**2, weight).sqrt()
    return float(found)


def _of_blocks(each: Iterator[Tensor], order: float) -> Tensor:
    if order == math.inf:
        largest = [one.abs().amax() if one.numel() else one.new_zeros(()) for one in each]  # vector_norm is slow here
        return torch.stack(largest).amax().double()
    norms: list[Tensor] = []
    for one in each:
        # float32 adds 8 sums of 4,000 numbers.
        serial = one.dim() == 1 and one.numel() <= _SERIAL
        norms.append(torch.linalg.vector_norm(one, dtype=None if serial else torch.float64))
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), dtype=torch.float64)
    return total


def _differences(weight: Tensor, anchor: Tensor | None) -> Iterator[Tensor]:
    """Of each block w - u, which lasts until the next is asked for."""
    device = weight.device if weight.is_cuda else torch.device("cpu")  # MPS has no double precision
    room = torch.empty(0, device=device)
    for block in blocks(weight, anchor, most=_SERIAL):
        given = [one for one in block if one is not None]
        dtype = torch.float32 if all(one.dtype in _NARROW for one in given) else torch.float64
        w, *u = (one.to(device, dtype) for one in given)
        if not u:
            yield w
        elif w.is_cuda or w.dim() != 1:
            yield w - u[0]
        else:  # in the memory of the last one: the system would be asked for new memory each time
            room = room.to(dtype).resize_(w.shape)
            yield torch.sub(w, u[0], out=room)


def blocks(first: Tensor, *others: Tensor | None, most: int | None = None) -> Iterator[tuple[Any, ...]]:
    """Views of this rank's numbers of each, None for None, so small that what is computed of them stays in a cache.

    On a host ``most`` is the largest number of a block.
    """
    own: list[Any] = [local(one) for one in (first, *others)]
    given = [one for one in own if one is not None]
    if all(one.is_contiguous() for one in given):
        own = [None if one is None else one.view(-1) for one in own]
    size, length = (_GPU_BLOCK if first.is_cuda else most or _BLOCK), len(own[0])
    rows = max(1, size * length // max(1, own[0].numel()))
    return zip(*(repeat(None) if one is None else one.split(rows) for one in own), strict=False)


def of_all_ranks(own: Tensor, weight: Tensor, *, largest: bool = False) -> Tensor:
    """The sum of what each rank has found in its part of ``weight``, or the largest of these."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, partial = weight.device_mesh, Partial("max" if largest else "sum")  # type: ignore[attr-defined]
    placements = [Replicate() if one.is_replicate() else partial for one in weight.placements]  # type: ignore[attr-defined]
    return DTensor.from_local(own.to(mesh.device_type), mesh, placements, run_check=False).full_tensor()
