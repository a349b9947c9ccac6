r"""Many restarts of one training at once, each with an order of the data and masks of its own.

Adam and SGD act on each number alone, so R stacked restarts are exactly R single ones. The loss is summed over
restarts, whose gradients do not meet. A restart's data order, masks and dropout follow from its own seed, so that they
are the same for every method and for any number of restarts beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixout.masks import draw
from mixout.ops.mix import mix
from mixout.streams import Stream
from mixout.verify.digits import Images
from mixout.verify.network import Network, Read, losses, scores

Treatment = Literal["dropout", "mixout", "gradient mask", "dense gradient", "smaller rate"]
Optimizer = Literal["adam", "sgd"]

_WARMUP = 0.1


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train.

    Args:
        treatment: what acts on the layers. ``dropout``: of each layer's input, per example. ``mixout``. Its halves:
            ``gradient mask``, plain forward and mixout's gradient; ``dense gradient``, mixout's forward and plain
            gradient. ``smaller rate``: nothing but a rate times sqrt(1-p).
        p: its probability; 0 is plain training for each.
        optimizer: Adam with bias correction, betas .9 and .999; or SGD without momentum.
        rate: the highest learning rate, after a warm-up of a tenth of the steps and before a linear decay to 0.
        decay: weight decay towards 0, decoupled.
        epochs: over the data.
        batch: examples in a step.
    """

    treatment: Treatment
    p: float
    optimizer: Optimizer
    rate: float
    epochs: int
    batch: int = 32
    decay: float = 0.0


def train(start: Network, images: Images, training: Training, seeds: Sequence[int]) -> Network:
    """Train one restart for each seed from the same single network, which is also the anchor.

    Args:
        start: a single network (R = 1).
        images: to train on; a last batch that is not full is left out of each epoch.
        training: how.
        seeds: of the restarts.

    Returns:
        The trained networks, stacked.

    Raises:
        ValueError: if there are fewer images than one batch.
    """
    for network in course(start, images, training, seeds):  # noqa: B007  the last one is what counts
        pass
    return network


def course(start: Network, images: Images, training: Training, seeds: Sequence[int]) -> Iterator[Network]:
    """:func:`train`, stopping after each step to be looked at: always the same networks, further trained."""
    if len(images.labels) < training.batch:
        raise ValueError(f"expected at least {training.batch} images to train on, one batch, got {len(images.labels)}")
    network, anchor = start.copies(len(seeds)), start.copies(len(seeds))
    optimizer = _optimizer(network, training)
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    read = _reading(training, anchor, seeds)
    per_epoch = len(images.labels) // training.batch
    total = per_epoch * training.epochs
    for step in range(total):
        at = step % per_epoch
        if at == 0:
            order = torch.stack([torch.randperm(len(images.labels), generator=one) for one in orders])
        rows = order[:, at * training.batch : (at + 1) * training.batch]
        for group in optimizer.param_groups:
            group["lr"] = _rate(training, step, total)
        optimizer.zero_grad()
        found = scores(network, images.pixels[rows], read)
        losses(found, images.labels[rows]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield network


def _optimizer(network: Network, training: Training) -> torch.optim.Optimizer:
    if training.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=training.rate, weight_decay=training.decay)
    return torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=training.decay, fused=True)


def _rate(training: Training, step: int, total: int) -> float:
    warmup = max(1, round(_WARMUP * total))
    share = min((step + 1) / warmup, (total - step) / max(1, total - warmup))
    factor = (1 - training.p) ** 0.5 if training.treatment == "smaller rate" else 1.0
    return training.rate * factor * share


def _reading(training: Training, anchor: Network, seeds: Sequence[int]) -> Read:
    """What a layer reads in a training pass."""
    p, treatment = training.p, training.treatment
    scale = 1 / (1 - p)
    noises = [torch.Generator().manual_seed(10_000 + seed) for seed in seeds]
    streams = [[Stream(seed, str(layer)) for seed in seeds] for layer in range(len(anchor.weights))]

    def masks(layer: int, inputs: int) -> Tensor:
        return torch.stack([draw((1, inputs), p, stream=stream) for stream in streams[layer]])

    def read(layer: int, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        if p == 0 or treatment == "smaller rate":
            return x, weight
        if treatment == "dropout":
            tossed = torch.stack([torch.rand(x.shape[1:], generator=noise) for noise in noises])
            return x * (tossed >= p) * scale, weight
        # A mask's anchor does not matter to its gradient: with w for an anchor the forward is plain.
        u = weight.detach() if treatment == "gradient mask" else anchor.weights[layer].detach()
        gradient: Literal["dense", "exact"] = "dense" if treatment == "dense gradient" else "exact"
        return x, mix(weight, u, masks(layer, x.shape[-1]), scale, gradient=gradient)

    return read
