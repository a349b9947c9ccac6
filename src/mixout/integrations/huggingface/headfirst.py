"""LP-FT in the Trainer: the new head is trained alone first, then everything; mixing starts with the body.

A head that is drawn at random sends random gradients into the pretrained body. Kumar et al., ICLR 2022, arXiv
2202.10054.
"""

# ruff: noqa: ANN401, ARG002  the signatures of the overridden methods are those of transformers
from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mixout.disabling import disabled
from mixout.errors import MixoutError
from mixout.record import applications
from mixout.selection import body


class HeadFirst(TrainerCallback):
    """Freezes all but the new parameters for the first epochs.

    The optimizer holds all parameters from the start, so a resumed run goes on as an uninterrupted one. There is one
    schedule of the learning rate over both phases. With DDP set ``ddp_find_unused_parameters=True``.

    >>> from transformers import Trainer  # Trainer(model, ..., callbacks=[HeadFirst(1)])

    Args:
        epochs: how many, of those of the run; parts of one are fine.
        new: names of the parameters to train first; None for those outside the pretrained body.

    Raises:
        MixoutError: when training begins, if the model has no such parameter.
    """

    def __init__(self, epochs: float, *, new: Collection[str] | None = None) -> None:
        self.epochs = epochs
        self.new = new
        self._thaw = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze the body, unless the run goes on after its thaw. The optimizer is built by now."""
        if (state.epoch or 0.0) < self.epochs:
            self._freeze(kwargs["model"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Thaw when it is time."""
        if (state.epoch or 0.0) >= self.epochs:
            self._thaw.close()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave nothing frozen behind."""
        self._thaw.close()

    def _freeze(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        if self.new is None:
            inside = body(model)
            outside = [(name, module) for name, module in model.named_modules() if not inside(name, module)]
            new = {key for name, module in outside for key, _ in module.named_parameters(prefix=name, recurse=False)}
        else:
            new = set(self.new)
        if not any(parameters[name].requires_grad for name in new & parameters.keys()):
            raise MixoutError("expected a model with a new head, which is trained first, got none; leave HeadFirst out")
        if applications(model):
            self._thaw.enter_context(disabled(model))
        for name, one in parameters.items():
            if name not in new and one.requires_grad:
                self._thaw.callback(one.requires_grad_, True)
                one.requires_grad_(False)
