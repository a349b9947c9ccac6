"""nn.Conv1d, nn.Conv2d, nn.Conv3d: the unit is an input channel, also of a grouped convolution."""

from __future__ import annotations

from torch import Tensor, nn

from mixout.functional import mix
from mixout.layers.mixed import Mixed, mixes


def _weight(layer: Mixed, groups: int) -> Tensor:
    if not mixes(layer):
        return layer.weight
    layer.count_pass()
    anchor = layer._mixed.anchor.beside(layer.weight)
    return mix(layer.weight, anchor, input_dim=1, groups=groups, **layer.mix_options())


class MixedConv1d(Mixed, nn.Conv1d):
    """A convolution that reads Phi while training and its weight in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`torch.nn.Conv1d`."""
        result: Tensor = self._conv_forward(input, _weight(self, self.groups), self.bias)
        return result


class MixedConv2d(Mixed, nn.Conv2d):
    """A convolution that reads Phi while training and its weight in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`torch.nn.Conv2d`."""
        result: Tensor = self._conv_forward(input, _weight(self, self.groups), self.bias)
        return result


class MixedConv3d(Mixed, nn.Conv3d):
    """A convolution that reads Phi while training and its weight in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`torch.nn.Conv3d`."""
        result: Tensor = self._conv_forward(input, _weight(self, self.groups), self.bias)
        return result
