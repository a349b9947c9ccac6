"""The Trainer of transformers, set up so that a run is exactly repeatable and exactly resumable.

Three random streams: the new head (drawn by the loader); the order of the examples (the Trainer's ``data_seed``, or
``Buckets``); and torch's global stream, which only masks and dropouts draw from while training.

There is no training loop here. Several processes (torchrun) share each batch, and the result is that of one: masks are
the same on all of them, the loss is the mean over the whole batch, and examples that are repeated at an epoch's end, so
that all have the same number, do not count.
"""

# ruff: noqa: ANN401  the signatures of the overridden methods are those of transformers
from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from mixout.errors import MissingExtraError, needs
from mixout.finetune import environment, folder, optimizers, sharding
from mixout.finetune.batches import IGNORED, Buckets, DevSet, Example, collator
from mixout.finetune.causal import DevTexts
from mixout.finetune.course import Bars, Course, Report, arguments
from mixout.finetune.defaults import steps_per_epoch
from mixout.finetune.models import Loaded
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Task
from mixout.integrations.huggingface import HeadFirst, MixoutCallback
from mixout.methods import OutputAnchor
from mixout.methods.output import output_penalty

with needs("hf", "fine-tuning"):
    import accelerate  # noqa: F401  without it the Trainer refuses later, and in other words
    import transformers
    from safetensors.torch import load_model
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState, set_seed

# An older Trainer would divide the loss of an accumulated batch once more, in silence.
if not hasattr(Trainer, "loss_is_scaled_for_ga"):
    raise MissingExtraError(
        f"expected transformers >= 5.19 for fine-tuning, got {transformers.__version__}; "
        f'run: pip install --upgrade "mixout[hf]"'
    )


