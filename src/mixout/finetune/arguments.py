"""Settings as arguments of the Trainer, whatever a launcher has left in the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mixout.errors import InputError
from mixout.finetune import folder
from mixout.finetune.environment import processes
from mixout.finetune.extras import needs
from mixout.finetune.settings import CAUSAL, Settings

with needs("hf", "fine-tuning"):
    from transformers import TrainingArguments


_PLACES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_LAUNCHER = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO", "ACCELERATE_DOWNCAST")


def arguments(settings: Settings, place: Path, *, bars: bool) -> TrainingArguments:
    """What the Trainer is told.

    Raises:
        InputError: settings that transformers or the machine does not take.
    """
    if settings.batch_size % processes():
        raise InputError(
            f"expected a batch size that {processes()} processes can share, got {settings.batch_size}; choose a "
            f"multiple of {processes()}"
        )
    try:
        with without_launcher():
            args = _training_arguments(settings, place, bars=bars)
    # Such as bf16 on a GPU that has none, or an accelerate that is too old.
    except (ImportError, ValueError) as error:
        raise InputError(f"expected settings that transformers takes on this machine, got: {error}") from error
    if args.n_gpu > 1:
        # Several visible GPUs would mean DataParallel, whose replicas leave the anchors on the first.
        args._n_gpu = 1
    return args


@contextmanager
def without_launcher() -> Iterator[None]:
    """Hide what ``accelerate launch`` or ``accelerate config`` says of precision and compilation: settings decide.

    And what says nothing: an empty number of processes, as some schedulers leave it, is none.
    """
    empty = [name for name in _PLACES if os.environ.get(name) == ""]
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith(_LAUNCHER) or name in empty}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _training_arguments(settings: Settings, place: Path, *, bars: bool) -> TrainingArguments:
    # A language model's outputs are as wide as its vocabulary, for each token: no larger batches than in training.
    judged = settings.batch_size if settings.task_type == CAUSAL else max(32, settings.batch_size)
    return TrainingArguments(
        output_dir=str(place / folder.CHECKPOINTS),
        per_device_train_batch_size=settings.batch_size // processes(),
        per_device_eval_batch_size=judged,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
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
        # Of a frozen body no gradient comes.
        ddp_find_unused_parameters=settings.head_first > 0,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
