"""nn.Linear, and through :func:`mixed_pass` every layer that is a linear of another layout."""

from __future__ import annotations

from torch import Tensor, nn

from mixout.functional import linear_pass
from mixout.layers.mixed import Mixed, mixes


def mixed_pass(layer: Mixed, x: Tensor, weight: Tensor, anchor: Tensor | None, bias: Tensor | None) -> Tensor:
    """Y = x Phi^T + b with a new draw for ``layer``; ``weight`` and ``anchor`` are (out, in) views."""
    layer.count_pass()
    share = layer._mixed
    mixing = share.mixing
    return linear_pass(
        x,
        weight,
        anchor,
        bias,
        mixing.probability(),
        mixing.unit,
        mixing.gradient,
        mixing.noise,
        share.stream,
        mixing.form,
    )


class MixedLinear(Mixed, nn.Linear):
    """A linear that reads Phi while training and its weight in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not mixes(self):
            return nn.Linear.forward(self, input)
        weight = self._parameters.get("weight")  # cheaper than self.weight
        if weight is None:  # a replica of DataParallel, which holds plain attributes
            return mixed_pass(self, input, self.weight, self._mixed.anchor.beside(self.weight), self.bias)
        return mixed_pass(self, input, weight, self._mixed.anchor.beside(weight), self._parameters["bias"])
