r"""The pull along a training run: measured ``E L(Phi) - L(w)`` against what curvature predicts.

To second order ``E L(Phi) - L(w) = p/(2(1-p)) S``, ``S = sum over units of d^T H d``, with H the loss's Hessian at the
current w and d the unit's part of w - u. It is what makes mixout adaptive: the strength follows the curvature of the
moment. A pull that does not adapt, ``p/(2(1-p)) m ||w - u||^2`` with m fixed, is drawn beside it; a network has no
constant of strong convexity, so m is the mean curvature S / ||w - u||^2 at the last measured step.

- The measured side averages over sampled masks. Its first-order part, grad L(w) . (Phi - w), has mean 0 and is
  subtracted, which leaves the mean and takes most of the noise.
- S needs no loop over units: with one random sign s per unit, v = sum_u s_u d_u, E v^T H v = S. Products with H come
  from differentiating twice, so the kinks of ReLU, which autograd does not see, are not in H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixout.masks import draw
from mixout.ops.mix import mix
from mixout.streams import Stream
from mixout.verify.claim import Claim
from mixout.verify.digits import Domains, Images
from mixout.verify.network import Network, losses, scores
from mixout.verify.restarts import Training, course

TOPIC = "Adaptivity: measured pull / second-order prediction along a training run (tolerance: 0.25 and 4 se)"
PS = (0.1, 0.3, 0.5, 0.7, 0.9)
# The claim is made for the smallest p alone: the expansion is one in small perturbations.
_WITHIN = 0.25


@dataclass(frozen=True, kw_only=True)
class Point:
    """One moment of the run and one p.

    Args:
        step: optimizer steps done.
        p: probability that a unit is replaced by the anchor.
        loss: L(w) on the images of the measurement.
        squared_distance: ||w - u||^2 of the mixed weights.
        measured: E L(Phi) - L(w), mean over masks.
        measured_error: its standard error.
        predicted: p/(2(1-p)) S.
        predicted_error: its standard error, from the random signs.
        fixed: p/(2(1-p)) m ||w - u||^2 with the last step's m.
    """

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
class Plan:
    """How much to measure.

    Args:
        rate: the highest of Adam, with warm-up and decay.
        epochs: over the target's images.
        train_size: images of the target to train on; None for all.
        checkpoints: optimizer steps after which to measure.
        images: to measure on, the first of the training images.
        masks: to average over, for each p.
        signs: to average over for S.
    """

    rate: float
    epochs: int
    train_size: int | None
    checkpoints: tuple[int, ...]
    images: int
    masks: int
    signs: int


def points(data: Domains, start: Network, plan: Plan, report: Callable[[str], None], *, seed: int = 0) -> list[Point]:
    """Fine-tune ``start`` on the target, plainly, so that every p is measured at the same weights.

    Args:
        data: its target is used.
        start: a single network, which is the anchor.
        plan: how much.
        report: is told each finished checkpoint.
        seed: of data order, masks and signs.
    """
    images = data.target.part(0, plan.train_size)
    held = images.part(0, plan.images)
    training = Training(treatment="mixout", p=0.0, optimizer="adam", rate=plan.rate, epochs=plan.epochs)
    found = []
    for step, network in enumerate(course(start, images, training, [seed]), start=1):
        if step not in plan.checkpoints:
            continue
        deltas = [w.detach() - u.detach() for w, u in zip(network.weights, start.weights, strict=True)]
        distance = float(sum(delta.square().sum() for delta in deltas))
        curvature, curvature_error = _spread(block_curvature(network, deltas, held, plan.signs, seed=seed))
        for p in PS:
            loss, pulls = sampled_pulls(network, start, held, p, plan.masks, seed=seed)
            measured, measured_error = _spread(pulls)
            factor = p / (2 * (1 - p))
            found.append(Point(
                step=step, p=p, loss=loss, squared_distance=distance, measured=measured,
                measured_error=measured_error, predicted=factor * curvature,
                predicted_error=factor * curvature_error, fixed=float("nan"),
            ))  # fmt: skip
        report(f"  adaptivity, step {step}: sum over units of d'Hd {curvature:.4g} +- {curvature_error:.2g}")
    return _with_fixed(found)


def _with_fixed(found: list[Point]) -> list[Point]:
    """Fill in the pull that does not adapt: only at the end of the run is it known with which m to compare."""
    last = found[-1]
    m = last.predicted / last.squared_distance / (last.p / (1 - last.p))
    return [replace(point, fixed=point.p / (1 - point.p) * m * point.squared_distance) for point in found]


def _loss(network: Network, images: Images) -> Tensor:
    """Of each network, (R,)."""
    number = len(network.weights[0])
    found = scores(network, images.pixels.expand(number, -1, -1))
    return losses(found, images.labels.expand(number, -1))


def sampled_pulls(
    network: Network, start: Network, images: Images, p: float, masks: int, *, seed: int = 0, batch: int = 25
) -> tuple[float, Tensor]:
    """L(w), and L(Phi) - L(w) - grad L(w) . (Phi - w) for sampled masks, (masks,)."""
    weights = [weight.detach().requires_grad_() for weight in network.weights]
    loss = _loss(network.with_weights(weights), images).sum()
    slopes = torch.autograd.grad(loss, weights)
    streams = [Stream(seed, f"pull/{layer}/{p}") for layer in range(len(weights))]
    pulls = []
    with torch.no_grad():
        for begin in range(0, masks, batch):
            number = min(batch, masks - begin)
            phis = [
                mix(w.detach(), u.detach(), draw((number, 1, w.shape[2]), p, stream=stream), 1 / (1 - p))
                for w, u, stream in zip(weights, start.weights, streams, strict=True)
            ]
            first = sum(
                ((phi - w) * slope).sum((1, 2), dtype=torch.float64)
                for phi, w, slope in zip(phis, weights, slopes, strict=True)
            )
            pulls.append(_loss(network.with_weights(phis), images).double() - loss.double() - first)
    return float(loss.detach()), torch.cat(pulls)


def block_curvature(network: Network, deltas: list[Tensor], images: Images, signs: int, *, seed: int = 0) -> Tensor:
    """v^T H v for random signs, (signs,); the mean estimates the sum over input units of d^T H d."""
    weights = [weight.detach().requires_grad_() for weight in network.weights]
    slopes = torch.autograd.grad(_loss(network.with_weights(weights), images).sum(), weights, create_graph=True)
    toss = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(signs):
        v = [delta * (2 * torch.randint(2, (1, 1, delta.shape[2]), generator=toss) - 1) for delta in deltas]
        along = sum((slope * part).sum() for slope, part in zip(slopes, v, strict=True))
        products = torch.autograd.grad(along, weights, retain_graph=True)  # type: ignore[arg-type]
        found.append(sum((product * part).sum(dtype=torch.float64) for product, part in zip(products, v, strict=True)))
    return torch.stack(found)  # type: ignore[arg-type]


def _spread(values: Tensor) -> tuple[float, float]:
    """Mean and standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def claims(found: list[Point]) -> list[Claim]:
    """That the prediction is right at the smallest p, wherever the theory's premise holds, and at the end of the run.

    The premise is positive curvature: steps at which S is not above 0 by four standard errors are left out, since the
    loss is not convex along w - u there and a ratio means nothing. The tolerance is a quarter, for the kinks and higher
    orders, and four standard errors of the ratio.
    """
    smallest = [point for point in found if point.p == min(PS)]
    result = []
    for point in smallest:
        if point.predicted <= 4 * point.predicted_error and point is not smallest[-1]:
            continue
        ratio = point.measured / point.predicted
        error = abs(ratio) * ((point.measured_error / point.measured) ** 2
                              + (point.predicted_error / point.predicted) ** 2) ** 0.5  # fmt: skip
        result.append(
            Claim(
                topic=TOPIC, statement=f"after {point.step} steps", p=point.p, relation="=", expected=1.0, found=ratio,
                tolerance=_WITHIN + 4 * error,
            )
        )  # fmt: skip
    return result
