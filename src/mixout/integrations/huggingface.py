"""Mixout in the Trainer of transformers: the anchor's fingerprint goes into each checkpoint and is checked on resume.

Without this, a model that is loaded from its own checkpoint before ``apply_`` would be anchored at its fine-tuned
weights, and nobody would notice. It does not train, and it changes no setting of the Trainer.
"""

# ruff: noqa: ANN401, ARG002  the signatures of the overridden methods are those of transformers
from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mixout
from mixout.errors import AnchorMismatchError, MissingExtraError

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.utils import logging
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f'expected transformers to be installed, got no {error.name!r}; run: pip install "mixout[hf]"'
    ) from error

STATE_NAME = "mixout.json"


class AnchorCallback(TrainerCallback):
    """Saves :func:`mixout.state_dict` beside each checkpoint, and checks it when training is resumed.

    Apply the method to the pretrained model first, then let the Trainer load the checkpoint's weights:

    >>> import inspect; from transformers import Trainer
    >>> "callbacks" in inspect.signature(Trainer).parameters  # Trainer(model, ..., callbacks=[AnchorCallback()])
    True

    Raises:
        AnchorMismatchError: on resume, if the model is anchored elsewhere than the run that wrote the checkpoint, or
            if the checkpoint was written without this callback.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint is complete from here on: this file is the last one in it."""
        file = _state_file(args, state)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(mixout.state_dict(kwargs["model"])), encoding="utf-8")
        temporary.replace(file)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On resume, the checkpoint's weights are loaded by now and the anchor must still be the old one."""
        if state.global_step == 0:
            return
        file = _state_file(args, state)
        if not file.is_file():
            raise AnchorMismatchError(
                f"expected {STATE_NAME} in the checkpoint {str(file.parent)!r}, got none; "
                f"the anchor of a run saved without AnchorCallback cannot be checked, start it again"
            )
        mixout.load_state_dict_(kwargs["model"], json.loads(file.read_text(encoding="utf-8")))


@contextmanager
def quiet() -> Iterator[None]:
    """No advice and no bars for loading from transformers in the body; its errors still show."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _state_file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / STATE_NAME
