r"""What a model predicts, and which weights that depends on: the diagonal of the Fisher information, for EWC.

For each weight, over examples x of the domain that is not to be forgotten,

.. math:: F_i = \mathbb{E}_x \, \mathbb{E}_{y} \left( \partial \log p_w(y \mid x) / \partial w_i \right)^2

divided by its mean over all weights. ``labels="sampled"``: y is drawn from the model itself. ``labels="given"``: y is
the label of the data, which also counts what the model gets wrong, and is 0 where the model is right and sure.

One backward pass for each example, since the square of a batch's mean gradient is not the mean of squares. Of a
language model the tokens of one text are drawn independently, given the text before them, so that the square of their
summed gradient has the right mean.

Source: Kirkpatrick et al., PNAS 2017, arXiv 1612.00796 (EWC). Kunstner, Balles, Hennig, NeurIPS 2019, on the empirical
Fisher.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mixout.errors import MixoutError, NothingMixedError
from mixout.methods.decay import decays
from mixout.parts import in_parts
from mixout.selection import WhereLike, resolve
from mixout.sources import unwrapped

Labels = Literal["sampled", "given"]
Batch = Mapping[str, Any] | Sequence[Tensor] | Tensor

IGNORED = -100  # the label that losses leave out, in torch and transformers
_PREDICTS_NEXT = re.compile(r"CausalLM|LMHead|ForConditionalGeneration|^BertGenerationDecoder$|ProteinText2Text")
# Classes of transformers with such names whose own loss takes labels in place.
_IN_PLACE = re.compile(
    r"(Bart|BigBirdPegasus|Blenderbot(Small)?|CpmAnt|MBart|Marian|Mvp|PLBart|Pegasus|ProphetNet|TrOCR|Whisper)"
    r"ForCausalLM|(Flaubert|XLM)WithLMHeadModel|XLNetLMHeadModel"
)


def fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    labels: Labels = "sampled",
    examples: int = 200,
    where: WhereLike = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """How much the model's answers depend on each weight that :class:`mixout.AnchorDecay` decays, with mean 1.

    The model must be able to answer: a pretrained language model, or a classifier that was trained. The answers of a
    new head say nothing. For an encoder take its masked language model; names fit where both hold the same body.

    Args:
        model: with its pretrained weights, before ``apply_`` or after. Computed in eval mode; nothing is changed.
        batches: of the domain that is not to be forgotten. Each is a mapping that the model takes by keyword, a pair of
            inputs and labels, or inputs alone, as tensors whose first dimension counts examples. The outputs are
            logits, or have ``logits``; of one class (regression) the law is a normal one of variance 1.
        labels: ``"sampled"`` from the model (the true Fisher), or ``"given"`` with the batch (the empirical one).
        examples: stop after so many. Each takes a backward pass of its own.
        where: which modules, as in :func:`mixout.apply_`; by default the pretrained body.
        seed: of the sampled labels. torch's generators are left alone.

    Returns:
        By parameter name, in bfloat16, beside the weights. Save it with safetensors' ``save_file``: ``AnchorDecay``
        takes the file as well.

    Raises:
        MixoutError: if a weight lies in parts on several ranks: call this before sharding.
        NothingMixedError: if there is no weight of at least two dimensions that requires a gradient.
        TypeError: if the outputs hold no logits, ``batches`` is a single batch, or one holds no tensors.
        ValueError: if there is no example, the tensors of a batch count different numbers of them, labels are asked for
            and not there, or no answer depends on a weight.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> found = fisher(model, [torch.tensor([[1.0, 0.0], [2.0, 0.0]])])["weight"].float()
        >>> bool(found.mean().round() == 1), found[:, 1].tolist()  # the second input is always 0
        (True, [0.0, 0.0])
    """
    if labels not in ("sampled", "given"):
        raise ValueError(f"expected labels 'sampled' or 'given', got {labels!r}")
    if isinstance(batches, (Mapping, Tensor)):
        raise TypeError(f"expected batches as a list or a loader, got one {type(batches).__name__}; pass [batch]")
    model = unwrapped(model)
    weights = _weights(model, where)
    device = next(iter(weights.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    seen = 0
    with evaluated(model):
        for example in _single(batches, device):
            if seen == examples:
                break
            args, options = as_call(example)
            with torch.enable_grad():
                predicted = predictions(model, example, model(*args, **options))
                if not len(predicted.logits):  # a text of one token, say
                    continue
                loss = _surprise(predicted, labels, generator)
            seen += 1
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient.float(), gradient.float())
    if not seen:
        raise ValueError("expected at least one example in batches, got none")
    mean = sum(float(total.sum(dtype=torch.float64)) for total in sums.values())
    mean /= sum(total.numel() for total in sums.values())
    if not 0 < mean < float("inf"):
        raise ValueError(
            f"expected answers that depend on the weights, got gradients whose mean square is {mean:g}; check the "
            "batches and the model's dtype"
        )
    return {name: (total / mean).to(torch.bfloat16) for name, total in sums.items()}


def _weights(model: nn.Module, where: WhereLike) -> dict[str, nn.Parameter]:
    """The trained weights that AnchorDecay decays; a tied weight once, by its first name."""
    name_by_weight: dict[nn.Parameter, str] = {}
    for name, _, weight in resolve(where, model).parameters(model):
        if decays(weight) and in_parts(weight):
            raise MixoutError("expected whole weights, got ones in parts on several ranks; call this before sharding")
        if decays(weight) and weight.requires_grad:
            name_by_weight.setdefault(weight, name)
    if not name_by_weight:
        raise NothingMixedError(
            "expected a weight of at least two dimensions that requires a gradient, got none; check where="
        )
    return {name: weight for weight, name in name_by_weight.items()}


def _single(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """One example at a time, on the model's device."""
    for batch in batches:
        named = batch if isinstance(batch, Mapping) else {}
        names = [key for key, value in named.items() if isinstance(value, Tensor) and value.dim()]
        parts = [batch] if isinstance(batch, Tensor) else batch if isinstance(batch, (tuple, list)) else ()
        if not names and not (parts and all(isinstance(part, Tensor) and part.dim() for part in parts)):
            raise TypeError(
                "expected batches of tensors whose first dimension counts examples, got one of type "
                f"{type(batch).__name__} with others; a tokenizer makes tensors with return_tensors='pt'"
            )
        if names:
            for values in zip(*(torch.split(named[key].to(device), 1) for key in names), strict=True):
                yield {**named, **dict(zip(names, values, strict=True))}
        elif isinstance(batch, Tensor):
            yield from torch.split(batch.to(device), 1)
        else:
            yield from zip(*(torch.split(part.to(device), 1) for part in parts), strict=True)


