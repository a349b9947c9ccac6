"""What came out of a run becomes its record: history, scores, distance, coverage; and has it learned anything?

A run is measured against the best constant answer, which needs no text: the classes at their shares of the training
rows (cross-entropy), or the mean of the training values (squared error). It has hardly learned if its training loss
stayed above ``LEARNED`` times that, and its dev loss did so too, or its score is that of chance. A language model is
measured against itself before training: it has learned if its loss on the dev text fell. A run diverges if
the training loss is not finite, or in the mean of at least ten steps more than ``FAR`` times as large as at the start
and as a constant answer's: then it is stopped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

import mixout
from mixout._names import count
from mixout.distances import distance
from mixout.errors import needs
from mixout.finetune import defaults, environment
from mixout.finetune.batches import DevSet
from mixout.finetune.causal import DevTexts
from mixout.finetune.defaults import in_short
from mixout.finetune.models import Loaded
from mixout.finetune.record import Evaluation, Progress, Record
from mixout.finetune.run_methods import Interpolate, P
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Task
from mixout.finetune.tasks.files import SPLIT
from mixout.methods import MixingMethod, OutputAnchor, spell
from mixout.parts import reshard_

with needs("hf", "fine-tuning"):
    from transformers import TrainerState

LEARNED = 0.95
FAR = 4.0
_ROUNDING = 1e-4  # a loss that falls by a smaller share has not fallen


def record(
    settings: Settings,
    task: Task,
    loaded: Loaded,
    dev: DevSet | DevTexts,
    state: TrainerState,
    *,
    diverged: bool,
    closeness: dict[str, float],
    start: Mapping[str, torch.Tensor],
    **known: Any,  # noqa: ANN401
) -> Record:
    """The record of a run that has ended; ``known`` are further fields of it."""
    history = state.log_history
    training = tuple(_progress(entry) for entry in history if "loss" in entry)
    evaluations = tuple(_evaluation(entry, task) for entry in history if "eval_loss" in entry)
    # Pairs of tensors where they are: a second copy of all the weights may not fit on the GPU.
    reshard_(loaded.model)
    distances = distance({name: (p, start[name]) for name, p in loaded.model.named_parameters() if name in start})
    losses = [entry.loss for entry in training] + [entry.loss for entry in evaluations]
    scores = evaluations[-1].scores | closeness
    result = Record(
        status="diverged" if diverged or not all(map(math.isfinite, losses)) else "finished",
        settings=settings,
        digest=settings.digest(),
        metric=task.metric,
        score=scores[task.metric],
        scores=scores,
        standard_errors=dev.standard_errors(),
        chance=dev.chance(),
        evaluations=evaluations,
        training=training,
        predictions=dev.predictions,
        labels=task.labels,
        train_size=len(task.train),
        dev_size=len(task.dev),
        steps=training[-1].step,
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        new_parameters=tuple(sorted(loaded.new)),
        distance=distances.total,
        distance_by_layer=distances.by_layer,
        gradient=next((m.gradient for m in settings.methods if isinstance(m, MixingMethod)), None),
        seconds=next(entry["seconds"] for entry in reversed(history) if "seconds" in entry),
        evaluation_seconds=sum(entry.get("eval_runtime", 0.0) for entry in history),
        peak_memory=environment.peak_memory(),
        source={"model": loaded.source, "data": task.source},
        versions=environment.versions(),
        hardware=environment.hardware() | environment.launch(),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        pairs=task.train.pair is not None,
        **known,
    )
    return replace(result, verdict=judge(result, loaded.model, task))


def _progress(entry: Mapping[str, Any]) -> Progress:
    values = {name: entry[name] for name in ("step", "epoch", "loss", "learning_rate")}
    return Progress(gradient_norm=entry.get("grad_norm"), **values)


def _evaluation(entry: Mapping[str, Any], task: Task) -> Evaluation:
    scores = {name: entry[f"eval_{name}"] for name in task.metrics}
    return Evaluation(step=entry["step"], epoch=entry["epoch"], loss=entry["eval_loss"], scores=scores)


def coverage(model: torch.nn.Module) -> dict[str, Any]:
    """What a model's method covers, for the record."""
    covered = mixout.coverage(model)
    return {
        "layers_mixed": len(covered.mixed),
        "layers_plain": len(covered.plain),
        "layers_bypassed": len(covered.bypassed),
        "parameters_mixed": covered.parameters_mixed,
        "flops_mixed": covered.flops_mixed,
        "dropouts_on": len(covered.dropouts),
    }


