"""The Trainer's arguments; when a run logs, evaluates, saves and stops, and what it reports; and the clock.

Everything happens at the end of an optimizer step and in one order, so a checkpoint holds all that came before it.
Settings become arguments of the Trainer whatever a launcher has left in the environment.
"""

# ruff: noqa: ANN401, ARG002  the signatures of the overridden methods are those of transformers
from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixout._names import count
from mixout.errors import InputError, needs
from mixout.finetune import folder, outcome
from mixout.finetune.environment import processes, without_launcher
from mixout.finetune.settings import CAUSAL, Settings
from mixout.finetune.tasks import Task

with needs("hf", "fine-tuning"):
    from accelerate import PartialState
    from accelerate.utils import reduce
    from safetensors.torch import save_model
    from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Report = Callable[[str], None]

_POINTS = 50  # points of a training curve without --logging-steps
_FEWEST = 10  # least number of steps whose mean loss may end a run


class Course(TrainerCallback):
    """What happens at the end of a step: logging, evaluation, checkpoint, an early end; and the clock.

    All of it happens at one point and in that order. The Trainer's own epoch ends after the checkpoint of its last
    step: a run resumed from there would skip that evaluation. The Trainer logs with every checkpoint, because it
    forgets a loss that is summed up but not yet logged. There is no checkpoint of the last step: the result follows
    at once.

    The losses in between, for console, bar and loggers, are summed up here: they change neither the Trainer's log nor
    the record, so a run is the same however often they are shown.
    """

    def __init__(self, settings: Settings, steps_per_epoch: int, task: Task, report: Report) -> None:
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.task = task
        self.report = report
        self.began = 0.0
        self.paused = 0.0
        self.diverged = False
        # Set by the trainer, which calls back.
        self.log: Callable[[dict[str, float]], None] = lambda _logs: None
        # Losses: of this step's batches; of the steps since the last one shown; of the last steps, for _watch.
        self._batches: list[Tensor] = []
        self._shown: list[Tensor] = []
        self._watched: deque[Tensor] = deque()
        self._loss: float | None = None
        self._constant = (outcome.constant_losses(task, balanced=settings.class_weights == "balanced") or (0.0,))[0]

    def seconds(self) -> float:
        """Seconds of training so far, without evaluations; a resumed run counts on from its checkpoint."""
        return time.perf_counter() - self.began - self.paused

    def add(self, loss: Tensor) -> None:
        """Take the training loss of one batch, as a share of its step's."""
        self._batches.append(loss.detach().float())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        earlier_seconds = next((entry["seconds"] for entry in reversed(state.log_history) if "seconds" in entry), 0.0)
        self.began = time.perf_counter() - earlier_seconds
        epochs = state.max_steps / self.steps_per_epoch if self.settings.max_steps else self.settings.epochs
        start = f"from step {state.global_step}" if state.global_step else "from the start"
        length = f"{count(state.max_steps, 'step')}, {count(epochs, 'epoch')}"
        self.report(f"{self.settings.method} on {self.task.name}: {length}, {start}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what the Trainer does next."""
        step, save = state.global_step, self.settings.save
        step_loss = torch.stack(self._batches).sum()
        self._batches.clear()
        self._shown.append(step_loss)
        epoch_ends = step % self.steps_per_epoch == 0
        saves = epoch_ends if save == "epoch" else save != "no" and step % int(save) == 0
        self._watch(state, step_loss, saves=saves)
        last = step >= state.max_steps or self.diverged
        control.should_training_stop = last
        control.should_evaluate = last or (epoch_ends and self.settings.evaluate == "epoch")
        control.should_save = not last and saves
        # Log each epoch, whatever is evaluated: the last loss tells whether the run has learned.
        control.should_log = last or epoch_ends or saves
        if step % (self.settings.logging_steps or math.ceil(state.max_steps / _POINTS)) == 0:
            self._loss = _mean(self._shown)
            self._shown.clear()
            if not control.should_log:
                self.log({"loss": self._loss})
        # A progress bar shows the same.
        if args.disable_tqdm and step % max(1, state.max_steps // 10) == 0 and not control.should_evaluate:
            loss = "" if self._loss is None else f"training loss {self._loss:.4f}, "
            self.report(f"  step {step}/{state.max_steps}, {loss}{self.seconds():.0f} s")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the checkpoint as complete: every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder.complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the scores; keep the best model, and stop when the score no longer improves."""
        metrics = kwargs["metrics"]
        # There is none before the first step.
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        training_text = "" if loss is None else f"training loss {loss:.4f}, "
        scores = ", ".join(f"{name} {metrics[f'eval_{name}']:.4f}" for name in self.task.metrics)
        self.report(
            f"  step {state.global_step}/{state.max_steps}, epoch {state.epoch or 0:.2f}: {training_text}"
            f"dev loss {metrics['eval_loss']:.4f}, {scores}"
        )
        evaluations, best = self.evaluations(state)
        # A language model is also evaluated before the first step.
        waited = len(evaluations) - 1 - evaluations.index(best) if state.global_step else 0
        if self.settings.keep_best and waited == 0 and state.is_world_process_zero:
            save_model(kwargs["model"], str(Path(str(args.output_dir)) / folder.BEST))
        if self.settings.patience is not None and waited >= self.settings.patience:
            control.should_training_stop, control.should_save = True, False

    def evaluations(self, state: TrainerState) -> tuple[list[dict[str, float]], dict[str, float]]:
        """The run's evaluations so far, and the first one with the highest score; nan is below every score."""
        name = f"eval_{self.task.metric}"
        entries = [entry for entry in state.log_history if name in entry]
        return entries, max(entries, key=lambda entry: -math.inf if math.isnan(entry[name]) else entry[name])

    def _watch(self, state: TrainerState, loss: Tensor, *, saves: bool) -> None:
        """Check at intervals, and at the end, whether the mean loss of the last steps is out of hand."""
        history, size = state.log_history, max(_FEWEST, state.max_steps // _POINTS)
        # An entry of the history, which goes into the checkpoints.
        first_entry: dict[str, Any] = next((entry for entry in history if "first_loss" in entry), {})
        if not self._watched:
            earlier_losses = torch.tensor(first_entry.get("watched", []), dtype=loss.dtype, device=loss.device)
            self._watched = deque(earlier_losses, maxlen=size)
        self._watched.append(loss)
        if not first_entry:
            # The loss before any update; a language model's evaluation counts too: its first batch may be easy.
            evaluated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
            first_entry = {"first_loss": max([_mean([loss]), *evaluated]), "step": state.global_step}
            history.append(first_entry)
        if saves:
            # A resumed run reads these, in every process.
            self._watched = deque(reduce(torch.stack([*self._watched]), "mean"), maxlen=size)
            first_entry["watched"] = [float(value) for value in self._watched]
        if state.global_step % size == 0 or state.global_step == state.max_steps:
            mean_loss = _mean([*self._watched])
            too_high = outcome.diverges(mean_loss, max(first_entry["first_loss"], self._constant))
            self.diverged = not math.isfinite(mean_loss) or (too_high and len(self._watched) >= _FEWEST)


def _mean(losses: list[Tensor]) -> float:
    """The mean of these losses over all processes."""
    return float(reduce(torch.stack(losses).mean(), "mean"))


class Bars(ProgressCallback):
    """The Trainer's bars, followed by the loss, without its raw logs in between: ``report`` puts them in words."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the training loss."""
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.4f}")


def arguments(settings: Settings, place: Path, *, bars: bool) -> TrainingArguments:
    """The Trainer's arguments; InputError for settings that transformers or the machine does not take."""
    if settings.batch_size % processes():
        raise InputError(
            f"expected a batch size that {processes()} processes can share, got {settings.batch_size}; choose a "
            f"multiple of {processes()}"
        )
    # A language model's outputs have the width of its vocabulary for each token: batches as in training.
    eval_batch_size = settings.batch_size if settings.task_type == CAUSAL else max(32, settings.batch_size)
    options: dict[str, Any] = {
        "output_dir": str(place / folder.CHECKPOINTS),
        "per_device_train_batch_size": settings.batch_size // processes(),
        "per_device_eval_batch_size": eval_batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        "seed": settings.stream_seed("mask"),
        "data_seed": settings.stream_seed("data"),
        # Course decides; the epochs of the Trainer do not survive a resume.
        **dict.fromkeys(("logging_strategy", "eval_strategy", "save_strategy"), "no"),
        "save_total_limit": folder.KEPT,
        # A loss that is not finite is a result, not to be replaced by the mean of earlier losses.
        "logging_nan_inf_filter": False,
        "report_to": list(settings.report_to) or "none",
        "disable_tqdm": not bars,
        "log_level": "error",
        "label_names": ["labels"],
        "use_cpu": not torch.accelerator.is_available(),
        # A frozen body has no gradients.
        "ddp_find_unused_parameters": settings.head_first > 0,
        "dataloader_pin_memory": torch.accelerator.is_available(),
    }
    try:
        with without_launcher():
            args = TrainingArguments(**options)
    # Such as bf16 on a GPU without it, or an accelerate that is too old.
    except (ImportError, ValueError) as error:
        raise InputError(f"expected settings that transformers takes on this machine, got: {error}") from error
    if args.n_gpu > 1:
        # Several visible GPUs would mean DataParallel, whose replicas leave the anchors on the first.
        args._n_gpu = 1
    return args
