"""Two cases that are small enough for every test: an encoder in float32 and a decoder in bfloat16."""

from __future__ import annotations

import pytest

from mixout.bench.cases import Case

SHAPE = {"width": 16, "intermediate": 24, "heads": 4, "layers": 2, "vocabulary": 40}


@pytest.fixture
def bert() -> Case:
    return Case(
        name="tiny-bert", family="bert", key_heads=4, batch=4, length=6, precision="fp32", gpu=False, **SHAPE
    )  # fmt: skip


@pytest.fixture
def llama() -> Case:
    return Case(
        name="tiny-llama", family="llama", key_heads=2, batch=2, length=8, precision="bf16", gpu=True, **SHAPE
    )  # fmt: skip
