"""A split of labelled text becomes tokens and batches, as the Trainer takes them; the loss, and the scores.

The same for language models is in ``causal``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from mixout.errors import InputError, needs
from mixout.finetune import metrics
from mixout.finetune.tasks import Split, Task
from mixout.methods.likelihood import IGNORED as IGNORED

with needs("hf", "fine-tuning"):
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

Tokenizer = PreTrainedTokenizerBase
Array = np.ndarray[Any, np.dtype[Any]]
Example = dict[str, Any]


def encode(split: Split, tokenizer: Tokenizer, max_length: int) -> list[Example]:
    """Tokens and label of each example, in the order of the split; a word's tag lies on its first token.

    InputError where texts come in pairs and the tokenizer has no token to put between the two, or where they are words
    and it does not tell which word a token belongs to.
    """
    tokens = _tokens(split, tokenizer, truncation=True, max_length=max_length)
    columns = {name: tokens[name] for name in tokens if name in tokenizer.model_input_names}
    labels: Any = split.label or (0,) * len(split)
    if isinstance(split.text[0], tuple):
        words = map(tokens.word_ids, range(len(split)))
        labels = [
            [IGNORED if word in (None, prev) else tags[word] for prev, word in zip([None, *ids], ids, strict=False)]
            for tags, ids in zip(labels, words, strict=True)
        ]
    return [
        {"labels": label, **{name: column[row] for name, column in columns.items()}} for row, label in enumerate(labels)
    ]


def cut_texts(split: Split, examples: list[Example], tokenizer: Tokenizer, max_length: int) -> int:
    """How many of a split's examples, as :func:`encode` made them, have lost their end."""
    full = split.select(row for row, example in enumerate(examples) if len(example["input_ids"]) >= max_length)
    if not len(full):
        return 0
    return sum(len(tokens) > max_length for tokens in _tokens(full, tokenizer, truncation=False)["input_ids"])


def _tokens(split: Split, tokenizer: Tokenizer, **options: Any) -> Any:  # noqa: ANN401
    """The texts and second texts in tokens, with a mark where the second begins."""
    texts: list[Any] = list(split.text)
    if isinstance(texts[0], tuple):
        if not tokenizer.is_fast:
            raise InputError(
                f"expected a fast tokenizer to tag words with, got {type(tokenizer).__name__}; choose another model"
            )
        # Byte-level tokenizers recognise a word within a sentence by the blank before it.
        blank = " " if "\u0120" in "".join(tokenizer.tokenize("a a")) else ""
        return tokenizer([[blank + word for word in row] for row in texts], is_split_into_words=True, **options)
    if split.pair is None or _marks_pairs(tokenizer):
        return tokenizer(texts, None if split.pair is None else list(split.pair), **options)
    mark = tokenizer.sep_token or tokenizer.eos_token
    if mark is None:
        raise InputError(
            "expected a tokenizer that can mark where the second text of a pair begins, got one that puts nothing "
            "between the two and has neither a sep_token nor an eos_token; give it one, or join the texts yourself"
        )
    # The mark is part of the second text, so that both texts are cut alike if a pair is too long.
    return tokenizer(texts, [f"{mark}{second}" for second in split.pair], **options)


