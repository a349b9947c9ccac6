"""The Trainer of transformers, set up so that a run is exactly repeatable and exactly resumable.

Three random streams: the new head (drawn by the loader); the order of the examples (the Trainer's ``data_seed``, or
``Buckets``); and torch's global stream, which only masks and dropouts draw from while training.

There is no training loop here. One process, one device.
"""

# ruff: noqa: ANN401  the signatures of the overridden methods are those of transformers
from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from mixout.errors import InputError, MissingExtraError
from mixout.finetune import folder, optimizers
from mixout.finetune.attention import float_attention
from mixout.finetune.batches import DevSet, Example
from mixout.finetune.buckets import Buckets
from mixout.finetune.causal import DevTexts
from mixout.finetune.course import Bars, Course, Report
from mixout.finetune.extras import needs
from mixout.finetune.models import Loaded
from mixout.finetune.settings import CAUSAL, Settings
from mixout.finetune.tasks import Task
from mixout.finetune.tasks.documents import Corpus
from mixout.integrations.huggingface import MixoutCallback

with needs("hf", "fine-tuning"):
    import accelerate  # noqa: F401  without it the Trainer refuses later, and in other words
    import transformers
    from transformers import (
        PrinterCallback,
        ProgressCallback,
        Trainer,
        TrainerState,
        TrainingArguments,
        set_seed,
    )

# An older Trainer would divide the loss of an accumulated batch once more, in silence.
if not hasattr(Trainer, "loss_is_scaled_for_ga"):
    raise MissingExtraError(
        f"expected transformers >= 5.19 for fine-tuning, got {transformers.__version__}; "
        f'run: pip install --upgrade "mixout[hf]"'
    )


class TextTrainer(Trainer):
    """The Trainer with our optimizers, a loss that accumulation does not change, and evaluations that draw nothing."""

    # compute_loss divides by the number of examples or tokens in the whole accumulated batch. Left to the models, the
    # Trainer takes any that accepts keyword arguments to do so; BERT's does not, and its gradient would grow with
    # accumulation.
    loss_is_scaled_for_ga = True

    def __init__(
        self, *, settings: Settings, course: Course, order: Buckets | None, dev: DevSet | DevTexts, **options: Any
    ) -> None:
        config = options["model"].config
        # super() turns the cache of keys and values off, which is right for training and wrong in a checkpoint.
        self.cache = {"use_cache": config.use_cache} if hasattr(config, "use_cache") else {}
        super().__init__(**options)
        self.settings = settings
        self.course = course
        self.order = order
        self.dev = dev

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer of the settings."""
        if self.optimizer is None:
            trained: torch.nn.Module = self.model if model is None else model  # type: ignore[assignment]
            self.optimizer = optimizers.build(trained, self.settings)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any | None = None) -> torch.utils.data.Sampler[int] | None:
        """The order of the training examples: the one that was given, or the Trainer's own."""
        own: torch.utils.data.Sampler[int] | None = super()._get_train_sampler(train_dataset)
        return own if self.order is None else self.order

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The mean over the examples, or for a language model over the predicted tokens, of the whole batch."""
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        parts: torch.Tensor | int = self.dev.parts(labels)
        if model.training and num_items_in_batch is not None:
            parts = num_items_in_batch
        loss = self.dev.total(outputs["logits"], labels) / parts
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The batches of one step, and the number of parts over which their loss is the mean."""
        # Not the Trainer's count: it leaves out every label of -100, also a regression's, and asks the model's class.
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples, sum(self.dev.parts(batch["labels"]) for batch in samples)

    def prediction_step(self, *args: Any, **options: Any) -> tuple[Any, Any, Any]:
        """A batch of an evaluation."""
        loss, outputs, labels = super().prediction_step(*args, **options)
        return (loss if self.dev.mean_of_batches else None), outputs, labels

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


def build(
    settings: Settings,
    place: Path,
    loaded: Loaded,
    task: Task | Corpus,
    examples: list[Example],
    dev: DevSet | DevTexts,
    *,
    report: Report,
    bars: bool,
) -> TextTrainer:
    """Everything up to training, so that whatever can be wrong is found before a run is begun.

    Args:
        settings: resolved.
        place: the run's folder; an empty folder for the checkpoints is made in it.
        loaded: the model, with its method applied; it moves to the device.
        task: the data.
        examples: its training set, encoded.
        dev: its dev set, encoded; says what is minimised, scores each evaluation and keeps the last predictions.
        report: called with one line of progress now and then.
        bars: show progress bars.

    Raises:
        InputError: settings that transformers, the machine or the model does not take.
    """
    # Built later, on the device; what is wrong with it shows now.
    optimizers.groups(loaded.model, settings)
    args = _arguments(settings, place, bars=bars)
    steps_per_epoch = math.ceil(math.ceil(len(examples) / settings.batch_size) / settings.accumulation)
    course = Course(settings, steps_per_epoch, task, report)
    trainer = TextTrainer(
        settings=settings,
        course=course,
        order=_order(settings, examples),
        dev=dev,
        model=loaded.model,
        args=args,
        train_dataset=examples,
        eval_dataset=dev.sorted(),
        data_collator=dev.collator(loaded.tokenizer),
        processing_class=loaded.tokenizer,
        compute_metrics=lambda outputs: dev.score(outputs.predictions),
        preprocess_logits_for_metrics=dev.keep,
        # The record holds the way from the anchor at the end.
        callbacks=[course, MixoutCallback(log=False)],
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
    # What a language model knew before is part of the result. A resumed run has it in its checkpoint.
    run.args.eval_on_start = isinstance(run.dev, DevTexts) and checkpoint is None
    with float_attention():
        run.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    config: Any = run.model.config  # type: ignore[union-attr]
    del config.use_cache
    config.update(run.cache)
    return run.state


def _order(settings: Settings, examples: list[Example]) -> Buckets | None:
    if settings.batching == "random":
        return None
    lengths = [len(example["input_ids"]) for example in examples]
    return Buckets(lengths, batch_size=settings.batch_size, seed=settings.stream_seed("data"))


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
    # A language model's outputs are as wide as its vocabulary, for each token: no larger batches than in training.
    judged = settings.batch_size if settings.task_type == CAUSAL else max(32, settings.batch_size)
    return TrainingArguments(
        output_dir=str(place / folder.CHECKPOINTS),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=judged,
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
