r"""Causal language modelling: documents become windows of tokens, and the loss is the mean over predicted tokens.

.. math:: L = -\frac{1}{|T|} \sum_{t \in T} \log p(x_t \mid x_{<t}), \qquad \text{perplexity} = e^{L}

T holds every token of every document but its first, and none of a prompt; the end token, where the tokenizer has one,
is part of a document. A document longer than a window is cut into windows that share one token, so that T is the same
for every window length. The score is the log-likelihood -L, in nats per token: higher is better, as everywhere in a
study. See docs/causal-lm.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.functional import cross_entropy

from mixout.errors import InputError
from mixout.finetune.batches import IGNORED, Array, Dev, Example, Tokenizer
from mixout.finetune.tasks import Split, Task


def encode(part: Split, tokenizer: Tokenizer, max_length: int, *, assistant_only: bool = False) -> list[Example]:
    """Windows of at most ``max_length`` tokens, in the order of the documents.

    Each has ``input_ids``; ``labels``, which are -100 where nothing is predicted; and ``document``, the number of its
    document. Windows without a predicted token are left out. With ``assistant_only`` only the assistant's turns of a
    conversation are predicted. InputError where nothing is predicted in a whole document, or the chat template does not
    take a conversation or does not mark the assistant's turns.
    """
    if not len(part):
        return []
    documents = _conversations(part, tokenizer, assistant_only) if part.chat else _completions(part, tokenizer)
    windows: list[Example] = []
    for number, (tokens, learned) in enumerate(documents):
        # The first token has no context to predict it from.
        labels = [IGNORED, *(token if learn else IGNORED for token, learn in zip(tokens[1:], learned[1:], strict=True))]
        if all(label == IGNORED for label in labels):
            raise InputError(
                f"expected documents with a token to predict and one before it, got {part.text[number][:40]!r}; "
                f"remove it"
            )
        windows += [{**window, "document": number} for window in _windows(tokens, labels, max_length)]
    return windows


def _completions(part: Split, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[bool]]]:
    """The tokens of each prompt and text, and which of them are predicted: those of the text and its end."""
    end = tokenizer.eos_token_id
    texts = tokenizer(list(part.text), add_special_tokens=part.prompt is None)["input_ids"]
    prompts = [[]] * len(part) if part.prompt is None else tokenizer(list(part.prompt))["input_ids"]
    for prompt, text in zip(prompts, texts, strict=True):
        # Some tokenizers add the end token to every text, also to a prompt, which continues.
        context = prompt[:-1] if prompt[-1:] == [end] else prompt
        completion = text if end is None or text[-1:] == [end] else [*text, end]
        yield context + completion, [False] * len(context) + [True] * len(completion)


def _conversations(part: Split, tokenizer: Tokenizer, assistant_only: bool) -> Iterator[tuple[list[int], list[bool]]]:
    if tokenizer.chat_template is None:
        raise InputError(
            "expected a tokenizer with a chat template for a column of conversations, got one without; choose a chat "
            "model, or a column of plain text with --text-column"
        )
    for text in part.text:
        try:
            tokens, learned = _conversation(json.loads(text), tokenizer, assistant_only)
        # If a template cannot join values, such as a text and a list, Python raises its own error.
        except (TemplateError, TypeError) as error:
            raise InputError(
                f"expected conversations that the model's chat template takes, got {text[:200]!r}: {error}; "
                "correct or remove the row"
            ) from error
        yield tokens, learned


def _conversation(
    messages: list[dict[str, Any]],
    tokenizer: Any,  # noqa: ANN401  the result of apply_chat_template is of many types
    assistant_only: bool,
) -> tuple[list[int], list[bool]]:
    if not assistant_only:
        tokens = tokenizer.apply_chat_template(messages)["input_ids"]
        return tokens, [True] * len(tokens)
    if re.search(r"\{%-?\s*generation\b", tokenizer.get_chat_template()):
        marked = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
        return marked["input_ids"], list(map(bool, marked["assistant_masks"]))
    # Without these marks: a turn of the assistant is the text that the template adds for it.
    rendered, spans = tokenizer.apply_chat_template(messages, tokenize=False), []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prior = messages[:number]
            before = tokenizer.apply_chat_template(prior, tokenize=False, add_generation_prompt=True) if prior else ""
            after = tokenizer.apply_chat_template([*prior, message], tokenize=False)
            if not (rendered.startswith(after) and after.startswith(before)):
                raise InputError(
                    "expected a chat template that marks the assistant's turns with {% generation %}, or that writes "
                    "a turn the same whatever follows it, got neither; give the tokenizer such a template, or leave "
                    "out --assistant-only-loss"
                )
            spans.append(range(len(before), len(after)))
    encoding = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    return encoding["input_ids"], [any(start in span for span in spans) for start, _ in encoding["offset_mapping"]]


def _windows(tokens: list[int], labels: list[int], max_length: int) -> Iterator[Example]:
    """Neighbours share a token: the last one of a window is the context of the next window's first prediction."""
    for start in range(0, len(tokens) - 1, max_length - 1):
        predicted = [IGNORED, *labels[start + 1 : start + max_length]]
        if any(label != IGNORED for label in predicted):
            yield {"input_ids": tokens[start : start + max_length], "labels": predicted}


