"""When a run logs, evaluates and saves, and what it says meanwhile; and the clock.

Everything happens at the end of an optimizer step and in one order, so a checkpoint holds all that came before it.
"""

# ruff: noqa: ANN401, ARG002  the signatures of the overridden methods are those of transformers
from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixout.finetune import folder
from mixout.finetune.extras import needs
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Task
from mixout.finetune.tasks.documents import Corpus

with needs("hf", "fine-tuning"):
    from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Report = Callable[[str], None]


class Course(TrainerCallback):
    """What happens at the end of a step: logging, evaluation, checkpoint; and the clock.

    All three at one point and in that order, unlike the Trainer's own epochs, whose end comes after a checkpoint of
    the epoch's last step: resumed from there, it would skip that evaluation. Logging comes with every checkpoint, for
    the Trainer forgets a loss that is summed up but not yet logged. There is no checkpoint of the last step: the
    result follows at once.
    """

    def __init__(self, settings: Settings, steps_per_epoch: int, task: Task | Corpus, report: Report) -> None:
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.task = task
        self.report = report
        self.began = 0.0
        self.paused = 0.0

    def seconds(self) -> float:
        """Spent in training so far, without evaluations; a resumed run counts on from its checkpoint."""
        return time.perf_counter() - self.began - self.paused

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        before = next((entry["seconds"] for entry in reversed(state.log_history) if "seconds" in entry), 0.0)
        self.began = time.perf_counter() - before
        where = f"from step {state.global_step}" if state.global_step else "from the start"
        self.report(
            f"{self.settings.method} on {self.task.name}: {state.max_steps} steps, "
            f"{math.ceil(self.settings.epochs * 100) / 100:g} epochs, {where}"
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what the Trainer does next."""
        step, save = state.global_step, self.settings.save
        last, epoch_ends = step >= state.max_steps, step % self.steps_per_epoch == 0
        control.should_evaluate = last or (epoch_ends and self.settings.evaluate == "epoch")
        control.should_save = not last and (epoch_ends if save == "epoch" else save != "no" and step % int(save) == 0)
        control.should_log = last or control.should_evaluate or control.should_save
        # A bar says it already.
        if args.disable_tqdm and step % max(1, state.max_steps // 10) == 0 and not control.should_evaluate:
            self.report(f"  step {step}/{state.max_steps}, {self.seconds():.0f} s")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say that the checkpoint is whole."""
        folder.complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say how it stands."""
        found = kwargs["metrics"]
        # None before the first step.
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        training = "" if loss is None else f"training loss {loss:.4f}, "
        scores = ", ".join(f"{name} {found[f'eval_{name}']:.4f}" for name in self.task.metrics)
        self.report(
            f"  step {state.global_step}/{state.max_steps}, epoch {state.epoch or 0:.2f}: {training}"
            f"dev loss {found['eval_loss']:.4f}, {scores}"
        )


class Bars(ProgressCallback):
    """The Trainer's bars, without its raw logs in between: the lines of ``report`` say it in words."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print nothing."""
