"""HeadFirst: the new head alone for the first epochs, then everything; for the Trainer of transformers."""

# ruff: noqa: ANN401, ARG002  the signatures are those of transformers
from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from mixout._names import nearest
from mixout.errors import MixoutError, needs
from mixout.record import applications
from mixout.schedule import last_step_begins
from mixout.selection import BODY, resolve

with needs("hf", "the Trainer of transformers"):
    from transformers import TrainerCallback, TrainerState, TrainingArguments
    from transformers.trainer_utils import has_length

# What thaws the models that HeadFirst has frozen; a run that was interrupted leaves its entry behind.
_FROZEN = WeakKeyDictionary[nn.Module, ExitStack]()


def _thaw_(model: nn.Module) -> bool:
    """Undo what HeadFirst has done to ``model``, if it has."""
    thaw = _FROZEN.pop(model, None)
    if thaw is not None:
        thaw.close()
    return thaw is not None


class HeadFirst(TrainerCallback):
    """Freezes all but the new parameters for the first epochs (LP-FT, Kumar et al., ICLR 2022, arXiv 2202.10054).

    Mixing starts with the rest. The optimizer holds all parameters from the start, so a resumed run goes on as an
    uninterrupted one. A run that is interrupted leaves the rest frozen, until a Trainer with HeadFirst takes the model.
    With DDP set ``ddp_find_unused_parameters=True``.

    >>> from transformers import Trainer  # Trainer(model, ..., callbacks=[HeadFirst(1)])

    Args:
        epochs: how many of the run's epochs; fractions are fine.
        new: names of the parameters to train first; None for those outside the pretrained body.

    Raises:
        MixoutError: when training begins, if the model has no such parameter, or no step is left for the rest.
    """

    def __init__(self, epochs: float, *, new: Collection[str] | None = None) -> None:
        self.epochs = epochs
        self.new = new

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Thaw what an interrupted run has left, before the optimizer is built."""
        _thaw_(kwargs["model"])

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Freeze the body, unless the run goes on after its thaw. The optimizer is built by now."""
        model: nn.Module = kwargs["model"]
        was_frozen = _thaw_(model)
        body = self._body(model)
        if was_frozen:
            stepped = {id(parameter) for group in kwargs["optimizer"].param_groups for parameter in group["params"]}
            if not all(id(parameter) in stepped for parameter in body):
                raise MixoutError(
                    "expected an optimizer of all parameters, got one that was built while an interrupted run with "
                    "HeadFirst had frozen the body; it is trainable again: make a new Trainer"
                )
        if (state.epoch or 0.0) >= self.epochs:
            return
        loader = kwargs["train_dataloader"]
        if has_length(loader):  # else nobody knows how long an epoch is
            last = last_step_begins(state.max_steps, len(loader), args.gradient_accumulation_steps)
            if self.epochs > last:
                text = f"at most {last:g} epochs, where the last step of this run begins, got {self.epochs:g}"
                raise MixoutError(f"expected HeadFirst for {text}: only the head would be trained")
        thaw = _FROZEN[model] = ExitStack()
        for mixing in [applied.mixing for applied in applications(model) if applied.mixing is not None]:
            thaw.callback(mixing.switch, off=False)
            mixing.switch(off=True)
        for parameter in body:
            thaw.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Thaw when it is time."""
        if (state.epoch or 0.0) >= self.epochs:
            _thaw_(kwargs["model"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Leave nothing frozen behind."""
        _thaw_(kwargs["model"])

    def _body(self, model: nn.Module) -> list[nn.Parameter]:
        """What is frozen first: all that is trained but the new parameters."""
        parameters = dict(model.named_parameters())
        if self.new is None:
            new = parameters.keys() - {key for key, *_ in resolve(BODY, model).parameters(model)}
        else:
            new = {self.new} if isinstance(self.new, str) else set(self.new)
            # Other names of tied parameters, and buffers, are passed over: transformers may report them as missing.
            aliases = dict(model.named_parameters(remove_duplicate=False))
            if unknown := sorted(new - aliases.keys() - dict(model.named_buffers()).keys()):
                near = nearest(unknown[0], parameters)
                raise MixoutError(f"expected new= as names of the model's parameters, got {unknown[0]!r}{near}")
        if not any(parameters[name].requires_grad for name in new & parameters.keys()):
            raise MixoutError("expected a model with a new head, which is trained first, got none; leave HeadFirst out")
        return [parameter for name, parameter in parameters.items() if name not in new and parameter.requires_grad]
