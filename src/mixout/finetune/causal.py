r"""Causal language modelling: documents become windows of tokens, and the loss is the mean over predicted tokens.

.. math:: L = -\frac{1}{|T|} \sum_{t \in T} \log p(x_t \mid x_{<t}), \qquad \text{perplexity} = e^{L}

T holds every token of every document but its first, and none of a prompt; the end token, where the tokenizer has one,
is part of a document. A document longer than a window is cut into windows that share one token, so that T is the same
for every window length. Windows are padded on the right, never packed: no document sees another. The score is the
log-likelihood -L, in nats per token: higher is better, as everywhere in a study.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from mixout.errors import InputError
from mixout.finetune.tasks.documents import Corpus, Documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Example = dict[str, Any]

_IGNORED = -100


def encode(part: Documents, tokenizer: Tokenizer, max_length: int) -> list[Example]:
    """Windows of at most ``max_length`` tokens, in the order of the documents.

    Prompt and text are turned into tokens apart, as they are when the model is used: no token holds parts of both.

    Returns:
        For each window ``input_ids``; ``labels``, which are -100 where nothing is predicted; and ``document``, the
        number of its document. Windows in which nothing is predicted are left out.

    Raises:
        InputError: nothing is predicted in a whole document.
    """
    if not len(part):
        return []
    end = tokenizer.eos_token_id
    alone = part.prompt is None
    texts = tokenizer(_written(part, tokenizer), add_special_tokens=alone and not part.chat)["input_ids"]
    prompts = [[]] * len(part) if part.prompt is None else tokenizer(list(part.prompt))["input_ids"]
    found: list[Example] = []
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        # Some tokenizers end every text of their own accord, also a prompt, which goes on.
        before = prompt[:-1] if prompt[-1:] == [end] else prompt
        tokens = before + (text if end is None or text[-1:] == [end] else [*text, end])
        # The first token has nothing before it that could predict it.
        first = max(1, len(before))
        if len(tokens) <= first:
            raise InputError(
                f"expected documents with a token to predict and one before it, got {part.text[number][:40]!r}; "
                f"remove it"
            )
        labels = [_IGNORED] * first + tokens[first:]
        found += [{**window, "document": number} for window in _windows(tokens, labels, max_length)]
    return found


def _written(part: Documents, tokenizer: Tokenizer) -> list[str]:
    """The texts; conversations as the model's chat template writes them, with its special tokens."""
    if not part.chat:
        return list(part.text)
    if tokenizer.chat_template is None:
        raise InputError(
            "expected a tokenizer with a chat template for a column of conversations, got one without; choose a chat "
            "model, or a column of plain text with --text-column"
        )
    return [str(tokenizer.apply_chat_template(json.loads(text), tokenize=False)) for text in part.text]


def _windows(tokens: list[int], labels: list[int], max_length: int) -> Iterator[Example]:
    """Neighbours share a token: the last of one window is what the next one's first prediction goes by."""
    for start in range(0, len(tokens) - 1, max_length - 1):
        predicted = [_IGNORED, *labels[start + 1 : start + max_length]]
        if any(label != _IGNORED for label in predicted):
            yield {"input_ids": tokens[start : start + max_length], "labels": predicted}