class TextTrainer(Trainer):
    """The Trainer with our optimizers, a loss that accumulation does not change, and evaluations that draw nothing."""

    # compute_loss divides by the number of examples or tokens in the whole accumulated batch. Without this the Trainer
    # assumes that every model with keyword arguments does so; BERT does not, and its gradient would grow with
    # accumulation.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        settings: Settings,
        place: Path,
        loaded: Loaded,
        task: Task,
        examples: list[Example],
        dev: DevSet | DevTexts,
        *,
        report: Report,
        bars: bool,
    ) -> None:
        """Set up all; InputError for settings that transformers, the machine or the model does not take."""
        self.settings, self.dev = settings, dev
        self.course = Course(settings, steps_per_epoch(len(examples), settings), task, report)
        self.order = None
        if settings.batching == "bucketed":
            lengths = [len(example["input_ids"]) for example in examples]
            self.order = Buckets(lengths, batch_size=settings.batch_size, seed=settings.stream_seed("data"))
        self.anchored = next((method.on for method in settings.methods if isinstance(method, OutputAnchor)), None)
        model: Any = loaded.model
        if settings.gradient_checkpointing:
            # By the new name, if transformers has it.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        # super() turns the cache of keys and values off, which is right for training and wrong in a checkpoint.
        self.cache = {"use_cache": model.config.use_cache} if hasattr(model.config, "use_cache") else {}
        args = arguments(settings, place, bars=bars)
        head_first = [HeadFirst(settings.head_first, new=loaded.new)] if settings.head_first else []
        with environment.without_launcher():
            super().__init__(
                model=model,
                args=args,
                train_dataset=examples,
                eval_dataset=dev.sorted(),
                data_collator=collator(task.kind, loaded.tokenizer),
                processing_class=loaded.tokenizer,
                compute_metrics=lambda outputs: dev.score(outputs.predictions),  # type: ignore[arg-type]
                preprocess_logits_for_metrics=dev.keep,
                # The record holds the distance from the anchor at the end.
                callbacks=[self.course, MixoutCallback(log=False), *head_first],
            )
        self.remove_callback(ProgressCallback if bars else PrinterCallback)
        if bars:
            self.add_callback(Bars)
        self.course.log = self.log_between

    def create_accelerator_and_postprocess(self) -> None:
        """Set Accelerate up, and tell it of FSDP2 where needed."""
        super().create_accelerator_and_postprocess()
        sharding.tell(self.accelerator)
        self.is_fsdp_enabled = self.is_fsdp_enabled or environment.fsdp2()

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer of the settings."""
        if self.optimizer is None:
            trained: torch.nn.Module = self.model if model is None else model  # type: ignore[assignment]
            self.optimizer = optimizers.build(trained, self.settings)
            self.stepped = [[*group["params"]] for group in self.optimizer.param_groups]
        return self.optimizer

    def create_scheduler(self, *args: Any, **options: Any) -> torch.optim.lr_scheduler.LRScheduler:
        """Build the schedule, after the optimizer got its own parameters back.

        Under FSDP2 Accelerate looks for them by address, and all parts without a row have the same one.
        """
        for group, parameters in zip(self.optimizer.param_groups, self.stepped, strict=True):  # type: ignore[union-attr]
            group["params"] = parameters
        return super().create_scheduler(*args, **options)

    def _get_train_sampler(self, train_dataset: Any | None = None) -> torch.utils.data.Sampler[int] | None:
        """The order of the training examples: the one that was given, or the Trainer's own."""
        sampler: torch.utils.data.Sampler[int] | None = super()._get_train_sampler(train_dataset)
        return sampler if self.order is None else self.order

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The mean over the examples, or for a language model over the predicted tokens, of the whole batch."""
        labels = inputs["labels"]
        hidden = {"output_hidden_states": True} if model.training and self.anchored == "hidden" else {}
        unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**unlabelled, **hidden)
        parts: torch.Tensor | int = self.dev.parts(labels)
        if model.training and num_items_in_batch is not None:
            # Gradients are averaged over the processes, each of which has a part of the batch.
            parts = num_items_in_batch / self.args.world_size
        loss = self.dev.total(outputs["logits"], labels, training=model.training) / parts
        # While only the head is trained, hidden states do not change.
        states = outputs.get("hidden_states") if hidden else None
        if model.training and self.anchored is not None and (not states or states[-1].requires_grad):
            # The penalty is a mean over the batch, weighted by the batch's share of the step.
            # Labels tell which logits count, but nothing about hidden states.
            batch = unlabelled if hidden else inputs
            loss = loss + output_penalty(model, batch, outputs) * self.dev.parts(labels) / parts
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """A batch forwards and backwards."""
        loss = super().training_step(*args, **options)
        self.course.add(loss)
        return loss

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The batches of one step, and the number of parts over which their loss is the mean."""
        # Not the Trainer's count: it leaves out every label of -100, also in a regression, and asks the model's class.
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.world_size == 1:
            return samples, sum(self.dev.parts(batch["labels"]) for batch in samples)
        self._leave_out_repeated(samples)
        parts = torch.tensor(sum(int(self.dev.parts(batch["labels"])) for batch in samples), device=device)
        return samples, self.accelerator.gather(parts).sum()

    def _leave_out_repeated(self, samples: list[Any]) -> None:
        """Remove the labels of examples that an epoch's last batches repeat, so that all processes have as many."""
        size = self.args.per_device_train_batch_size
        remaining = len(self.train_dataset) % (size * self.args.world_size)  # type: ignore[arg-type]
        if samples and remaining and self.accelerator.gradient_state.end_of_dataloader:
            labels = samples[-1]["labels"]
            ignored = math.nan if labels.is_floating_point() else IGNORED
            labels[min(size, max(0, remaining - size * self.args.process_index)) :] = ignored

    def prediction_step(self, *args: Any, **options: Any) -> tuple[Any, Any, Any]:
        """A batch of an evaluation, without its loss: the scores hold that of all outputs."""
        return None, *super().prediction_step(*args, **options)[1:]

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Evaluate, with the clock of the training stopped and the global random stream left as it was."""
        began = time.perf_counter()
        # An iterator over batches draws a seed for its workers: masks must not depend on how often one evaluates.
        with environment.own_streams():
            metrics: dict[str, float] = super().evaluate(*args, **options)
        self.course.paused += time.perf_counter() - began
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the seconds of training, so that they go into the checkpoint."""
        if "loss" in logs:
            logs["seconds"] = self.course.seconds()
        super().log(logs, start_time)

    def log_between(self, logs: dict[str, float]) -> None:
        """Give loggers a point that is not part of the run's history."""
        logs = {**logs, "learning_rate": self._get_learning_rate(), "epoch": self.state.epoch or 0.0}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def run(self, checkpoint: Path | None) -> TrainerState:
        """Train the model in place."""
        # The masks' stream starts here, whatever the set-up has drawn; a resumed run gets its saved one back.
        set_seed(self.args.seed)
        # A language model's loss before training is part of the result. A resumed run has it in its checkpoint.
        self.args.eval_on_start = isinstance(self.dev, DevTexts) and checkpoint is None
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        # Free memory for a copy of the weights, to measure how far the model has moved.
        self.optimizer.state.clear()  # type: ignore[union-attr]
        if self.settings.keep_best:
            self._restore_best()
        config: Any = self.model.config  # type: ignore[union-attr]
        del config.use_cache
        config.update(self.cache)
        return self.state

    def _restore_best(self) -> None:
        """Give the model the weights of its best evaluation, and its predictions, where a later one was not as good."""
        evaluations, best = self.course.evaluations(self.state)
        if best is evaluations[-1]:
            return
        model: Any = self.model
        load_model(model, str(Path(str(self.args.output_dir)) / folder.BEST))
        # From now on evaluations are logged at the step of these weights.
        self.state.global_step, self.state.epoch = int(best["step"]), best["epoch"]
        self.evaluate()

    def scores(self) -> dict[str, float]:
        """Loss and scores of the model as it is, on the dev set; neither history nor predictions change."""
        kept = self.dev.predictions, self.dev.scored_by
        metrics = self.predict(self.eval_dataset).metrics or {}  # type: ignore[arg-type]
        self.dev.predictions, self.dev.scored_by = kept
        return {name: metrics[f"test_{name}"] for name in ("loss", *self.dev.task.metrics)}
