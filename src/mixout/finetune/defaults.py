r"""Learning rate, epochs, batch size and method that the user leaves open: one rule, from model, data and method.

Its reasons, and what it was compared with (``benchmarks/defaults.py``), are in docs/finetune.md.

.. math:: \eta = 10^{-4} \left(\frac{384}{\text{width}}\right)^{1.64} (1-p)^{-0.6} f, \qquad
          f = 4 \text{ if } C > 7 \text{, else } 1, \qquad 5 \cdot 10^{-6} \le \eta \le 5 \cdot 10^{-4}

The exponent goes through 1e-4 for MiniLM (width 384) and 2e-5 for BERT-large (1,024); p is that of a method that mixes
or masks, whose steps are shorter. To tell many classes C apart, or to tag words, weights must go farther; so must those
of a model with few layers, if rows are few (benchmarks/results/classes.csv, small.csv). The epochs
make ``STEPS`` steps, within bounds. Large data are seen fewer times, so that a first run ends: ``MOST_ROWS`` rows in
all, but each at least once. LoRA takes ten times the rate, which Schulman et al. 2025 ("LoRA without regret") found
right across models and data; f is 1 for it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from mixout._names import count
from mixout.errors import InputError
from mixout.finetune.run_methods import Lora
from mixout.finetune.settings import AUTO, DECAY, Settings
from mixout.finetune.tasks import Task
from mixout.methods import MixingMethod

STEPS = 150
MANY = 400  # rows
WIDER = "anchor_decay(radius=0.01)+dropout(0.0)"
MOST_ROWS = 100_000
FEW_CLASSES = 7
FARTHER = 4  # times, with more classes, and for tags of words: learning rate and radius
DEEP = 6  # layers
SHALLOW = "anchor_decay(radius=0.02)"  # below MANY rows, for a model that is not DEEP
WIDEST = "anchor_decay(radius=0.04)+dropout(0.0)"
LORA = 10  # times the learning rate of full fine-tuning
_EPOCHS = (3, 30)
_RATES = (5e-6, 5e-4)
_CHARACTERS = 4  # per token, roughly


def complete(settings: Settings, model: nn.Module, task: Task) -> tuple[Settings, dict[str, str]]:
    """Choose what the settings leave open: the settings, and for each choice its value and reason in words.

    InputError for the learning rate of an optimizer for which there is no rule.

    Example:
        >>> from mixout.finetune.models import outline
        >>> from mixout.finetune.tasks import load_task
        >>> chosen, why = complete(Settings(), outline("minilm").model, load_task("docstrings"))
        >>> chosen.learning_rate, chosen.batch_size, chosen.epochs
        (0.0004, 16, 3.0)
        >>> print(why["learning_rate"])
        learning rate 4e-4: for a model of width 384, 4 times as high for 8 classes
    """
    why: dict[str, str] = {}
    if settings.method == AUTO:
        method, reason = _method(settings, model, task)
        settings = replace(settings, method=method)
        why["method"] = f"method {method}: {reason}"
    if settings.learning_rate is None:
        value, reason = learning_rate(settings, model, task)
        settings = replace(settings, learning_rate=value)
        why["learning_rate"] = f"learning rate {in_short(value)}: {reason}"
    rows, rows_text = _rows(settings, task)
    if settings.batch_size is None:
        settings = replace(settings, batch_size=batch_size(rows))
        why["batch_size"] = f"batch size {settings.batch_size}: for {rows_text}"
    steps = steps_per_epoch(rows, settings)
    if settings.epochs is None and settings.max_steps is not None:
        settings = replace(settings, epochs=settings.max_steps / steps)
    elif settings.epochs is None:
        settings = replace(settings, epochs=epochs(rows, steps))
        why["epochs"] = (
            f"{count(settings.epochs, 'epoch')}: {count(round(steps * settings.epochs), 'step')} over {rows_text}"
        )
    return settings, why


def _method(settings: Settings, model: nn.Module, task: Task) -> tuple[str, str]:
    """The method of a run that names none, and why."""
    if task.kind == "text":
        return DECAY[settings.task_type], (
            "the default for language models, which learn too little within 0.005; output_anchor(1.0) forgets "
            "less, for one forward pass more in each step"
        )
    if outputs := _many_outputs(task):
        return WIDEST, f"for {outputs} weights go {FARTHER} times as far, without the model's own dropout"
    if len(task.train) >= MANY:
        return WIDER, f"from {MANY} rows on weights may go farther, without the model's own dropout"
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if isinstance(layers, int) and 0 < layers < DEEP:
        return SHALLOW, f"the weights of {count(layers, 'layer')}, fewer than {DEEP}, go {FARTHER} times as far"
    return DECAY[settings.task_type], f"below {MANY} rows weights stay near the pretrained ones"


def _many_outputs(task: Task) -> str:
    """What makes weights go farther, in words; empty for most tasks."""
    classes = len(task.labels or ()) if task.kind == "classes" else 0
    return "tags of words" if task.kind == "tags" else f"{classes} classes" if classes > FEW_CLASSES else ""


def learning_rate(settings: Settings, model: nn.Module, task: Task) -> tuple[float, str]:
    """The learning rate for a model, a method and a task, and why; InputError for SGD, which has no rule."""
    if settings.optimizer == "sgd":
        raise InputError(
            "expected a learning rate beside optimizer='sgd', for which there is no default, got none; "
            "name one, such as --learning-rate 1e-2"
        )
    width = width_of(model)
    rate, reason = 1e-4 * (384 / width) ** 1.64, f"for a model of width {width:,}"
    # The p of methods that mask the gradient: Adam's steps are shorter then.
    mixing = [method for method in settings.methods if isinstance(method, MixingMethod) and method.anchor != "zero"]
    p = max((method.p for method in mixing if method.gradient != "dense"), default=0.0)
    if 0 < p < 1:
        rate, reason = rate * (1 - p) ** -0.6, f"{reason}, and p = {p:g}"
    low_rank = any(isinstance(method, Lora) for method in settings.methods)
    if (outputs := _many_outputs(task)) and not low_rank:
        rate, reason = rate * FARTHER, f"{reason}, {FARTHER} times as high for {outputs}"
    rate = min(_RATES[1], max(_RATES[0], rate))
    if low_rank:
        rate, reason = LORA * rate, f"{reason}, {LORA} times as high for lora"
    return float(f"{rate:.1e}"), reason


def steps_per_epoch(rows: int, settings: Settings) -> int:
    """Optimizer steps in one pass over the training data."""
    return math.ceil(math.ceil(rows / settings.batch_size) / settings.accumulation)


def batch_size(rows: int) -> int:
    """Rows in a batch: few rows in small batches, since steps are what they lack."""
    return 8 if rows < 200 else 16 if rows < 5000 else 32


def epochs(rows: int, steps: int) -> float:
    """The epochs that make ``STEPS`` steps, with ``steps`` in each epoch, within bounds."""
    low, high = _EPOCHS
    wanted = min(high, max(low, math.ceil(STEPS / steps)))
    return float(max(1, min(wanted, MOST_ROWS // rows)))


def width_of(model: nn.Module) -> int:
    """The size of a model's hidden states."""
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    return width if isinstance(width, int) else int(model.get_input_embeddings().weight.shape[-1])  # type: ignore[operator]


def _rows(settings: Settings, task: Task) -> tuple[int, str]:
    """The number of rows, or of documents' windows, estimated by their characters; and the same in words."""
    if task.kind != "text":
        return len(task.train), count(len(task.train), "row")
    window = _CHARACTERS * settings.max_length
    pieces = sum(math.ceil(max(1, len(text)) / window) for text in task.train.text)
    return pieces, f"{count(pieces, 'piece')} of text"


def in_short(value: float) -> str:
    """A learning rate as people write it.

    Example:
        >>> in_short(1e-4), in_short(3.2e-05)
        ('1e-4', '3.2e-5')
    """
    number, _, power = f"{value:.1e}".partition("e")
    return f"{float(number):g}e{int(power)}"
