r"""The pull along a training run: measured ``E L(Phi) - L(w)`` against what curvature predicts.

To second order ``E L(Phi) - L(w) = p/(2(1-p)) S``, ``S = sum over units of d'Hd``, with H the loss's Hessian at the
current w and d the unit's part of w - u. So the strength follows the curvature of the moment. A pull that does not
adapt, with the mean curvature S / ||w - u||^2 of the last measured step, is listed beside it (``fixed``).

A network of section 4's shape is pretrained as there, with dropout(0.1), on a third of the digits, transposed, and
fine-tuned plainly on another third, so that every p is measured at the same weights.

- The measured side averages over sampled masks. Its first-order part, grad L(w) . (Phi - w), has mean 0 and is
  subtracted, which leaves the mean and takes most of the noise.
- S needs no loop over units: with one random sign s per unit, v = sum_u s_u d_u, E v'Hv = S. Products with H come
  from differentiating twice, so the kinks of ReLU, which autograd does not see, are not in H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from mixout.errors import InputError
from mixout.ops.mix import mix
from theory.claims import Claim

TOPIC = "Adaptivity: measured pull / second-order prediction along a training run (tolerance: 0.25 and 4 se)"
PS = (0.1, 0.3, 0.5, 0.7, 0.9)
Weights = dict[str, Tensor]
Loss = Callable[[Weights], Tensor]  # of weights by name, in place of the model's


@dataclass(frozen=True, kw_only=True)
class Point:
    """One moment of the run and one p: the pull that was measured and predicted, with standard errors."""

    step: int
    p: float
    loss: float
    squared_distance: float
    measured: float
    measured_error: float
    predicted: float
    predicted_error: float
    fixed: float


@dataclass(frozen=True, kw_only=True)
class Images:
    """Flattened images (n, pixels), float32 in [0, 1], and classes (n,)."""

    pixels: Tensor
    labels: Tensor

    def part(self, start: int, stop: int | None) -> Images:
        """The images from ``start`` to before ``stop``."""
        return Images(pixels=self.pixels[start:stop], labels=self.labels[start:stop])

    def transposed(self) -> Images:
        """Rows and columns exchanged: another task of the same kind."""
        side = round(self.pixels.shape[1] ** 0.5)
        return Images(pixels=self.pixels.view(-1, side, side).mT.flatten(1), labels=self.labels)


def digits(mnist: Path | None = None) -> Images:
    """Images of a .npz file with x_train (n, side, side), uint8, and y_train; without one scikit-learn's 1,797.

    Raises:
        InputError: if the file is missing or holds something else.
    """
    if mnist is None:
        x, y = load_digits(return_X_y=True)
        x = x.reshape(-1, 8, 8) / 16
    else:
        try:
            with np.load(mnist) as held:
                x, y = held["x_train"] / 255, held["y_train"]
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"expected a .npz file with x_train and y_train at {mnist}, got none: {error}") from error
        if x.ndim != 3 or x.shape[1] != x.shape[2]:
            raise InputError(f"expected x_train of shape (n, side, side) in {mnist}, got {x.shape}")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))  # files may be sorted by class
    pixels, labels = torch.from_numpy(x).flatten(1).float(), torch.from_numpy(y).long()
    return Images(pixels=pixels[order], labels=labels[order])


def network(inputs: int, hidden: tuple[int, int]) -> nn.Sequential:
    """Linear, ReLU, LayerNorm, twice, then Linear; weights from N(0, 0.02^2); dropout before linears in training."""
    first, second = hidden
    model = nn.Sequential(
        nn.Dropout(0.1), nn.Linear(inputs, first), nn.ReLU(), nn.LayerNorm(first),
        nn.Dropout(0.1), nn.Linear(first, second), nn.ReLU(), nn.LayerNorm(second),
        nn.Dropout(0.1), nn.Linear(second, 10),
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02, generator=draw)
            nn.init.zeros_(module.bias)
    return model


def course(model: nn.Sequential, images: Images, *, rate: float, epochs: int, decay: float = 0.0) -> Iterator[int]:
    """Train with Adam in batches of 32, a warm-up of a tenth and a linear decay; yields the steps that are done."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=decay)
    draw, per_epoch = torch.Generator().manual_seed(0), len(images.labels) // 32
    total = per_epoch * epochs
    warmup = max(1, round(0.1 * total))
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.randperm(len(images.labels), generator=draw)
        rows = order[step % per_epoch * 32 :][:32]
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warmup, (total - step) / max(1, total - warmup))
        optimizer.zero_grad()
        F.cross_entropy(model(images.pixels[rows]), images.labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield step + 1


def points(
    images: Images, *, hidden: tuple[int, int], rate: float, epochs: int, checkpoints: tuple[int, ...], number: int,
    report: Callable[[str], None],
) -> list[Point]:  # fmt: skip
    """Pretrain at four times ``rate``, fine-tune, and measure at the checkpoints with ``number`` masks and signs."""
    third = len(images.labels) // 3
    source, target = images.part(0, third).transposed(), images.part(third, 2 * third)
    model, held, found = network(images.pixels.shape[1], hidden), target.part(0, 200), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of dropout
        for _ in course(model.train(), source, rate=4 * rate, epochs=epochs, decay=0.01):
            pass
    model.eval()
    loss_of = partial(_loss, model, held)
    start = {name: w.detach().clone() for name, w in _mixed(model).items()}
    for step in course(model, target, rate=rate, epochs=epochs):
        if step not in checkpoints:
            continue
        deltas = {name: w.detach() - start[name] for name, w in _mixed(model).items()}
        curvature, curvature_error = spread(block_curvature(loss_of, _mixed(model), deltas, number))
        report(f"  adaptivity, step {step}: sum over units of d'Hd {curvature:.4g} +- {curvature_error:.2g}")
        for p in PS:
            loss, pulls = sampled_pulls(loss_of, _mixed(model), start, p, number)
            measured, measured_error = spread(pulls)
            odds = p / (2 * (1 - p))
            found.append(Point(
                step=step, p=p, loss=loss, squared_distance=float(sum(d.square().sum() for d in deltas.values())),
                measured=measured, measured_error=measured_error, predicted=odds * curvature,
                predicted_error=odds * curvature_error, fixed=float("nan"),
            ))  # fmt: skip
    last = found[-1]
    m = last.predicted / last.squared_distance / (last.p / (1 - last.p))
    return [replace(point, fixed=point.p / (1 - point.p) * m * point.squared_distance) for point in found]


def _mixed(model: nn.Sequential) -> Weights:
    return {f"{name}.weight": module.weight for name, module in model.named_children() if isinstance(module, nn.Linear)}


def _loss(model: nn.Sequential, images: Images, weights: Weights) -> Tensor:
    return F.cross_entropy(functional_call(model, weights, images.pixels), images.labels)


def sampled_pulls(
    loss_of: Loss, weights: Weights, start: Weights, p: float, masks: int, *, at_once: int = 25
) -> tuple[float, Tensor]:
    """L(w), and L(Phi) - L(w) - grad L(w) . (Phi - w) for sampled masks, (masks,); so many at once fit in memory."""
    loss = loss_of(weights)
    slopes = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    draw, pulls = torch.Generator().manual_seed(round(1000 * p)), []
    for size in [at_once] * (masks // at_once) + [masks % at_once] * (masks % at_once > 0):
        with torch.no_grad():
            phis = {}
            for name, w in weights.items():
                mask = (torch.rand(size, 1, w.shape[1], generator=draw) >= p).to(w.dtype)
                phis[name] = mix(w, start[name], mask, 1 / (1 - p))
            first = sum(((phis[name] - w) * slopes[name]).double().sum((1, 2)) for name, w in weights.items())
            pulls.append(vmap(loss_of)(phis).double() - loss.double() - first)
    return float(loss.detach()), torch.cat(pulls)


def block_curvature(loss_of: Loss, weights: Weights, deltas: Weights, signs: int) -> Tensor:
    """One v'Hv for each of random signs, (signs,); the mean estimates the sum over input units of d'Hd."""
    slopes = torch.autograd.grad(loss_of(weights), [*weights.values()], create_graph=True)
    draw, found = torch.Generator().manual_seed(0), torch.zeros(signs, dtype=torch.float64)
    for number in range(signs):
        v = [d * (2 * torch.randint(2, (1, d.shape[1]), generator=draw) - 1) for d in deltas.values()]
        along = torch.stack([(slope * part).sum() for slope, part in zip(slopes, v, strict=True)]).sum()
        for product, part in zip(torch.autograd.grad(along, [*weights.values()], retain_graph=True), v, strict=True):
            found[number] += (product * part).double().sum()
    return found


def spread(values: Tensor) -> tuple[float, float]:
    """Mean and standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def claims(found: list[Point]) -> Iterator[Claim]:
    """The prediction is right at the smallest p, wherever the theory's premise holds, and at the end of the run.

    The premise is positive curvature: steps at which S is not above 0 by four standard errors are left out, since the
    loss is not convex along w - u there. The tolerance is a quarter, for kinks and higher orders, and four standard
    errors of the ratio.
    """
    smallest = [point for point in found if point.p == min(PS)]
    for point in smallest:
        if point.predicted <= 4 * point.predicted_error and point is not smallest[-1]:
            continue
        ratio = point.measured / point.predicted
        relative = (point.measured_error / point.measured) ** 2 + (point.predicted_error / point.predicted) ** 2
        yield Claim(
            topic=TOPIC, statement=f"after {point.step} steps", p=point.p, expected=1.0, found=ratio,
            tolerance=0.25 + 4 * abs(ratio) * relative**0.5,
        )  # fmt: skip
