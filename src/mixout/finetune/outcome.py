"""What came out of a run becomes its record: history, scores, distance, coverage, and whether it has failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

import mixout
from mixout.distances import distance
from mixout.finetune import environment, verdict
from mixout.finetune.batches import DevSet
from mixout.finetune.causal import DevTexts
from mixout.finetune.extras import needs
from mixout.finetune.models import Loaded
from mixout.finetune.record import Evaluation, Progress, Record
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Task
from mixout.finetune.tasks.documents import Corpus
from mixout.methods import MixingMethod

with needs("hf", "fine-tuning"):
    from transformers import TrainerState


def record(
    settings: Settings,
    chosen: dict[str, str],
    task: Task | Corpus,
    loaded: Loaded,
    dev: DevSet | DevTexts,
    state: TrainerState,
    *,
    diverged: bool,
    closeness: dict[str, float],
    interpolated: tuple[dict[str, float], ...],
    covered: dict[str, Any],
    start: Mapping[str, torch.Tensor],
    fingerprints: dict[str, str | None],
) -> Record:
    """The record of a run that has ended.

    Args:
        settings: complete.
        chosen: which of them nobody named, and why they are what they are.
        task: with the training data that were used.
        loaded: the trained model, without adapters.
        dev: with the last predictions.
        state: the Trainer's, with the history of the whole run.
        diverged: whether it was stopped for that.
        closeness: how far the model's answers moved.
        interpolated: scores of the models between the start and the end.
        covered: from :func:`coverage`, before adapters were merged.
        start: pretrained values of the parameters that have some.
        fingerprints: of what went in.
    """
    history = state.log_history
    training = tuple(_progress(entry) for entry in history if "loss" in entry)
    evaluations = tuple(_evaluation(entry, task) for entry in history if "eval_loss" in entry)
    # Pairs as they lie: a second copy of all the weights need not fit on the GPU.
    moved = distance({name: (p, start[name]) for name, p in loaded.model.named_parameters() if name in start})
    losses = [entry.loss for entry in training] + [entry.loss for entry in evaluations]
    scores = evaluations[-1].scores | closeness
    found = Record(
        status="diverged" if diverged or not all(map(math.isfinite, losses)) else "finished",
        settings=settings,
        chosen=chosen,
        digest=settings.digest(),
        metric=task.metric,
        score=scores[task.metric],
        scores=scores,
        interpolated=interpolated,
        chance=dev.chance(),
        evaluations=evaluations,
        training=training,
        predictions=dev.predictions,
        labels=task.labels,
        train_size=len(task.train),
        dev_size=len(task.dev),
        steps=state.global_step,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        new_parameters=tuple(sorted(loaded.new)),
        distance=moved.total,
        distance_by_layer=moved.by_layer,
        coverage=covered,
        gradient=next((m.gradient for m in settings.methods if isinstance(m, MixingMethod)), None),
        seconds=next(entry["seconds"] for entry in reversed(history) if "seconds" in entry),
        evaluation_seconds=sum(entry.get("eval_runtime", 0.0) for entry in history),
        peak_memory=environment.peak_memory(),
        source={"model": loaded.source, "data": task.source},
        fingerprints=fingerprints,
        versions=environment.versions(),
        hardware=environment.hardware(),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(found, verdict=verdict.judge(found, loaded.model, task))


def _progress(entry: Mapping[str, Any]) -> Progress:
    return Progress(
        step=entry["step"],
        epoch=entry["epoch"],
        loss=entry["loss"],
        gradient_norm=entry.get("grad_norm"),
        learning_rate=entry["learning_rate"],
    )


def _evaluation(entry: Mapping[str, Any], task: Task | Corpus) -> Evaluation:
    scores = {name: entry[f"eval_{name}"] for name in task.metrics}
    return Evaluation(step=entry["step"], epoch=entry["epoch"], loss=entry["eval_loss"], scores=scores)


def coverage(model: torch.nn.Module) -> dict[str, Any]:
    """What the method on a model covers, for the record."""
    found = mixout.coverage(model)
    return {
        "layers_mixed": len(found.mixed),
        "layers_plain": len(found.plain),
        "layers_bypassed": len(found.bypassed),
        "parameters_mixed": found.parameters_mixed,
        "flops_mixed": found.flops_mixed,
        "dropouts_on": len(found.dropouts),
    }
