"""nn.Linear under tensor parallelism: each rank mixes its part of the weight and computes with it.

The mask belongs to the whole weight. Where that is split over output neurons (``ColwiseParallel``) all ranks use the
same mask of input neurons; where it is split over input neurons (``RowwiseParallel``) each uses its slice of it. The
anchor is split like the weight. Nothing is sent for mixing. The weight's gradient is computed in whole and masked.
Imported only when a model holds such weights.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mixout.layers.mixed import Mixed, mixes
from mixout.ops.mix import mix
from mixout.parts import own_part
from mixout.passes import new_draw


class TensorParallelLinear(Mixed, nn.Linear):
    """A linear that reads Phi, in parts, while training and its weight in eval mode."""

    weight: DTensor

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not mixes(self):
            return nn.Linear.forward(self, input)
        self.count_pass()
        weight, options = self.weight, self.mix_options()
        draw = new_draw(tuple(weight.shape), weight.device, options)
        if draw is None:
            return nn.Linear.forward(self, input)
        anchor = self._mixed.anchor.beside(weight)
        local = None if anchor is None else anchor.to_local()  # type: ignore[attr-defined]
        mask = own_part(draw.mask, weight)
        part = mix(weight.to_local(), local, mask, draw.scale, gradient=options.gradient)
        phi = DTensor.from_local(
            part, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
        )
        return nn.functional.linear(input, phi, self.bias)


def obstacle(weight: DTensor) -> str | None:
    """Why a tensor-parallel weight cannot be mixed, or None."""
    if any(placement.is_partial() for placement in weight.placements):
        return f"its weight is kept in parts that are added up ({weight.placements}); gather it, or shard it with FSDP2"
    return None


def mixed_class(module: nn.Module) -> type[TensorParallelLinear]:  # noqa: ARG001  asked as of FSDP2's
    """The mixed class of a tensor-parallel linear."""
    return TensorParallelLinear
