"""A split of labelled text becomes tokens, in the form that the Trainer takes; what is minimised on them, and scored.

It does not pad: the Trainer's collator does, batch by batch. The same for language models is in ``causal``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from mixout.errors import InputError
from mixout.finetune import metrics
from mixout.finetune.extras import needs
from mixout.finetune.tasks import Split, Task

with needs("hf", "fine-tuning"):
    from transformers import DataCollatorWithPadding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Example = dict[str, Any]


def encode(split: Split, tokenizer: Tokenizer, max_length: int) -> list[Example]:
    """Tokens and label of each example, in the order of the split.

    Raises:
        InputError: the texts come in pairs, and the tokenizer has no token to put between the two.
    """
    if not len(split):
        return []
    tokens = tokenizer(*_texts(split, tokenizer), truncation=True, max_length=max_length)
    columns = {name: tokens[name] for name in tokens if name in tokenizer.model_input_names}
    return [
        {"labels": label, **{name: column[row] for name, column in columns.items()}}
        for row, label in enumerate(split.label)
    ]


def cut_texts(split: Split, examples: list[Example], tokenizer: Tokenizer, max_length: int) -> int:
    """How many of a split's examples, as :func:`encode` made them, have lost their end."""
    full = split.select(row for row, example in enumerate(examples) if len(example["input_ids"]) >= max_length)
    if not len(full):
        return 0
    whole = tokenizer(*_texts(full, tokenizer), truncation=False)["input_ids"]
    return sum(len(tokens) > max_length for tokens in whole)


def _texts(split: Split, tokenizer: Tokenizer) -> tuple[list[str], list[str] | None]:
    """The texts and second texts as a tokenizer takes them, with something that marks where the second begins."""
    if split.pair is None:
        return list(split.text), None
    if _marks_pairs(tokenizer):
        return list(split.text), list(split.pair)
    mark = tokenizer.sep_token or tokenizer.eos_token
    if mark is None:
        raise InputError(
            "expected a tokenizer that can mark where the second text of a pair begins, got one that puts nothing "
            "between the two and has neither a sep_token nor an eos_token; give it one, or join the texts yourself"
        )
    # Part of the second text, so that both are cut alike where a pair is too long.
    return list(split.text), [f"{mark}{second}" for second in split.pair]


def _marks_pairs(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer puts a token between the texts of a pair, or tells them apart by their types.

    Those of most decoders (GPT-2, Qwen) do neither: the two run together.
    """
    pair = tokenizer("a", "b")
    if len(set(pair.get("token_type_ids", [0]))) > 1:
        return True
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in "ab")
    joined, tokens = [*first, *second], pair["input_ids"]
    return not any(tokens[start : start + len(joined)] == joined for start in range(len(tokens)))


@dataclass
class DevSet:
    """The dev set of classes or values: the loss, and what evaluations keep and score.

    It is sorted by length for evaluation: batches of like lengths hold little padding.

    Args:
        task: gives labels and metrics.
        examples: of the dev split, in its order.
    """

    task: Task
    examples: list[Example]

    # The Trainer's mean over batches, each weighted with its examples, is the loss.
    mean_of_batches = True

    def __post_init__(self) -> None:
        self.order = sorted(range(len(self.examples)), key=lambda row: len(self.examples[row]["input_ids"]))
        self.predictions: tuple[float, ...] = ()

    def sorted(self) -> list[Example]:
        """The examples in the order of evaluation."""
        return [self.examples[row] for row in self.order]

    def collator(self, tokenizer: Tokenizer) -> DataCollatorWithPadding:
        """What makes a batch of examples."""
        return DataCollatorWithPadding(tokenizer)

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over the examples of the cross-entropy, or for a regression of the squared error."""
        if self.task.labels is None:
            return mse_loss(logits.float().reshape(-1), labels.float(), reduction="sum")
        return cross_entropy(logits.float(), labels, reduction="sum")

    def parts(self, labels: Tensor) -> int:
        """How many examples there are."""
        return len(labels)

    def keep(self, outputs: Tensor | tuple[Tensor, ...], _labels: Tensor) -> Tensor:
        """The logits: some models return hidden states beside them, which need not be gathered."""
        return outputs[0] if isinstance(outputs, tuple) else outputs

    def score(self, outputs: np.ndarray[Any, np.dtype[Any]]) -> dict[str, float]:
        """Scores from the model's outputs in the order of evaluation; the predictions are kept.

        Args:
            outputs: shape ``(n, classes)``, or ``(n, 1)`` for a regression.
        """
        values = outputs.argmax(axis=-1) if self.task.labels is not None else outputs.reshape(len(self.order))
        found = np.empty_like(values)
        found[self.order] = values
        self.predictions = tuple(found.tolist())
        return metrics.compute(self.task.metrics, found, np.asarray(self.task.dev.label), classes=self.task.classes)

    def chance(self) -> float:
        """What a constant answer scores."""
        return metrics.chance(self.task.metric, list(self.task.dev.label), classes=self.task.classes)
