"""The Trainer of transformers, set up so that a run is exactly repeatable and exactly resumable.

Everything that is logged, evaluated or saved happens at the end of an optimizer step and in this order, so a checkpoint
holds all that came before it. Three random streams: the new head (drawn by the loader); the order of the examples (the
Trainer's ``data_seed``); and torch's global stream, which only masks and dropouts draw from while training.

There is no training loop here. One process, one device.
"""

# ruff: noqa: ANN401, ARG002  the signatures of the overridden methods are those of transformers
from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mixout.errors import InputError, MissingExtraError
from mixout.finetune import folder, optimizers
from mixout.finetune.batches import DevSet, encode, first_output
from mixout.finetune.extras import needs
from mixout.finetune.models import Loaded
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Task
from mixout.integrations.huggingface import AnchorCallback

with needs("hf", "fine-tuning"):
    import accelerate  # noqa: F401  without it the Trainer refuses later, and in other words
    import transformers
    from transformers import (
        DataCollatorWithPadding,
        PrinterCallback,
        ProgressCallback,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
        set_seed,
    )

Report = Callable[[str], None]

# An older Trainer would divide the loss of an accumulated batch once more, in silence.
if not hasattr(Trainer, "loss_is_scaled_for_ga"):
    raise MissingExtraError(
        f"expected transformers >= 5.19 for fine-tuning, got {transformers.__version__}; "
        f'run: pip install --upgrade "mixout[hf]"'
    )


class Course(TrainerCallback):
    """What happens at the end of a step: logging, evaluation, checkpoint; and the clock.

    All three at one point and in that order, unlike the Trainer's own epochs, whose end comes after a checkpoint of
    the epoch's last step: resumed from there, it would skip that evaluation. Logging comes with every checkpoint, for
    the Trainer forgets a loss that is summed up but not yet logged. There is no checkpoint of the last step: the
    result follows at once.
    """

    def __init__(self, settings: Settings, steps_per_epoch: int, task: Task, report: Report) -> None:
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
        loss = next(entry["loss"] for entry in reversed(state.log_history) if "loss" in entry)
        scores = ", ".join(f"{name} {found[f'eval_{name}']:.4f}" for name in self.task.metrics)
        self.report(
            f"  step {state.global_step}/{state.max_steps}, epoch {state.epoch:.2f}: training loss {loss:.4f}, "
            f"dev loss {found['eval_loss']:.4f}, {scores}"
        )


class TextTrainer(Trainer):
    """The Trainer with our optimizers, a loss that accumulation does not change, and evaluations that draw nothing."""

    # compute_loss divides by the number of examples in the whole accumulated batch. Left to the models, the Trainer
    # takes any that accepts keyword arguments to do so; BERT's does not, and its gradient would grow with accumulation.
    loss_is_scaled_for_ga = True

    def __init__(self, *, settings: Settings, course: Course, **options: Any) -> None:
        config = options["model"].config
        # super() turns the cache of keys and values off, which is right for training and wrong in a checkpoint.
        self.cache = {"use_cache": config.use_cache} if hasattr(config, "use_cache") else {}
        super().__init__(**options)
        self.settings = settings
        self.course = course

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer of the settings."""
        if self.optimizer is None:
            trained: torch.nn.Module = self.model if model is None else model  # type: ignore[assignment]
            self.optimizer = optimizers.build(trained, self.settings)
        return self.optimizer

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy, or for a regression the squared error: the mean over the examples of the whole batch."""
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs["logits"].float()
        if self.course.task.labels is None:
            total = torch.nn.functional.mse_loss(logits.reshape(-1), labels.float(), reduction="sum")
        else:
            total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        # One batch a step is counted here: the Trainer's count leaves out every label of -100, also a regression's.
        examples: torch.Tensor | int = len(labels)
        if model.training and self.args.gradient_accumulation_steps > 1 and num_items_in_batch is not None:
            examples = num_items_in_batch
        loss = total / examples
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Evaluate, with the clock of the training stopped and the global random stream left as it was."""
        began = time.perf_counter()
        # An iterator over batches draws a seed for its workers: without the fork, masks would depend on how often
        # one looks at the dev set.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            metrics: dict[str, float] = super().evaluate(*args, **options)
        self.course.paused += time.perf_counter() - began
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the seconds of training, which thereby go into the checkpoint."""
        if "loss" in logs:
            logs["seconds"] = self.course.seconds()
        super().log(logs, start_time)


