"""The kernels for GPUs, run by Triton's interpreter (``make test-triton``). Oracle: the definition in float64."""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest
import torch

from mixout.ops import kernels, reference

if kernels.triton is None or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by make test-triton", allow_module_level=True)
# No multiples of a tile; one row or column; several tiles each way.
SHAPES = [(37, 131), (1, 5), (5, 1), (70, 300)]
MASKS = {
    "columns": lambda rows, columns: torch.rand(columns) < 0.3,
    "rows": lambda rows, columns: torch.rand(rows, 1) < 0.3,
    "elements": lambda rows, columns: torch.rand(rows, columns) < 0.3,
    "gaussian": lambda rows, columns: torch.randn(1, columns),
    "nothing": lambda rows, columns: torch.zeros(columns, dtype=torch.bool),
}


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(kernels, "_current", lambda device: nullcontext())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("anchor", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_phi_is_the_definition_rounded_once(shape, mask, anchor, dtype):
    w, m = torch.randn(shape), MASKS[mask](*shape)
    u = None if anchor is None else torch.randn(shape).to(anchor)
    found = kernels.phi(w, u, m, 1 / 0.3, dtype)
    zero = torch.zeros(shape, dtype=torch.float64)
    exact = reference.mix(w.double(), zero if u is None else u.double(), m, 1 / 0.3)
    assert found.dtype == dtype
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-5}
    torch.testing.assert_close(found.double(), exact, **tolerance)


def test_a_weight_that_lies_transposed_keeps_its_layout():
    w, u = torch.randn(20, 33).t(), torch.randn(33, 20)
    m = torch.rand(20) < 0.5
    found = kernels.phi(w, u, m, 2.0, torch.float32)
    assert found.stride() == w.stride()
    torch.testing.assert_close(found, reference.mix(w, u, m, 2.0))


def test_the_ends_are_exact():
    w, u, m = torch.randn(9, 21), torch.randn(9, 21), torch.rand(21) < 0.5
    assert kernels.phi(w, u, m, 3.0, torch.float32)[:, ~m].equal(u[:, ~m])
    assert kernels.phi(w, u, torch.ones(21), 1.0, torch.float32).equal(w)
    assert kernels.phi(u, u, m, 3.0, torch.float32).equal(u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 13, 300])
@pytest.mark.parametrize("shape", [(37, 600), (1, 301)])
def test_columns_are_placed_and_the_rest_is_zero(shape, count, dtype):
    kept = torch.randperm(shape[1])[:count].sort().values
    thin = torch.randn(shape[0], count).t().to(torch.bfloat16)  # strided, as a product may leave it
    exact = torch.zeros(shape, dtype=torch.float64)
    exact[:, kept] = thin.double().t() * 2.5
    found = kernels.place(thin, kept, shape, dtype, 2.5)
    torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_of_a_column_that_is_there_several_times_the_first_counts():
    thin = torch.randn(5, 8)
    found = kernels.place(thin, torch.tensor([1, 4, 7, 7, 7]), (8, 9), torch.float32, 1.0)
    assert found[:, [1, 4, 7]].equal(thin[:3].t())
    assert int(found.count_nonzero()) == 24