class DevTexts(Dev):
    """The dev set of a language model: windows of held-out text, and of the original domain if there is any."""

    def __init__(self, task: Task, dev: list[Example], original: list[Example], smoothing: float = 0.0) -> None:
        super().__init__(task, [*dev, *original], smoothing)
        self.dev, self.original = dev, original

    def total(self, logits: Tensor, labels: Tensor, *, training: bool = False) -> Tensor:
        """Sum of the losses of all predicted tokens, ``()``, from logits ``(batch, tokens, vocabulary)``."""
        return _losses(logits, labels, self.smoothing if training else 0.0).sum()

    def keep(self, outputs: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Loss and number of predicted tokens of each window, ``(batch, 2)``: all that leaves the device."""
        losses = _losses(super().keep(outputs, labels), labels)
        return torch.stack([losses.sum(dim=1), labels.ne(IGNORED).sum(dim=1)], dim=1)

    def score(self, outputs: Array) -> dict[str, float]:
        """Scores from the output of :meth:`keep`, ``(windows, 2)``, in the order of evaluation; and the held-out loss.

        A loss that is not finite leaves the run without a log-likelihood (nan).
        """
        loss_and_count = self.restored(outputs.astype("float64"))
        dev, original = loss_and_count[: len(self.dev)], loss_and_count[len(self.dev) :]
        sums = np.zeros((len(self.task.dev), 2))
        np.add.at(sums, [window["document"] for window in self.dev], dev)
        self.predictions, self.scored_by = tuple((-sums[:, 0] / sums[:, 1]).tolist()), sums
        scores: dict[str, float] = {}
        for prefix, part in (("", dev), ("original_", original)):
            if len(part):
                loss = float(part[:, 0].sum() / part[:, 1].sum())
                scores[f"{prefix}log_likelihood"] = -loss if math.isfinite(loss) else math.nan
                with np.errstate(over="ignore"):  # of a model that has diverged: infinite
                    scores[f"{prefix}perplexity"] = float(np.exp(loss))
        return {"loss": float(dev[:, 0].sum() / dev[:, 1].sum()), **scores}

    def scores_on(self, rows: Array) -> dict[str, float]:
        """The scores of the last evaluation on some of the held-out documents."""
        loss, tokens = self.scored_by[rows].sum(axis=0)
        return {"log_likelihood": -float(loss / tokens), "perplexity": float(np.exp(loss / tokens))}

    def chance(self) -> float:
        """The log-likelihood of the best constant answer: each token at its share of the evaluated text."""
        windows = self.original if self.task.metric.startswith("original_") else self.dev
        labels = np.array([label for window in windows for label in window["labels"] if label != IGNORED])
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        # Rounded: logarithms differ between machines in the last bits, but chance is a property of the data.
        return round(math.fsum((shares * np.log(shares)).tolist()), 9)


def _losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log p of each next token, ``(batch, tokens - 1)``; 0 where nothing is predicted."""
    flat = logits[:, :-1].float().flatten(0, 1)
    losses = cross_entropy(
        flat, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
    )
    return losses.view(labels.shape[0], -1)
