r"""Section 4: pretrain on a source, fine-tune on a target with dropout(p) or mixout(w_pre, p); and what else shortens.

The paper reports that ||w - w_pre||^2 falls with p under mixout and rises under dropout, and reads it as mixout's pull.
Adam alone does that: a gradient that is 0 with probability p, pulled nowhere, makes the coherent part of its steps
shorter by sqrt(1-p). The controls are mixout's two halves, a rate times sqrt(1-p), and SGD, whose expected step a mask
does not shorten. Lee et al. 2020, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from mixout.verify.claim import Claim, Relation
from mixout.verify.digits import Domains
from mixout.verify.network import Network, accuracies, drift, initial, squared_distances
from mixout.verify.restarts import Optimizer, Training, Treatment, train

TOPIC = "Section 4: ||w - w_pre||^2 and accuracy, means over restarts"
_ADAM: tuple[Treatment, ...] = ("dropout", "mixout", "gradient mask", "dense gradient", "smaller rate")
_SGD: tuple[Treatment, ...] = ("mixout", "gradient mask")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of section 4 to run.

    Args:
        hidden: widths of the hidden layers.
        ps: probabilities, rising from 0.
        restarts: of each fine-tuning.
        pretrain_rate: of Adam on the source.
        pretrain_epochs: over the source.
        train_size: images of the target to train on; None for all.
        rate: of Adam on the target.
        sgd_rate: of SGD on the target.
        epochs: over these images.
    """

    hidden: tuple[int, int]
    ps: tuple[float, ...]
    restarts: int
    pretrain_rate: float
    pretrain_epochs: int
    train_size: int | None
    rate: float
    sgd_rate: float
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Restarts of one way to fine-tune: means, and sample standard deviations.

    Args:
        optimizer: Adam or SGD.
        treatment: what acted on the layers; ``plain`` at p = 0, where all are the same.
        p: its probability.
        restarts: how many.
        distance: ||w - w_pre||^2 over all parameters.
        distance_sd: its deviation over restarts.
        drift: ||E w - w_pre||^2, the part that is not noise: the mean product of two restarts' displacements.
        target: accuracy on the target's test images.
        target_sd: its deviation.
        source: accuracy on the source's test images after fine-tuning.
        source_sd: its deviation.
    """

    optimizer: str
    treatment: str
    p: float
    restarts: int
    distance: float
    distance_sd: float
    drift: float
    target: float
    target_sd: float
    source: float
    source_sd: float


def pretrain(data: Domains, plan: Plan, *, seed: int = 0) -> Network:
    """One network, trained on the source with the paper's dropout(.1) and decay .01."""
    sizes = (data.source.pixels.shape[1], *plan.hidden, 10)
    training = Training(
        treatment="dropout", p=0.1, optimizer="adam", rate=plan.pretrain_rate, epochs=plan.pretrain_epochs, decay=0.01
    )
    return train(initial(sizes, seed=seed), data.source, training, [seed])


def cells(data: Domains, start: Network, plan: Plan, report: Callable[[str], None]) -> Iterator[Cell]:
    """Fine-tune ``start`` in every way: p = 0 once for each optimizer, then each treatment with each p."""
    images = data.target.part(0, plan.train_size)
    ways: tuple[tuple[Optimizer, float, tuple[Treatment, ...]], ...] = (
        ("adam", plan.rate, _ADAM),
        ("sgd", plan.sgd_rate, _SGD),
    )
    for optimizer, rate, treatments in ways:
        for p in plan.ps:
            for treatment in treatments if p else treatments[:1]:
                training = Training(treatment=treatment, p=p, optimizer=optimizer, rate=rate, epochs=plan.epochs)
                trained = train(start, images, training, range(plan.restarts))
                cell = _measured(data, start, trained, training)
                report(f"  {optimizer}, {cell.treatment}, p = {p:g}: ||w - w_pre||^2 {cell.distance:.4g}")
                yield cell


