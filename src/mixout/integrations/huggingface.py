"""Mixout in the Trainer of transformers: the anchor's fingerprint goes into each checkpoint and is checked on resume.

Without this, a model that is loaded from its own checkpoint before ``apply_`` would be anchored at its fine-tuned
weights, and nobody would notice. It does not train, and it changes no setting of the Trainer.
"""

# ruff: noqa: ANN401, ARG002  the signatures of the overridden methods are those of transformers
from __future__ import annotations

from typing import Any

from torch import nn

import mixout
from mixout.errors import AnchorMismatchError, MissingExtraError

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f'expected transformers to be installed, got no {error.name!r}; run: pip install "mixout[hf]"'
    ) from error

_KEY = "mixout"


class AnchorCallback(TrainerCallback, ExportableState):
    """Saves :func:`mixout.state_dict` with each checkpoint, and checks it when training is resumed.

    It lies in the checkpoint's ``trainer_state.json``, which the Trainer writes in one process and reads in all, from
    wherever it resumes. Apply the method to the pretrained model first, then let the Trainer load the checkpoint's
    weights:

    >>> import inspect; from transformers import Trainer
    >>> "callbacks" in inspect.signature(Trainer).parameters  # Trainer(model, ..., callbacks=[AnchorCallback()])
    True

    Raises:
        NotAppliedError: when training begins, if the model carries no method.
        AnchorMismatchError: on resume, if the model is anchored elsewhere than the run that wrote the checkpoint, or
            if the checkpoint was written without this callback.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On resume, the checkpoint's weights are loaded by now and the anchor must still be the old one."""
        model: nn.Module = kwargs["model"]
        # Without a method this raises: now, not hours later at the first checkpoint.
        mixout.state_dict(model)
        if state.global_step:
            mixout.load_state_dict_(model, self._saved(state))
        self._model = model

    def state(self) -> dict[str, Any]:
        """What goes into ``trainer_state.json``; the Trainer asks before training too, and then there is nothing."""
        saved = {} if self._model is None else {_KEY: mixout.state_dict(self._model)}
        return {"args": {}, "attributes": saved}

    def _saved(self, state: TrainerState) -> dict[str, Any]:
        callbacks: Any = state.stateful_callbacks
        own = callbacks.get(type(self).__name__, {})
        saved: dict[str, Any] | None = own.get("attributes", {}).get(_KEY)
        if saved is None:
            raise AnchorMismatchError(
                f"expected the checkpoint of step {state.global_step} to hold the anchor's fingerprint, got none; "
                f"the anchor of a run saved without AnchorCallback cannot be checked, start it again"
            )
        return saved
