r"""Labels that are values not near 0 and 1: learned in standard units; the saved model answers in the labels' own.

A new output head begins near 0, and an optimizer such as Adam moves each weight by about the learning rate a step,
whatever the scale of the loss. So it would not reach grades near 75 in a short run, or prices.

.. math:: z = (y - m) / s, \qquad \hat y = m + s \hat z

m and s are mean and standard deviation of the training labels; of a head without bias m is 0 and s their root mean
square. At the end both go into the head. Where labels are near 0 and 1 already (``NEAR``), as in STS-B, they stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from mixout.errors import InputError
from mixout.finetune.models import Loaded
from mixout.finetune.record import Record
from mixout.finetune.tasks import Split, Task

NEAR = 5.0  # the largest mean, in absolute value, of labels that stay,
_SPREADS = 0.1, 3.0  # and between which their standard deviation lies
_FINEST = 1e5  # times the standard deviation: a mean from which on float32 does not tell labels apart


def far(labels: Sequence[float]) -> bool:
    """Whether values are learned in standard units, if the head is new.

    Example:
        >>> far([0.0, 2.5, 5.0]), far([63.0, 97.0]), far([0.001, 0.002]), far([7.0, 7.0])
        (False, True, True, False)
    """
    mean, spread = _moments(labels)
    constant = spread <= 1e-12 * max(1.0, abs(mean))
    return not (constant or (abs(mean) <= NEAR and _SPREADS[0] <= spread <= _SPREADS[1]))


def _moments(labels: Sequence[float]) -> tuple[float, float]:
    values = np.array(labels, dtype=np.float64)
    largest = np.abs(values).max()
    if largest > 1e150:
        raise InputError(f"expected labels up to 1e150, got {largest:g}; correct or remove the row")
    return float(values.mean()), float(values.std())


@dataclass(frozen=True, kw_only=True)
class Units:
    """The mean and the scale of labels, and the name of the new layer that answers; without one labels stay."""

    mean: float = 0.0
    scale: float = 1.0
    head: str = ""

    @classmethod
    def of(cls, task: Task, loaded: Loaded) -> Units:
        """Those of a regression with a new head whose labels are not near 0 and 1.

        Example:
            >>> from mixout.finetune.models import load
            >>> split = Split(text=("a", "b"), label=(70.0, 80.0))
            >>> task = Task(train=split, dev=split, name="grades", metrics=("pearson",), metric="pearson", source="")
            >>> Units.of(task, load("minilm", labels=None, init_seed=0))
            Units(mean=75.0, scale=5.0, head='classifier')
        """
        if task.kind != "values" or not far(task.train.label):
            return cls()
        mean, spread = _moments(task.train.label)
        heads = {
            name: module
            for name, module in loaded.model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == 1 and f"{name}.weight" in loaded.new
        }
        if not heads:
            return cls()
        if abs(mean) > _FINEST * spread:
            raise InputError(
                f"expected labels that float32 tells apart, got mean {mean:g} and standard deviation {spread:g}; "
                f"subtract a number such as {mean:g} from each"
            )
        head = [*heads][-1]
        if heads[head].bias is None:
            mean, spread = 0.0, math.hypot(mean, spread)  # the root mean square
        return cls(mean=mean, scale=spread, head=head)

    def said(self) -> dict[str, str]:
        """For the record: what was chosen, in words."""
        if not self.head:
            return {}
        mean = f"(label - {self.mean:.4g})" if self.mean > 0 else f"(label + {-self.mean:.4g})"
        units = f"{mean if self.mean else 'label'} / {self.scale:.4g}"
        return {"labels": f"labels are learned as {units}, and losses here are of that; the model answers in labels"}

    def standard(self, task: Task) -> Task:
        """The task with labels in standard units."""

        def part(split: Split) -> Split:
            return replace(split, label=tuple((label - self.mean) / self.scale for label in split.label))

        return replace(task, train=part(task.train), dev=part(task.dev)) if self.head else task

    @torch.no_grad()
    def settle_(self, model: nn.Module, record: Record) -> Record:
        """Let ``model`` answer in the labels' own units; and the record in them."""
        if not self.head:
            return record
        head = model.get_submodule(self.head)
        head.weight.mul_(self.scale)  # type: ignore[operator]
        if head.bias is not None:
            head.bias.mul_(self.scale).add_(self.mean)  # type: ignore[operator]
        square = self.scale**2
        return replace(
            record,
            predictions=tuple(self.mean + self.scale * value for value in record.predictions),
            evaluations=tuple(replace(entry, loss=square * entry.loss) for entry in record.evaluations),
            training=tuple(replace(entry, loss=square * entry.loss) for entry in record.training),
            interpolated=tuple(row | {"loss": square * row["loss"]} for row in record.interpolated),
        )
