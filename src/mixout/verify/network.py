r"""Section 4's network, stacked: R copies with weights of their own, computed by batched products.

``x -> Linear -> ReLU -> LayerNorm -> Linear -> ReLU -> LayerNorm -> Linear``, weights from N(0, .02^2), biases 0. A
weight has shape (R, out, in). The same function serves R restarts of a training, and R masks of one network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# What becomes of a layer's input and weight in a training pass: (layer, x, weight) -> (x, weight).
Read = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """The parameters of R networks.

    Args:
        weights: (R, out, in) for each layer; these are mixed.
        biases: (R, 1, out) for each layer.
        gains: LayerNorm's, (R, 1, width) for each hidden layer.
        shifts: LayerNorm's, like ``gains``.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    gains: list[Tensor]
    shifts: list[Tensor]

    def parameters(self) -> list[Tensor]:
        """All of them, weights first."""
        return [*self.weights, *self.biases, *self.gains, *self.shifts]

    def copies(self, number: int) -> Network:
        """That many copies of a single network, as parameters to train."""
        return self._each(lambda value: value.detach().repeat(number, 1, 1).requires_grad_())

    def with_weights(self, weights: Sequence[Tensor]) -> Network:
        """A single network's other parameters, laid beside (n, out, in) weights; nothing is copied."""
        number = len(weights[0])
        rest = self._each(lambda value: value.detach().expand(number, -1, -1))
        return Network(weights=list(weights), biases=rest.biases, gains=rest.gains, shifts=rest.shifts)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Network:
        return Network(
            weights=[change(value) for value in self.weights],
            biases=[change(value) for value in self.biases],
            gains=[change(value) for value in self.gains],
            shifts=[change(value) for value in self.shifts],
        )


def initial(sizes: Sequence[int], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Network:
    """One network with new weights, stacked as R = 1.

    Args:
        sizes: inputs, hidden widths, classes.
        seed: of the weights.
        dtype: of all parameters.

    Example:
        >>> [tuple(weight.shape) for weight in initial((784, 300, 100, 10)).weights]
        [(1, 300, 784), (1, 100, 300), (1, 10, 100)]
    """
    draw = torch.Generator().manual_seed(seed)
    hidden = sizes[1:-1]
    return Network(
        weights=[
            0.02 * torch.randn(1, out, inputs, generator=draw, dtype=dtype) for inputs, out in itertools.pairwise(sizes)
        ],
        biases=[torch.zeros(1, 1, out, dtype=dtype) for out in sizes[1:]],
        gains=[torch.ones(1, 1, width, dtype=dtype) for width in hidden],
        shifts=[torch.zeros(1, 1, width, dtype=dtype) for width in hidden],
    )


def _as_it_is(_: int, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x, weight


def scores(network: Network, x: Tensor, read: Read = _as_it_is) -> Tensor:
    """The classes' scores, (R, batch, classes), of ``x`` (R, batch, inputs)."""
    last = len(network.weights) - 1
    for layer in range(last + 1):
        x, weight = read(layer, x, network.weights[layer])
        x = torch.baddbmm(network.biases[layer], x, weight.transpose(1, 2))
        if layer < last:
            x = F.layer_norm(x.relu(), x.shape[-1:]) * network.gains[layer] + network.shifts[layer]
    return x


def losses(found: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each network, (R,), from scores (R, batch, classes) and labels (R, batch)."""
    return F.cross_entropy(found.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)


@torch.no_grad()
def accuracies(network: Network, pixels: Tensor, labels: Tensor, *, batch: int = 1000) -> Tensor:
    """Share of right answers of each network, (R,), in eval mode."""
    number = len(network.weights[0])
    right = torch.zeros(number)
    for start in range(0, len(labels), batch):
        x = pixels[start : start + batch].expand(number, -1, -1)
        right += (scores(network, x).argmax(2) == labels[start : start + batch]).sum(1)
    return right / len(labels)


def squared_distances(network: Network, anchor: Network) -> Tensor:
    """||w - u||^2 over all parameters of each network, (R,)."""
    parts = zip(network.parameters(), anchor.parameters(), strict=True)
    return torch.stack([(value.detach() - u.detach()).square().sum((1, 2)) for value, u in parts]).sum(0)


def drift(network: Network, anchor: Network) -> float:
    """||E w - u||^2 without the noise of single restarts: the mean of (w_r - u) . (w_s - u) over pairs r != s.

    With one restart there are no pairs, and it is nan.
    """
    number = len(network.weights[0])
    if number == 1:
        return float("nan")
    parts = zip(network.parameters(), anchor.parameters(), strict=True)
    together = sum(float((value.detach() - u.detach()).sum(0).square().sum()) for value, u in parts)
    return (together - float(squared_distances(network, anchor).sum())) / (number * (number - 1))