@dataclass
class DevTexts:
    """Held-out text, and text of the original domain where there is some: the loss, and what evaluations keep of it."""

    corpus: Corpus
    dev: list[Example]
    original: list[Example]
    smoothing: float = 0.0

    # A batch holds any number of tokens, so the mean over batches is not the loss; ``score`` gives it.
    mean_of_batches = False
    # The label of a token that counts for nothing.
    unlabelled = _IGNORED

    def __post_init__(self) -> None:
        self._windows = [*self.dev, *self.original]
        self.order = sorted(range(len(self._windows)), key=lambda row: len(self._windows[row]["input_ids"]))
        self.predictions: tuple[float, ...] = ()

    def sorted(self) -> list[Example]:
        """The windows of both parts in the order of evaluation: batches of like lengths hold little padding."""
        return [self._windows[row] for row in self.order]

    def collator(self, _tokenizer: Tokenizer) -> Callable[[Sequence[Example]], dict[str, Tensor]]:
        """What makes a batch of windows."""
        return collate

    def total(self, logits: Tensor, labels: Tensor, *, training: bool = False) -> Tensor:
        """Sum of the losses of all predicted tokens, ``()``, from logits ``(batch, tokens, vocabulary)``."""
        return _losses(logits, labels, self.smoothing if training else 0.0).sum()

    def parts(self, labels: Tensor) -> Tensor:
        """How many tokens are predicted."""
        return labels.ne(_IGNORED).sum()

    def keep(self, outputs: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Loss and number of predicted tokens of each window, ``(batch, 2)``: all that leaves the device."""
        losses = _losses(outputs[0] if isinstance(outputs, tuple) else outputs, labels)
        return torch.stack([losses.sum(dim=1), labels.ne(_IGNORED).sum(dim=1)], dim=1)

    def score(self, outputs: np.ndarray[Any, np.dtype[Any]]) -> dict[str, float]:
        """Scores from what :meth:`keep` kept, ``(windows, 2)``, in the order of evaluation; and the held-out loss.

        A loss that is not finite leaves the run without a log-likelihood (nan).
        """
        found = np.empty((len(self.order), 2))
        found[self.order] = outputs
        dev, original = found[: len(self.dev)], found[len(self.dev) :]
        sums = np.zeros((len(self.corpus.dev), 2))
        np.add.at(sums, [window["document"] for window in self.dev], dev)
        self.predictions = tuple((-sums[:, 0] / sums[:, 1]).tolist())
        scores: dict[str, float] = {}
        for prefix, part in (("", dev), ("original_", original)):
            if len(part):
                loss = float(part[:, 0].sum() / part[:, 1].sum())
                scores[f"{prefix}log_likelihood"] = -loss if math.isfinite(loss) else math.nan
                scores[f"{prefix}perplexity"] = perplexity(loss)
        return {"loss": float(dev[:, 0].sum() / dev[:, 1].sum()), **scores}

    def chance(self) -> float:
        """The log-likelihood of the best constant answer: each token at its share of the text that is judged."""
        windows = self.original if self.corpus.metric.startswith("original_") else self.dev
        labels = np.array([label for window in windows for label in window["labels"] if label != _IGNORED])
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        # Rounded: logarithms of several machines may differ in the last bits, and chance belongs to the data.
        return round(math.fsum((shares * np.log(shares)).tolist()), 9)


def collate(windows: Sequence[Example]) -> dict[str, Tensor]:
    """Windows -> a batch, padded on the right; nothing attends to the padding, so it may be any token.

    Example:
        >>> two = [{"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}, {"input_ids": [7, 8], "labels": [-100, 8]}]
        >>> batch = collate(two)
        >>> batch["attention_mask"].tolist(), batch["labels"].tolist()
        ([[1, 1, 1], [1, 1, 0]], [[-100, 5, 6], [-100, 8, -100]])
    """
    tokens = [torch.tensor(window["input_ids"]) for window in windows]
    labels = [torch.tensor(window["labels"]) for window in windows]
    return {
        "input_ids": pad_sequence(tokens, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
    }


def perplexity(loss: float) -> float:
    """``exp(loss)``; infinite where that exceeds the numbers there are.

    Example:
        >>> perplexity(0.0), perplexity(1e4), perplexity(float("nan"))
        (1.0, inf, nan)
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log p of each next token, ``(batch, tokens - 1)``; 0 where nothing is predicted."""
    flat = logits[:, :-1].float().flatten(0, 1)
    losses = cross_entropy(
        flat, labels[:, 1:].flatten(), ignore_index=_IGNORED, reduction="none", label_smoothing=smoothing
    )
    return losses.view(labels.shape[0], -1)
