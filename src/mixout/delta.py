r"""A fine-tuned model w, its anchor u, and weights between and around them.

- :meth:`Delta.drop_`: ``u + (M / (1-p)) (w - u)``, one draw. With a random number for each element this is DARE (Yu et
  al. 2023, arXiv 2311.03099), and one training pass of mixconnect; with one for each input neuron, one of mixout.
- :meth:`Delta.interpolate_`: ``u + t (w - u)``, WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903).

Parameters that the anchor lacks, usually the output head, keep their fine-tuned values throughout. It scores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mixout.errors import InputError
from mixout.functional import mix
from mixout.layers import Layout, entry_of
from mixout.layers.lending import phi_of
from mixout.passes import MixOptions
from mixout.streams import Stream

Unit = Literal["element", "input"]


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A model whose weights are set anew, in place, from two that stay as they are.

    Args:
        model: holds the result.
        weights: w by parameter name; those that ``anchors`` lacks are never changed.
        anchors: u by parameter name, of the same shapes.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    anchors: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, anchors: Mapping[str, Tensor]) -> Delta:
        """The delta of ``model``, whose weights are copied, from ``anchors``.

        Args:
            model: the fine-tuned model.
            anchors: u by name, such as the base model's state dict; what is no parameter (buffers) is left alone, and a
                tied parameter counts once.

        Raises:
            InputError: if ``anchors`` holds no parameter of ``model``.

        Example:
            >>> model = nn.Linear(2, 1)
            >>> delta = Delta.of(model, {"weight": torch.zeros(1, 2)})
            >>> delta.interpolate_(0.0)
            >>> model.weight.tolist()
            [[0.0, 0.0]]
        """
        names: dict[nn.Parameter, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in anchors:
                names.setdefault(parameter, name)
        if not names:
            raise InputError(
                f"the anchors hold no parameter of this model: it has {next(iter(model.named_parameters()))[0]!r} and "
                f"others, they have {next(iter(anchors), None)!r} and others; pass the base model's state dict"
            )
        return cls(
            model=model,
            weights={name: weight.detach().clone() for weight, name in names.items()},
            anchors={name: anchors[name].detach().to(weight.device) for weight, name in names.items()},
        )

    @torch.no_grad()
    def drop_(self, rate: float, *, unit: Unit, seed: int) -> None:
        """Drop a share ``rate`` of w - u and divide the rest by 1 - ``rate``.

        Args:
            rate: p in [0, 1]; 0 is w, 1 is u.
            unit: ``element``, every number of every parameter is kept or dropped by itself; ``input``, an input neuron
                is, as in mixout, and parameters of one dimension (biases, norms) stay at w.
            seed: of the draw; the parameters' names enter too.
        """
        if unit not in ("element", "input"):
            raise ValueError(f"expected unit 'element' or 'input', got {unit!r}")
        for name, weight in self.weights.items():
            stream = Stream(seed, name)
            if unit == "element":
                # As one row, whatever the number of dimensions.
                rows = weight.reshape(1, -1), self.anchors[name].reshape(1, -1)
                self._set_(name, mix(*rows, rate, unit="element", stream=stream))
            elif weight.dim() >= 2:
                options = MixOptions(rate, unit, stream=stream)
                self._set_(name, phi_of(weight, self.anchors[name], self._layout(name), options))
            else:
                self._set_(name, weight)

    @torch.no_grad()
    def interpolate_(self, t: float) -> None:
        """Go from u (t = 0) to w (t = 1)."""
        for name, weight in self.weights.items():
            self._set_(name, torch.lerp(self.anchors[name], weight, t))

    def _set_(self, name: str, value: Tensor) -> None:
        parameter = self.model.get_parameter(name)
        parameter.copy_(value.reshape(parameter.shape))

    def _layout(self, name: str) -> Layout:
        """How the layer that holds the weight stores it."""
        place, _, field = name.rpartition(".")
        layer = self.model.get_submodule(place)
        entry = entry_of(layer)
        return Layout() if entry is None else entry.weights(layer).get(field, Layout())
