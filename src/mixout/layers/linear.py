"""nn.Linear, and through :func:`linear_pass` every layer that is a linear of another layout."""

from __future__ import annotations

from torch import Tensor, nn

from mixout.functional import mixed_linear
from mixout.layers.mixed import Mixed, mixes


def linear_pass(layer: Mixed, x: Tensor, weight: Tensor, anchor: Tensor | None, bias: Tensor | None) -> Tensor:
    """Y = x Phi^T + b with a new draw for ``layer``; ``weight`` and ``anchor`` are (out, in) views."""
    layer.count_pass()
    return mixed_linear(x, weight, anchor, bias, **layer.mix_options())


class MixedLinear(Mixed, nn.Linear):
    """A linear that reads Phi while training and its weight in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not mixes(self):
            return nn.Linear.forward(self, input)
        return linear_pass(self, input, self.weight, self._mixed.anchor.beside(self.weight), self.bias)