class Bars(ProgressCallback):
    """The Trainer's bars, without its raw logs in between: the lines of ``report`` say it in words."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print nothing."""


def build(
    settings: Settings, place: Path, loaded: Loaded, task: Task, dev: DevSet, *, report: Report, bars: bool
) -> TextTrainer:
    """Everything up to training, so that whatever can be wrong is found before a run is begun.

    Args:
        settings: resolved.
        place: the run's folder; an empty folder for the checkpoints is made in it.
        loaded: the model, with its method applied; it moves to the device.
        task: the data; ``dev`` is its dev set, encoded.
        dev: scores each evaluation and keeps the last predictions.
        report: called with one line of progress now and then.
        bars: show progress bars.

    Raises:
        InputError: settings that transformers, the machine or the model does not take.
    """
    # Built later, on the device; what is wrong with it shows now.
    optimizers.groups(loaded.model, settings)
    args = _arguments(settings, place, bars=bars)
    examples = encode(task.train, loaded.tokenizer, settings.max_length)
    steps_per_epoch = math.ceil(math.ceil(len(examples) / settings.batch_size) / settings.accumulation)
    course = Course(settings, steps_per_epoch, task, report)
    trainer = TextTrainer(
        settings=settings,
        course=course,
        model=loaded.model,
        args=args,
        train_dataset=examples,
        eval_dataset=dev.sorted(),
        data_collator=DataCollatorWithPadding(loaded.tokenizer),
        processing_class=loaded.tokenizer,
        compute_metrics=lambda outputs: dev.score(outputs.predictions),
        preprocess_logits_for_metrics=first_output,
        callbacks=[course, AnchorCallback()],
    )
    trainer.remove_callback(ProgressCallback if bars else PrinterCallback)
    if bars:
        trainer.add_callback(Bars)
    return trainer


def train(run: TextTrainer, checkpoint: Path | None) -> TrainerState:
    """Train the model in place.

    Args:
        run: as :func:`build` made it.
        checkpoint: where to go on from; None to start.

    Returns:
        The Trainer's state, with the history of the whole run.
    """
    # The masks' stream starts here, whatever the set-up has drawn; a resumed run gets its own back.
    set_seed(run.args.seed)
    run.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    config: Any = run.model.config  # type: ignore[union-attr]
    del config.use_cache
    config.update(run.cache)
    return run.state


def _arguments(settings: Settings, place: Path, *, bars: bool) -> TrainingArguments:
    try:
        args = _training_arguments(settings, place, bars=bars)
    # Such as bf16 on a GPU that has none, or an accelerate that is too old.
    except (ImportError, ValueError) as error:
        raise InputError(f"expected settings that transformers takes on this machine, got: {error}") from error
    if args.n_gpu > 1:
        # Several visible GPUs would mean DataParallel, whose replicas leave the anchors on the first.
        args._n_gpu = 1
    return args


def _training_arguments(settings: Settings, place: Path, *, bars: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(place / folder.CHECKPOINTS),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=max(32, settings.batch_size),
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        seed=settings.stream_seed("mask"),
        data_seed=settings.stream_seed("data"),
        # Course decides; the epochs of the Trainer do not survive a resume.
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=folder.KEPT,
        # A loss that is not finite is a result, not to be replaced by the average of those before.
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=not bars,
        log_level="error",
        label_names=["labels"],
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
