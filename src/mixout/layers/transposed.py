"""A linear whose weight is stored as (in, out), as that of GPT-2 in transformers (Conv1D): a unit is a row."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mixout.layers.linear import mixed_pass
from mixout.layers.mixed import Mixed, mixes


class Transposed(Mixed):
    """A transposed linear that reads Phi while training and its weight in eval mode."""

    bias: Tensor

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401  the layer's own
        """(..., in) to (..., out)."""
        if not mixes(self):
            return super().forward(x)
        anchor = self._mixed.anchor.beside(self.weight)
        return mixed_pass(self, x, self.weight.t(), None if anchor is None else anchor.t(), self.bias)