def constant_losses(task: Task, *, balanced: bool = False) -> tuple[float, float] | None:
    """The loss of the best constant answer on the training rows, and of the same answer on the dev rows.

    None for a language model, which is trained already. Where classes are balanced by weights, the best constant answer
    gives all the same probability.

    Example:
        >>> from mixout.finetune.tasks import Split
        >>> split = Split(text=("a", "b", "c", "d"), label=(0, 1, 0, 1))
        >>> words = {"name": "t", "labels": ("no", "yes"), "metrics": ("f1",), "metric": "f1", "source": ""}
        >>> constant_losses(Task(train=split, dev=split, **words)) == (math.log(2), math.log(2))
        True
    """
    if task.kind == "text":
        return None
    train: Sequence[Any] = task.train.label
    dev: Sequence[Any] = task.dev.label
    if task.kind == "labels":
        # Each label is a task of its own: present or absent.
        losses = [_entropies(*parts) for parts in zip(zip(*train, strict=True), zip(*dev, strict=True), strict=True)]
        return math.fsum(loss for loss, _ in losses) / len(losses), math.fsum(loss for _, loss in losses) / len(losses)
    if task.kind == "tags":
        return _entropies(*([tag for row in part for tag in row] for part in (train, dev)))
    if task.labels is None:
        mean = math.fsum(train) / len(train)
        train_loss, dev_loss = (math.fsum((value - mean) ** 2 for value in part) / len(part) for part in (train, dev))
        return train_loss, dev_loss
    if balanced:
        return math.log(len(task.labels)), math.log(len(task.labels))
    return _entropies(train, dev)


def _entropies(train: Sequence[int], dev: Sequence[int]) -> tuple[float, float]:
    """Cross-entropy of the training labels with their own shares, and of the dev labels with these."""
    losses = {label: -math.log(count / len(train)) for label, count in Counter(train).items()}
    # A class without a training row counts as half a row.
    rare = math.log(2 * len(train))
    train_loss, dev_loss = (math.fsum(losses.get(label, rare) for label in part) / len(part) for part in (train, dev))
    return train_loss, dev_loss


def diverges(loss: float, reference: float) -> bool:
    """Whether a training loss is out of hand; ``reference``: the larger of the first loss and a constant answer's.

    Example:
        >>> [diverges(loss, reference=0.7) for loss in (0.1, 2.7, 2.9, math.nan)]
        [False, False, True, True]
    """
    return not loss <= FAR * reference


def has_learned(record: Record, task: Task) -> bool:
    """Whether the training loss has left that of a constant answer; dev rows are not asked.

    True where that cannot be told: for a language model, and where smoothed labels or a penalty make any loss large.
    """
    constant = constant_losses(task, balanced=record.settings.class_weights == "balanced")
    larger = record.settings.label_smoothing > 0 or any(isinstance(m, OutputAnchor) for m in record.settings.methods)
    if record.status == "diverged" or constant is None or constant[0] == 0 or larger:
        return record.status != "diverged"
    return record.training[-1].loss <= LEARNED * constant[0]


def judge(record: Record, model: nn.Module, task: Task) -> str:
    """One sentence on a failed run, with what to try next; empty for a run that has learned."""
    constant = constant_losses(task, balanced=record.settings.class_weights == "balanced")
    training, dev = record.training[-1].loss, record.evaluations[-1].loss
    steps = f"{count(record.steps, 'step')} at learning rate {in_short(record.settings.learning_rate)}"
    if record.status == "diverged":
        answer = "" if constant is None else f", a constant answer has {constant[0]:.3f}"
        verdict = f"diverged: the training loss is {training:.3f} after {steps}{answer}"
        return f"{verdict}. Try, in this order: {'; '.join(_shorter(record.settings, model, task))}"
    if constant is None:
        return _against_start(record, model, task, steps)
    if constant[0] == 0:
        return ""
    learned, at_chance = training <= LEARNED * constant[0], record.score <= record.chance
    # A constant answer may be so poor on the dev rows that even an untrained model has a lower loss there.
    if not learned and (dev > LEARNED * constant[1] or at_chance):
        advice = "; ".join([*_more(record, model, task, constant[0]), "see whether the texts tell the labels"])
        side = "final" if record.fitted else "dev"
        return (
            f"it has hardly learned: training loss {training:.3f} and {side} loss {dev:.3f} after {steps}, a constant "
            f"answer has {constant[0]:.3f} and {constant[1]:.3f}. Try, in this order: {advice}"
        )
    if at_chance:
        longer = _longer(record)
        doubt = "the texts tell the labels" if SPLIT in task.source else "both files mean the same by their labels"
        advice = "; ".join([*longer, f"see whether {doubt}", "more training rows"])
        return (
            f"what it has learned does not carry over to the dev rows: {record.metric} {record.score:.4f}, a constant "
            f"answer has {record.chance:.4f}, though the training loss fell to {training:.3f} ({constant[0]:.3f} for a "
            f"constant answer). Try, in this order: {advice}{'' if longer else _fewer(record)}"
        )
    return ""