def _measured(data: Domains, start: Network, trained: Network, training: Training) -> Cell:
    def spread(values: Tensor) -> tuple[float, float]:
        return float(values.mean()), float(values.std()) if len(values) > 1 else 0.0

    distance = spread(squared_distances(trained, start))
    target = spread(accuracies(trained, data.target_test.pixels, data.target_test.labels))
    source = spread(accuracies(trained, data.source_test.pixels, data.source_test.labels))
    return Cell(
        optimizer=training.optimizer,
        treatment=training.treatment if training.p else "plain",
        p=training.p,
        restarts=len(trained.weights[0]),
        distance=distance[0],
        distance_sd=distance[1],
        drift=drift(trained, start),
        target=target[0],
        target_sd=target[1],
        source=source[0],
        source_sd=source[1],
    )


def claims(found: list[Cell]) -> list[Claim]:
    """What holds in every form of the run, at the largest p; distances relative to those of p = 0, Adam.

    Whether dropout's distance rises, and how much of mixout's shortening the mask alone makes, depends on how long one
    trains: that is in the table, not among the claims.
    """
    at = {(cell.treatment, cell.p): cell for cell in found if cell.optimizer == "adam"}
    p = max(cell.p for cell in found)

    def relative(treatment: Treatment) -> float:
        return at[treatment, p].distance / at["plain", 0.0].distance

    def claim(statement: str, relation: Relation, expected: float, value: float) -> Claim:
        return Claim(
            topic=TOPIC, statement=statement, p=p, relation=relation, expected=expected, found=value, tolerance=0.0
        )

    return [
        claim("paper: mixout's distance is below plain's", "<=", 1.0, relative("mixout")),
        claim(
            "paper: mixout's target accuracy is not below dropout's", ">=",
            at["dropout", p].target, at["mixout", p].target,
        ),
        claim("control: gradient mask, which has no pull, shortens too", "<=", 1.0, relative("gradient mask")),
        claim("control: a rate times sqrt(1-p) shortens too", "<=", 1.0, relative("smaller rate")),
        claim("control: mixed forward with dense gradient does not shorten", ">=", 1.0, relative("dense gradient")),
    ]  # fmt: skip


# Section 4 of the paper: p -> ||w - w_pre||^2 and target accuracy with dropout, then with mixout.
PAPER = {
    0.0: (1.545, 0.9718, 1.545, 0.9718), 0.1: (1.883, 0.9714, 1.398, 0.9718), 0.2: (2.036, 0.9713, 1.258, 0.9715),
    0.3: (2.142, 0.9697, 1.115, 0.9714), 0.4: (2.235, 0.9663, 0.970, 0.9715), 0.5: (2.311, 0.9615, 0.825, 0.9713),
    0.6: (2.402, 0.9541, 0.681, 0.9707), 0.7: (2.496, 0.9412, 0.538, 0.9703), 0.8: (2.513, 0.9177, 0.395, 0.9698),
}  # fmt: skip


def table(found: list[Cell]) -> str:
    """Distances relative to p = 0 and target accuracies, a line a treatment, beside the paper's; aligned text."""
    ps = sorted({cell.p for cell in found})
    lines = [f"{'||w - w_pre||^2 / plain, target accuracy':<42}" + "".join(f"p = {p:<12g}" for p in ps)]
    for column, treatment in ((0, "dropout"), (2, "mixout")):
        values = [PAPER.get(p) for p in ps]
        shown = [f"{row[column] / PAPER[0.0][0]:.3f} {row[column + 1]:.3f}" if row else "" for row in values]
        lines.append(f"{'paper, adam, ' + treatment:<42}" + "".join(f"{value:<16}" for value in shown))
    lines.append(f"{'1 - p':<42}" + "".join(f"{1 - p:<16.3f}" for p in ps))
    ways = dict.fromkeys((cell.optimizer, cell.treatment) for cell in found if cell.p)
    for optimizer, treatment in ways:
        plain = next(cell for cell in found if cell.optimizer == optimizer and not cell.p)
        row = [plain, *(cell for cell in found if (cell.optimizer, cell.treatment) == (optimizer, treatment))]
        shown = [f"{cell.distance / plain.distance:.3f} {cell.target:.3f}" for cell in row]
        lines.append(f"{f'{optimizer}, {treatment}':<42}" + "".join(f"{value:<16}" for value in shown))
    return "\n".join(line.rstrip() for line in lines)
