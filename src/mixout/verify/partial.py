r"""Supplement B: where only some layers, or some units, are mixed, the bound holds with their coordinates alone.

Two layers under one quadratic loss that couples them; the first is mixed, then two of its columns. The curvature and
the distance of what is not mixed do not enter: ``E L(Phi) - L(w) = p/(2(1-p)) sum over mixed units of d^T H d``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixout.ops.mix import mix
from mixout.verify.claim import Claim, at_least, equals
from mixout.verify.enumeration import every_mask

TOPIC = "Supplement B: only a part is mixed"
_OUT, _IN, _REST = 2, 3, 4


def claims(ps: tuple[float, ...] = (0.3, 0.9)) -> list[Claim]:
    """Equality and bound, for one layer of two and for two columns of three, for each p."""
    draw = torch.Generator().manual_seed(1)
    size = _OUT * _IN + _REST
    root = torch.randn(size, size, generator=draw, dtype=torch.float64)
    hessian = root @ root.T / size + 0.3 * torch.eye(size, dtype=torch.float64)
    weight, anchor, center = torch.randn(3, size, generator=draw, dtype=torch.float64)
    smallest = float(torch.linalg.eigvalsh(hessian)[0])
    found = []
    for p in ps:
        for what, columns in (("one layer of two", (0, 1, 2)), ("two columns of three", (0, 2))):
            gap = _gap(weight, anchor, center, hessian, p, columns)
            parts = torch.stack([_restricted(weight - anchor, column) for column in columns])
            exact = float(torch.einsum("ui,ij,uj->", parts, hessian, parts))
            least = smallest * float(parts.square().sum())
            factor = p / (2 * (1 - p))
            found += [
                equals(TOPIC, f"{what} mixed: p/(2(1-p)) sum over mixed units of d'Hd", p, factor * exact, gap),
                at_least(TOPIC, f"{what} mixed: not below the bound on those coordinates", p, factor * least, gap),
            ]
    return found


def _gap(weight: Tensor, anchor: Tensor, center: Tensor, hessian: Tensor, p: float, columns: tuple[int, ...]) -> float:
    """E L(Phi) - L(w), ``columns`` of the first layer being mixed; all weights flat, the first layer's first."""
    layer = _OUT * _IN
    masks = every_mask((1, len(columns)), p)
    w, u = weight[:layer].view(_OUT, _IN), anchor[:layer].view(_OUT, _IN)
    phi = weight.repeat(len(masks.weights), 1)
    first = phi[:, :layer].view(-1, _OUT, _IN)
    first[:, :, columns] = mix(w[:, columns], u[:, columns], masks.values, 1 / (1 - p))
    away, here = phi - center, weight - center
    return float(masks.weights @ (0.5 * torch.einsum("ni,ij,nj->n", away, hessian, away)) - 0.5 * here @ hessian @ here)


def _restricted(delta: Tensor, column: int) -> Tensor:
    """``delta`` with everything but one column of the first layer set to 0."""
    kept = torch.zeros(_OUT, _IN, dtype=delta.dtype)
    kept[:, column] = 1
    return torch.cat([delta[: _OUT * _IN] * kept.flatten(), torch.zeros(_REST, dtype=delta.dtype)])