def _against_start(record: Record, model: nn.Module, task: Task, steps: str) -> str:
    """The verdict on a language model: it has learned if it predicts the dev text better than before it was trained."""
    start, end = record.evaluations[0], record.evaluations[-1]
    moved_back = any(isinstance(method, Interpolate) for method in record.settings.methods)
    if start.step > 0 or moved_back or end.loss < (1 - _ROUNDING) * start.loss:
        return ""
    verdict = f"dev loss {end.loss:.3f} after {steps}, {start.loss:.3f} before"
    first, last = record.training[0].loss, record.training[-1].loss
    if last < LEARNED * first:
        return (
            f"what it has learned does not carry over to the dev text: {verdict}, though the training loss fell from "
            f"{first:.3f} to {last:.3f}. Try, in this order: more training text{_fewer(record)}"
        )
    advice = "; ".join(_more(record, model, task, start.loss))
    return f"it has hardly learned: {verdict}, training loss {last:.3f}. Try, in this order: {advice}"


def _fewer(record: Record) -> str:
    return f"; fewer steps, {_lasting(record, record.steps // 2)}" if record.steps > 1 else ""


def _longer(record: Record) -> list[str]:
    settings, steps = record.settings, record.steps
    if steps >= 0.9 * defaults.STEPS:
        return []
    early = record.training[-1].epoch < settings.epochs if settings.max_steps is None else steps < settings.max_steps
    if settings.patience is not None and early:
        return [f"more steps: a higher --patience than {settings.patience}, or none"]
    return [f"more steps: {_lasting(record, defaults.STEPS)} ({defaults.STEPS} steps)"]


def _more(record: Record, model: nn.Module, task: Task, constant: float) -> list[str]:
    settings, last, advice = record.settings, record.training[-1], _longer(record)
    rate, usual = settings.learning_rate, _usual(settings, model, task)
    # An untrained model may start far above a constant answer. If the loss rose above both, no rate was too low.
    risen = last.loss > max(record.training[0].loss, constant) / LEARNED
    if usual is not None and rate < usual / 1.5 and not risen:
        advice.append(f"the usual learning rate for this model: --learning-rate {in_short(usual)}")
    elif usual is not None and rate > 3 * usual:
        advice.insert(0, f"a lower learning rate, usual for this model: --learning-rate {in_short(usual)}")
    elif risen:
        advice.append(_shorter(settings, model, task)[0])
    elif last.loss <= constant:
        advice.append(f"twice the learning rate: --learning-rate {in_short(2 * rate)}")
    methods = [replace(m, p=P) if isinstance(m, MixingMethod) and m.p > P else m for m in settings.methods]
    if methods != list(settings.methods):
        advice.append(f"a smaller p: --method '{spell(methods)}'")
    return [*advice, f"another seed: --seed {settings.seed + 1}"]


def _lasting(record: Record, steps: int) -> str:
    """The command-line option for a run of ``steps`` steps."""
    if record.settings.max_steps is not None:
        return f"--max-steps {steps}"
    epochs = record.training[-1].epoch * steps / record.steps
    # For more steps whole epochs; for fewer perhaps a part of one.
    return f"--epochs {math.ceil(epochs) if steps > record.steps else float(f'{epochs:.2g}'):g}"


def _shorter(settings: Settings, model: nn.Module, task: Task) -> list[str]:
    usual, advice = _usual(settings, model, task), []
    rate = settings.learning_rate / 10 if usual is None else min(usual, settings.learning_rate / 4)
    advice.append(f"a lower learning rate: --learning-rate {in_short(rate)}")
    if settings.precision == "fp16":
        advice.append("more exact arithmetic: --precision bf16 or fp32")
    if settings.max_grad_norm == 0:
        advice.append("clipped gradients: --max-grad-norm 1")
    if settings.warmup < 0.1:
        advice.append("a longer warm-up: --warmup 0.1")
    return advice


def _usual(settings: Settings, model: nn.Module, task: Task) -> float | None:
    """The learning rate that the rule gives; None if there is no rule."""
    return None if settings.optimizer == "sgd" else defaults.learning_rate(settings, model, task)[0]
