"""How far weights are from their anchors, in blocks and over ranks, without a copy of a weight's size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from mixout.parts import laid_out

# Numbers that are read at once: what a cache holds, and what fills a GPU.
_BLOCK, _GPU_BLOCK = 2**18, 2**24
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """||w - u||: Euclidean, over all anchored weights and for each one."""

    total: float
    by_layer: dict[str, float] = field(repr=False)


def distance(pairs: Mapping[str, tuple[Tensor, Tensor | None]]) -> Distance:
    """||w - u|| of named (w, u) pairs; u None is 0; a tied w counts once in the total.

    Differences are taken in float32 (exact where w is near u) or wider, and their squares added in float64.

    Example:
        >>> distance({"a": (torch.tensor([3.0, 4.0]), None)}).total
        5.0
    """
    by_layer = {name: norm(weight, anchor) for name, (weight, anchor) in pairs.items()}
    counted = {id(weight): name for name, (weight, _) in pairs.items()}
    return Distance(total=math.hypot(*(by_layer[name] for name in counted.values())), by_layer=by_layer)


def norm(weight: Tensor, anchor: Tensor | None, order: float = 2) -> float:
    """||w - u|| of one weight, of all ranks; with ``order`` infinity its largest entry.

    In blocks: no copy of the weight's size is made.

    Example:
        >>> norm(torch.tensor([3.0, -4.0]), None), norm(torch.tensor([3.0, -4.0]), None, math.inf)
        (5.0, 4.0)
    """
    weight = weight.detach()
    near = None if anchor is None else laid_out(anchor, weight)
    found = torch.stack([_block_norm(w, u, order) for w, u in blocks(weight, near)])
    found = torch.linalg.vector_norm(found, order)
    return float(of_all_ranks(found, weight, order) if hasattr(weight, "placements") else found)


def _block_norm(weight: Tensor, anchor: Tensor | None, order: float) -> Tensor:
    device = weight.device if weight.is_cuda else torch.device("cpu")  # MPS has no double precision
    if not weight.numel():  # of which there is no largest entry
        return torch.zeros((), dtype=torch.float64, device=device)
    given = [weight] if anchor is None else [weight, anchor]
    dtype = torch.float32 if all(one.dtype in _NARROW for one in given) else torch.float64
    weight, *start = (one.to(device, dtype) for one in given)
    norm: Tensor = torch.linalg.vector_norm(weight - start[0] if start else weight, order, dtype=torch.float64)
    return norm


def blocks(first: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Views of this rank's numbers of each, None for None, so small that what is computed of them stays in a cache."""
    own: list[Any] = [one.to_local() if hasattr(one, "placements") else one for one in (first, *others)]  # type: ignore[union-attr]
    given = [one for one in own if one is not None]
    if all(one.is_contiguous() for one in given):
        own = [None if one is None else one.view(-1) for one in own]
    size, length = (_GPU_BLOCK if first.is_cuda else _BLOCK), len(own[0])
    rows = max(1, size * length // max(1, own[0].numel()))
    return zip(*(repeat(None) if one is None else one.split(rows) for one in own), strict=False)


def of_all_ranks(norm: Tensor, weight: Tensor, order: float) -> Tensor:
    """The norm of what the norms of every rank's part of ``weight`` are; with order 1 the sum of any numbers."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = weight.device_mesh  # type: ignore[attr-defined]
    sums, partial = (norm, Partial("max")) if order == math.inf else (norm**order, Partial())
    placements = [Replicate() if one.is_replicate() else partial for one in weight.placements]  # type: ignore[attr-defined]
    found = DTensor.from_local(sums.to(mesh.device_type), mesh, placements, run_check=False).full_tensor()
    return found if order == math.inf else found ** (1 / order)
