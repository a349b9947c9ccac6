"""nn.Linear, and through :func:`mixed_pass` every layer that is a linear of another layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixout.anchor import Anchor
from mixout.functional import linear_pass, native_up_to
from mixout.layers.mixed import Mixed, Share, mixes
from mixout.masks import constants

_HOST = torch.device("cpu")


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


@dataclass(frozen=True, slots=True, eq=False)
class Short:
    """What a pass of a small layer needs after one whose checks were made, and what must not have changed since."""

    weight: Tensor
    anchor: Tensor
    version: int
    size: tuple[int, ...]
    most: float  # numbers of an input
    bound: Tensor
    scale: Tensor

    @classmethod
    def of(cls, share: Share, weight: Tensor) -> Short | None:
        """For a layer on a CPU that is computed in torch's own operations; None for any other."""
        mixing, anchor = share.mixing, share.anchor.tensor
        p = float(mixing.p)
        seeded = isinstance(share.stream.seed, int) or not dist.is_available()
        if (
            seeded
            or type(share.anchor) is not Anchor
            or anchor is None
            or type(weight) is not nn.Parameter
            or not weight.is_cpu
        ):
            return None
        if (anchor.dtype, anchor.device) != (weight.dtype, weight.device) or mixing.noise != "bernoulli" or p == 0:
            return None
        most = native_up_to(weight, p, mixing.unit, mixing.gradient, mixing.noise, mixing.form)
        size = (weight.shape[1],) if mixing.unit == "input" else (weight.shape[0], 1)
        return cls(weight, anchor, mixing.version, size, most, *constants(p, weight.dtype))


class MixedLinear(Mixed, nn.Linear):
    """A linear that reads Phi while training and its weight in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        share: Share | None = self.__dict__.get("_mixed")
        if share is not None and share.short is not None and self.training and not torch.compiler.is_compiling():
            # Written out in one place: on small layers a GPU or a CPU waits for Python.
            short, parameters = share.short, self._parameters
            weight, anchor = short.weight, short.anchor
            same = parameters.get("weight") is weight and share.anchor.tensor is anchor and weight.requires_grad
            unseeded = share.stream.seed.value is None and not dist.is_initialized()
            fits = input.layout is torch.strided and input.numel() < short.most
            if same and unseeded and fits and share.mixing.version == short.version:
                share.passes += 1
                coefficient = torch.rand(short.size, dtype=torch.float32, device=_HOST).ge(short.bound).mul(short.scale)
                return nn.functional.linear(input, torch.lerp(anchor, weight, coefficient), parameters["bias"])
        if not mixes(self):
            return nn.Linear.forward(self, input)
        held = self._parameters.get("weight")
        if held is None:  # a replica of DataParallel, which holds plain attributes
            return mixed_pass(self, input, self.weight, self._mixed.anchor.beside(self.weight), self.bias)
        self._mixed.short = None if torch.compiler.is_compiling() else Short.of(self._mixed, held)
        return mixed_pass(self, input, held, self._mixed.anchor.beside(held), self._parameters["bias"])
