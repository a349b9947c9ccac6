"""Attention under bfloat16 autocast on a CPU, computed in float32: torch's bfloat16 kernel is slower there.

Its backward pass above all. Arguments are widened and the result is narrowed again, so that all else stays as autocast
has it. ``python benchmarks/bfloat16.py attention`` measures the two against each other.

It reaches models that call ``torch.nn.functional.scaled_dot_product_attention``, most of transformers' by default, and
changes none: while the context is open that name means another function, also where a block is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def float_attention() -> Iterator[None]:
    """While open, attention under a CPU's autocast is computed in float32, in this process."""
    functional: Any = torch.nn.functional
    own: Callable[..., Tensor] = functional.scaled_dot_product_attention

    def attention(query: Tensor, *rest: Any, **options: Any) -> Tensor:  # noqa: ANN401  torch's signature
        if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return own(query, *rest, **options)
        wide = {name: _widened(value) for name, value in options.items()}
        with torch.autocast("cpu", enabled=False):
            found = own(_widened(query), *map(_widened, rest), **wide)
        return found.to(torch.get_autocast_dtype("cpu"))

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


def _widened(value: Any) -> Any:  # noqa: ANN401
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
