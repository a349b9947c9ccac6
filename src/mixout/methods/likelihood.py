"""What a model predicts in a batch: one row of logits for each label, token or example that counts.

Understands what models of transformers return and take, and plain tensors. A causal language model's logits belong to
the next token; all others' to their own place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any] | Sequence[Tensor] | Tensor

_IGNORED = -100
_PREDICTS_NEXT = re.compile(r"CausalLM|LMHead|ForConditionalGeneration")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a batch's predictions that count are, and should be."""

    logits: Tensor  # (rows, classes)
    labels: Tensor | None  # of each row, if the batch says; floats where there is one class (regression)


def as_call(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with: a mapping by keyword, of a pair (inputs, labels) the inputs, a tensor as it is."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch if isinstance(batch, Tensor) else batch[0],), {}


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode, and each module's own flag again: no dropout, and mixed layers read their weight as it is."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def predictions(model: nn.Module, batch: Batch, outputs: Any) -> Predictions:  # noqa: ANN401
    """The rows of ``outputs`` that count.

    Of a language model these are the predictions of tokens that have a label, or, in a batch without labels, of those
    that are attended to. The first token is never predicted.
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
    if not isinstance(logits, Tensor):
        raise TypeError(f"expected outputs with logits, or a tensor of them, got {type(outputs).__name__}")
    labels, present = _labels(batch), batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if labels is not None and labels.is_floating_point() and logits.shape[-1] > 1:
        raise ValueError("expected labels that are classes, got numbers for several classes (multi-label)")
    if logits.dim() == 2:
        return Predictions(logits=logits, labels=labels)
    if logits.dim() != 3:
        raise ValueError(f"expected logits (examples, classes) or (examples, tokens, classes), got {logits.dim()} axes")
    if predicts_next(model):
        logits = logits[:, :-1]
        labels, present = (None if one is None else one[:, 1:] for one in (labels, present))
    counts = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if labels is not None:
        counts = labels.to(logits.device) != _IGNORED
    elif isinstance(present, Tensor) and present.shape == counts.shape:
        counts = present.to(logits.device) != 0
    return Predictions(logits=logits[counts], labels=None if labels is None else labels.to(logits.device)[counts])


def predicts_next(model: nn.Module) -> bool:
    """Whether ``model`` holds a causal language model of transformers; an encoder-decoder's labels are in place."""
    for module in model.modules():
        kind = type(module)
        if isinstance(getattr(kind, "base_model_prefix", None), str):
            config = getattr(module, "config", None)
            return _PREDICTS_NEXT.search(kind.__name__) is not None and not getattr(config, "is_encoder_decoder", False)
    return False


def _labels(batch: Batch) -> Tensor | None:
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return None if isinstance(batch, Tensor) or len(batch) < 2 else batch[1]
