"""On a GPU: Phi, and the placing of the thin gradient, in one kernel each.

What torch does in several passes over a matrix as large as the weight is one pass here. Triton comes with torch's
builds for CUDA; where it is missing or does not work, on other devices, and for Phi in compiled graphs, which fuse by
themselves, the same arithmetic is plain torch's.
"""

from __future__ import annotations

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mixout._torch import in_functional_transform
from mixout.errors import outside

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

# Offsets are 32-bit numbers.
LARGEST = 2**31
# Rows and columns of a tile: of Phi, and of the thin gradient, where a program owns whole rows.
_PHI = {"ROWS": 16, "COLUMNS": 128}
_PLACE = {"ROWS": 4, "COLUMNS": 256}


def available(weight: Tensor) -> bool:
    """Whether to use the kernels here: on a plain matrix on a GPU, where nothing is differentiated again."""
    return (
        triton is not None
        and not torch.compiler.is_compiling()
        and weight.is_cuda
        and type(weight) in (Tensor, nn.Parameter)
        and weight.dim() == 2
        and weight.dtype.itemsize <= 4
        and weight.numel() < LARGEST
        and not torch.is_grad_enabled()
        and not in_functional_transform()
        and _works(weight.device)
    )


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether a kernel can be built and run: Triton needs a C compiler and a GPU that it knows."""
    probe = torch.zeros(1, 1, device=device)
    try:
        phi(probe, None, torch.ones(1, 1, device=device), 1.0, probe.dtype)
    # Whatever a compiler, a driver or a launcher may raise.
    except Exception as error:
        warnings.warn(
            f"Triton does not work on {device}, so torch's own kernels are used: {error}", stacklevel=outside()
        )
        return False
    return True


def phi(weight: Tensor, anchor: Tensor | None, mask: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """As :func:`mixout.ops.mix.interpolate`, computed in float32 and rounded once, to ``dtype``.

    :func:`available` holds for ``weight``; the anchor is on the same GPU; the mask is broadcast.
    """
    result = torch.empty_like(weight, dtype=dtype)
    mask = mask.expand(weight.shape)
    anchor_operand = weight if anchor is None else anchor
    rows, columns = weight.shape
    grid = (triton.cdiv(rows, _PHI["ROWS"]), triton.cdiv(columns, _PHI["COLUMNS"]))
    with _current(weight.device):
        _phi[grid](
            result,
            weight,
            anchor_operand,
            mask.view(torch.uint8) if mask.dtype == torch.bool else mask,
            scale,
            rows,
            columns,
            *result.stride(),
            *weight.stride(),
            *anchor_operand.stride(),
            *mask.stride(),
            ANCHORED=anchor is not None,
            **_PHI,
        )
    return result


def place(columns: Tensor, kept: Tensor, shape: tuple[int, ...], dtype: torch.dtype, scale: float) -> Tensor:
    """A matrix that is 0 except for the rising columns ``kept``, which are ``scale`` times the rows of ``columns``.

    Of a repeated index the first row counts. :func:`available` holds for ``columns``, (|K|, out).
    """
    result = columns.new_empty(shape, dtype=dtype)
    # A program owns whole rows: it clears them, then writes what is kept.
    grid = (triton.cdiv(shape[0], _PLACE["ROWS"]),)
    with _current(columns.device):
        _place[grid](result, columns, kept, scale, len(kept), *shape, *columns.stride(), **_PLACE)
    return result


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make ``device`` the current one, on which Triton launches, wherever its arguments lie."""
    return nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device)


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _phi(
        result: tl.tensor,
        weight: tl.tensor,
        anchor: tl.tensor,
        mask: tl.tensor,
        scale: tl.tensor,
        rows: tl.tensor,
        columns: tl.tensor,
        r0: tl.tensor,
        r1: tl.tensor,
        w0: tl.tensor,
        w1: tl.tensor,
        a0: tl.tensor,
        a1: tl.tensor,
        m0: tl.tensor,
        m1: tl.tensor,
        ANCHORED: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ) -> None:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows) & (column < columns)
        c = tl.load(mask + row * m0 + column * m1, mask=inside, other=0).to(tl.float32) * scale
        w = tl.load(weight + row * w0 + column * w1, mask=inside, other=0.0).to(tl.float32)
        if ANCHORED:
            u = tl.load(anchor + row * a0 + column * a1, mask=inside, other=0.0).to(tl.float32)
            # lerp: u at c = 0 and w at c = 1, to the bit.
            value = tl.where(c < 0.5, u + c * (w - u), w - (w - u) * (1.0 - c))
        else:
            value = w * c
        tl.store(result + row * r0 + column * r1, value.to(result.dtype.element_ty), mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def _place(
        result: tl.tensor,
        thin: tl.tensor,
        kept: tl.tensor,
        scale: tl.tensor,
        count: tl.tensor,
        rows: tl.tensor,
        columns: tl.tensor,
        t0: tl.tensor,
        t1: tl.tensor,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ) -> None:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        for start in range(0, columns, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = (row < rows)[:, None] & (column < columns)[None, :]
            zeros = tl.zeros([ROWS, COLUMNS], dtype=result.dtype.element_ty)
            tl.store(result + row[:, None] * columns + column[None, :], zeros, mask=inside)
        tl.debug_barrier()
        for start in range(0, count, COLUMNS):
            index = start + tl.arange(0, COLUMNS)
            column = tl.load(kept + index, mask=index < count, other=0)
            previous = tl.load(kept + index - 1, mask=(index > 0) & (index < count), other=-1)
            inside = ((index < count) & (column != previous))[:, None] & (row < rows)[None, :]
            value = tl.load(thin + index[:, None] * t0 + row[None, :] * t1, mask=inside, other=0.0)
            value = value.to(tl.float32) * scale
            tl.store(result + row[None, :] * columns + column[:, None], value.to(result.dtype.element_ty), mask=inside)