def _marks_pairs(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer marks where the second text of a pair begins; those of most decoders do not."""
    pair = tokenizer("a", "b")
    if len(set(pair.get("token_type_ids", [0]))) > 1:
        return True
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in "ab")
    joined, tokens = [*first, *second], pair["input_ids"]
    return not any(tokens[start : start + len(joined)] == joined for start in range(len(tokens)))


def collate(windows: Sequence[Example]) -> dict[str, Tensor]:
    """Tokens with a label each -> a batch, padded on the right; nothing attends to the padding: any token will do.

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
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def collator(kind: str, tokenizer: Tokenizer) -> Callable[[Sequence[Example]], dict[str, Tensor]]:
    """What makes a batch of examples of a kind of task: with a label for each token, or one a text."""
    return collate if kind in ("tags", "text") else DataCollatorWithPadding(tokenizer)  # type: ignore[return-value]


def by_length(examples: Sequence[Example]) -> list[int]:
    """The rows in the order of their lengths, so that batches hold little padding."""
    return sorted(range(len(examples)), key=lambda row: len(examples[row]["input_ids"]))


class Dev:
    """The loss, and the dev examples with their predictions; evaluations take them in the order of their lengths."""

    def __init__(self, task: Task, examples: list[Example], smoothing: float = 0.0, *, balanced: bool = False) -> None:
        self.task, self.examples, self.smoothing, self.balanced = task, examples, smoothing, balanced
        self.order = by_length(examples)
        self.predictions: tuple[Any, ...] = ()
        self.scored_by: Any = ()  # arrays from which the scores follow

    def sorted(self) -> list[Example]:
        """The examples in the order of evaluation."""
        return [self.examples[row] for row in self.order]

    def restored(self, outputs: Array) -> Array:
        """Outputs that were computed in the order of evaluation, put into the order of the files."""
        in_file_order = np.empty_like(outputs)
        in_file_order[self.order] = outputs
        return in_file_order

    def scores_on(self, rows: Array) -> dict[str, float]:
        """The scores of the last evaluation on some rows, or documents, of the dev set."""
        raise NotImplementedError

    def standard_errors(self) -> dict[str, float]:
        """Of each score of the last evaluation, by the choice of rows or documents; empty if there is only one."""
        if (rows := len(self.task.dev)) < 2:
            return {}
        with np.errstate(all="ignore"):  # of a model that has diverged
            names = [*self.scores_on(np.arange(rows))]
            values = metrics.pseudo_values(lambda chosen: np.array([*self.scores_on(chosen).values()]), rows)[1]
            errors = values.std(axis=0, ddof=1) / math.sqrt(len(values))
        return {name: error for name, error in zip(names, errors.tolist(), strict=True) if math.isfinite(error)}

    def parts(self, labels: Tensor) -> Tensor:
        """How many labels count in the loss: examples, or tokens."""
        return (~labels.isnan() if labels.is_floating_point() else labels.ne(IGNORED)).sum()

    def keep(self, outputs: Tensor | tuple[Tensor, ...], _labels: Tensor) -> Tensor:
        """The logits: some models return hidden states beside them, which need not be gathered."""
        return outputs[0] if isinstance(outputs, tuple) else outputs


class DevSet(Dev):
    """The dev set of labelled text. ``balanced``: every class counts the same in training."""

    def total(self, logits: Tensor, labels: Tensor, *, training: bool = False) -> Tensor:
        """Sum over the labels of the cross-entropy, or for a regression of the squared error."""
        if self.task.kind == "values":
            values = logits.float().reshape(-1)
            return mse_loss(values, torch.where(labels.isnan(), values.detach(), labels.float()), reduction="sum")
        if self.task.kind == "labels":
            counts = labels.ne(IGNORED).float()
            return binary_cross_entropy_with_logits(logits.float(), labels.float(), counts, reduction="sum")
        weights = self._weights.to(logits.device) if training and self.balanced else None
        smoothing = self.smoothing if training else 0.0
        logits, labels = logits.float().flatten(0, -2), labels.flatten()
        return cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)

    @cached_property
    def _weights(self) -> Tensor:
        """Of each class: rows / (classes x rows of the class), so that the mean over the rows is 1."""
        counts = torch.bincount(torch.tensor(self.task.train.label), minlength=self.task.classes or 0)
        return counts.sum() / (len(counts) * counts.clamp(min=1))

    def score(self, outputs: Array) -> dict[str, float]:
        """Scores from the outputs in the order of evaluation, ``(n, [tokens,] classes or 1)``; predictions are kept."""
        labels: Sequence[Any] = [example["labels"] for example in self.examples]
        outputs = self.restored(outputs)
        rows = answers(outputs, self.task.kind).tolist()
        if self.task.kind == "tags":
            truth = pad_sequence([torch.tensor(row) for row in labels], batch_first=True, padding_value=IGNORED)
            # Tokens without a label, and words that were cut, are not scored.
            labelled = [[at for at, label in enumerate(row) if label != IGNORED] for row in labels]
            rows, labels = ([[row[at] for at in labelled[n]] for n, row in enumerate(side)] for side in (rows, labels))
        else:
            truth = torch.tensor(labels)
        sides = [tuple(tuple(row) if isinstance(row, list) else row for row in side) for side in (rows, labels)]
        self.predictions = sides[0]
        # Rows of tags differ in length.
        self.scored_by = [np.fromiter(side, object) if self.task.kind == "tags" else np.asarray(side) for side in sides]
        scores = self.scores_on(np.arange(len(rows)))
        return {"loss": float(self.total(torch.from_numpy(outputs), truth) / self.parts(truth)), **scores}

    def scores_on(self, rows: Array) -> dict[str, float]:
        """The scores of the last evaluation on some of the dev rows."""
        predictions, truth = (side[rows] for side in self.scored_by)
        task = self.task
        return metrics.compute(task.metrics, predictions, truth, classes=task.classes, tags=task.tags)

    def chance(self) -> float:
        """What a constant answer scores."""
        task = self.task
        return metrics.chance(task.metric, list(task.dev.label), classes=task.classes, tags=task.tags)


def scored(task: Task, train: Sequence[Example], dev: Sequence[Example]) -> Task:
    """A task of tags with those of the words that the model reads: words that were cut are in no loss and no score."""
    if task.kind != "tags":
        return task
    train_tags, dev_tags = (
        tuple(tuple(tag for tag in example["labels"] if tag != IGNORED) for example in side) for side in (train, dev)
    )
    return replace(task, train=replace(task.train, label=train_tags), dev=replace(task.dev, label=dev_tags))


def answers(outputs: Array, kind: str) -> Array:
    """What a model answers: a class, a value, 1 or 0 for each of several labels, or a tag for each token."""
    if kind == "values":
        return outputs.reshape(-1)
    return (outputs > 0).astype(int) if kind == "labels" else outputs.argmax(axis=-1)


_POOL = 8


class Buckets(Sampler[int]):
    """Batches of similar lengths: an order of the training examples in which neighbours need little padding.

    Each epoch: shuffle; cut into pools of eight batches; sort each pool by length and cut it into batches; shuffle the
    batches. What is left over, fewer than a batch, comes last. With RTE in batches of 32 the share of padding falls
    from 0.48 to about 0.1; sorting everything at once would save the rest, but nearly the same examples would meet in
    every epoch. It is another order than the paper's: scores of both should not be mixed in one comparison.

    Example:
        >>> order = list(Buckets([3, 1, 9, 1, 9, 3], batch_size=2, seed=0))
        >>> sorted(map(sorted, (order[:2], order[2:4], order[4:])))
        [[0, 5], [1, 3], [2, 4]]
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of; a resumed run sets it, too."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        size = self._batch_size
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        full = len(order) - len(order) % size
        batches = []
        for start in range(0, full, _POOL * size):
            # The sort is stable: ties stay in the order of the shuffle.
            pool = sorted(order[start : min(start + _POOL * size, full)], key=self._lengths.__getitem__)
            batches += [pool[at : at + size] for at in range(0, len(pool), size)]
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[batch]
        yield from order[full:]