def _surprise(predicted: Predictions, labels: Labels, generator: torch.Generator) -> Tensor:
    """-log p(y | x), summed over the predictions of one example."""
    logits = predicted.logits.float()
    if labels == "given" and predicted.labels is None:
        raise ValueError('expected batches with labels, which labels="given" reads, got one without')
    if logits.shape[1] == 1:
        noise = torch.randn(logits.shape, generator=generator, device=logits.device)
        value = logits.detach() + noise if labels == "sampled" else predicted.labels.view_as(logits)  # type: ignore[union-attr]
        return (value - logits).square().sum() / 2
    if labels == "given":
        return cross_entropy(logits, predicted.labels, reduction="sum")  # type: ignore[arg-type]
    drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator).squeeze(1)
    return cross_entropy(logits, drawn, reduction="sum")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions of a batch that count, and what they should be."""

    logits: Tensor  # (rows, classes)
    labels: Tensor | None  # of each row, if the batch says; floats where there is one class (regression)


def as_call(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with: a mapping by keyword, of a pair (inputs, labels) the inputs, a tensor as it is."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (batch if isinstance(batch, Tensor) else batch[0],), {}


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode, then each module's own flag again: no dropout, and mixed layers read their weight as it is."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def predictions(model: nn.Module, batch: Batch, outputs: Any) -> Predictions:  # noqa: ANN401
    """The rows of ``outputs`` that count: of tokens that have a label, or in a batch without labels are attended to."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
    if not isinstance(logits, Tensor):
        raise TypeError(f"expected outputs with logits, or a tensor of them, got {type(outputs).__name__}")
    labels: Tensor | None
    if isinstance(batch, Mapping):
        labels, attended = batch.get("labels"), batch.get("attention_mask")
    else:
        labels, attended = None if isinstance(batch, Tensor) or len(batch) < 2 else batch[1], None
    if labels is not None and labels.is_floating_point() and logits.shape[-1] > 1:
        raise ValueError("expected labels that are classes, got numbers for several classes (multi-label)")
    if logits.dim() == 2:
        return Predictions(logits=logits, labels=labels)
    if logits.dim() != 3:
        raise ValueError(f"expected logits (examples, classes) or (examples, tokens, classes), got {logits.dim()} axes")
    tokens = labels if labels is not None else attended
    if isinstance(tokens, Tensor) and tokens.dim() == 2:
        logits = logits[:, -tokens.shape[1] :]  # without what peft's prompts have put before them
    if predicts_next(model):
        logits = logits[:, :-1]
        labels, attended = (None if tensor is None else tensor[:, 1:] for tensor in (labels, attended))
    counts = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if labels is not None:
        counts = labels.to(logits.device) != IGNORED
    elif isinstance(attended, Tensor) and attended.shape == counts.shape:
        counts = attended.to(logits.device) != 0
    return Predictions(logits=logits[counts], labels=None if labels is None else labels.to(logits.device)[counts])


def predicts_next(model: nn.Module) -> bool:
    """Whether ``model`` is one of transformers whose own loss pairs each logit with the next token's label."""
    for module in model.modules():
        cls = type(module)
        if isinstance(getattr(cls, "base_model_prefix", None), str):
            in_place = any(_IN_PLACE.fullmatch(base.__name__) for base in cls.__mro__)
            encodes = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
            return _PREDICTS_NEXT.search(cls.__name__) is not None and not (in_place or encodes)
    return False
