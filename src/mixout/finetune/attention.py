"""Attention on a CPU under bfloat16 autocast, computed in float32: torch's bfloat16 kernel is slower there.

Its backward pass above all. Arguments are widened and the result is narrowed again, so that all else stays as autocast
has it. ``python benchmarks/attention.py`` measures the two against each other.

It changes no model: what is replaced is the call of ``scaled_dot_product_attention``, while the context is open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class FloatAttention(TorchFunctionMode):
    """While open, bfloat16 attention on a CPU is computed in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401  the signature is torch's
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call ``func``, attention with widened arguments."""
        options = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **options)
        query = args[0] if args else options["query"]
        if query.device.type != "cpu" or query.dtype != torch.bfloat16:
            return func(*args, **options)
        with torch.autocast("cpu", enabled=False):
            wide = {name: _widened(value) for name, value in options.items()}
            return func(*map(_widened, args), **wide).to(query.dtype)


def _widened(value: Any) -> Any:  # noqa: ANN401
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
