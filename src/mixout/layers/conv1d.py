"""transformers' Conv1D (GPT-2): a linear whose weight is stored as (in, out), so a unit is a row.

Imports transformers; loaded only when a model holds such a layer.
"""

from __future__ import annotations

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from mixout.layers.linear import mixed_pass
from mixout.layers.mixed import Mixed, mixes


class MixedConv1D(Mixed, Conv1D):  # type: ignore[misc]
    """A transposed linear that reads Phi while training and its weight in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not mixes(self):
            plain: Tensor = Conv1D.forward(self, x)  # type: ignore[no-untyped-call]
            return plain
        anchor = self._mixed.anchor.beside(self.weight)
        return mixed_pass(self, x, self.weight.t(), None if anchor is None else anchor.t(), self.bias)
