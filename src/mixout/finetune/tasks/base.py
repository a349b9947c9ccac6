"""What a task is: two splits of labelled text, the names of the classes, the metrics; and few-sample subsets.

Everything here is immutable and free of tensors. It does not read files and does not tokenize.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from mixout.errors import InputError, needs


@dataclass(frozen=True, kw_only=True)
class Split:
    """Texts in a fixed order, labelled or for a language model; other columns are tuples of the same length, or None.

    Labels are numbers of classes; the values of a regression, which are floats; or tuples: for each class 1 or 0, where
    a text has several, or the number of each word's tag, where it is a tuple of words.

    Example:
        >>> split = Split(text=("good", "bad", "fine"), label=(1, 0, 1))
        >>> len(split), split.select([2, 0]).text
        (3, ('fine', 'good'))
    """

    text: tuple[Any, ...]  # str, or where words have tags a tuple of words
    pair: tuple[str, ...] | None = None
    prompt: tuple[str, ...] | None = None  # what a language model is given before ``text``
    label: tuple[Any, ...] = ()  # none for a language model
    chat: bool = False  # the texts are conversations, as JSON, for a chat template

    def __len__(self) -> int:
        return len(self.text)

    def questions(self) -> list[str]:
        """What each row asks, without its answer."""
        contexts = self.pair or self.prompt or [""] * len(self)
        return [f"{text}\0{context}" for text, context in zip(self.text, contexts, strict=True)]

    def select(self, indices: Iterable[int]) -> Split:
        """The rows at these positions, in the order given."""
        rows = tuple(indices)
        columns: dict[str, Any] = {
            name: tuple(cells[row] for row in rows)
            for name, cells in vars(self).items()
            if cells and isinstance(cells, tuple)
        }
        return replace(self, **columns)

    def fingerprint(self) -> str:
        """The SHA-256 (hex) of the content and its order."""
        if not self.label:
            return digest_of([self.text, self.prompt, *["chat"][: self.chat]])
        return digest_of([self.text, self.pair, self.label])


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with its metrics: labelled texts, or what a causal language model is trained and judged on."""

    name: str
    train: Split
    dev: Split
    labels: tuple[str, ...] | None = None  # names of the classes by number; None for values and for language models
    metrics: tuple[str, ...] = ()  # everything that is reported
    metric: str  # the one by which runs are compared
    source: str  # one sentence on where the data came from
    separator: str = ""  # between several labels in a cell
    comma: bool = False  # whether values were written as 0,5
    dotted: str = ""  # a label such as 1.050, if it may be meant as 1050
    original: Split | None = None  # text that the model knew before, to see how far it moved there

    @property
    def classes(self) -> int | None:
        """Number of classes, including those that a split lacks; None without classes."""
        return None if self.labels is None else len(self.labels)

    @property
    def kind(self) -> Literal["classes", "values", "labels", "tags", "text"]:
        """What is learned: one class a row, a value, several labels a row (multi-label), a tag a word; or the text."""
        if self.labels is None:
            return "values" if self.train.label else "text"
        if not isinstance(self.train.label[0], tuple):
            return "classes"
        return "tags" if isinstance(self.train.text[0], tuple) else "labels"

    @property
    def tags(self) -> tuple[str, ...] | None:
        """The names of the classes if they are tags of words, else None."""
        return self.labels if self.kind == "tags" else None

    def of_row(self, label: Any) -> tuple[int, ...]:  # noqa: ANN401
        """The numbers of the classes that a row's label holds: one, several, or one for each word; of a value none."""
        if self.kind == "labels":
            return tuple(number for number, has in enumerate(label) if has)
        return label if self.kind == "tags" else () if self.labels is None else (label,)

    def fingerprints(self) -> dict[str, str]:
        """The SHA-256 (hex) of each part."""
        digests = {"train": self.train.fingerprint(), "dev": self.dev.fingerprint()}
        if self.original is not None:
            # Beside labels, only its text is hashed, as in earlier records.
            of_text = self.kind == "text"
            digests["original"] = self.original.fingerprint() if of_text else digest_of(self.original.text)
        return digests

    def fingerprint(self) -> str:
        """The SHA-256 (hex) of all the text and the class names; not of the name, source or metrics."""
        parts = self.fingerprints()
        if self.kind == "text":
            return digest_of([parts["train"], parts["dev"], parts.get("original")])
        # Without original text as in earlier versions, so that earlier runs keep their identity.
        return digest_of([parts.pop("train"), parts.pop("dev"), self.labels, *parts.values()])


def few_sample(part: Split, size: int, seed: int) -> Split:
    """Draw a subset in which every class keeps its share, and no class is lost.

    Values, documents and rows with several labels are drawn uniformly. The generator is numpy's, of this call alone;
    torch's global one is not touched. Rows keep their order.

    Raises:
        InputError: ``size`` is smaller than the number of classes or larger than the split.

    Example:
        >>> split = Split(text=tuple("abcdefgh"), label=(0, 0, 0, 0, 0, 0, 0, 1))
        >>> few_sample(split, 4, seed=0).label
        (0, 0, 0, 1)
    """
    with needs("hf", "few-sample subsets"):
        import numpy as np
    members: dict[Any, list[int]] = {}
    for index, label in enumerate(part.label or [0] * len(part)):
        members.setdefault(label if isinstance(label, int) else 0, []).append(index)
    if not len(members) <= size <= len(part):
        unit = "examples (every class must be present)" if part.label else "documents"
        raise InputError(
            f"expected a training subset of {len(members)} to {len(part)} {unit}, got {size}; choose a size in that "
            "range"
        )
    strata = [members[label] for label in sorted(members)]
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    for rows, count in zip(strata, _shares([len(rows) for rows in strata], size), strict=True):
        chosen.extend(rows[i] for i in generator.permutation(len(rows))[:count].tolist())
    return part.select(sorted(chosen))


def _shares(counts: list[int], size: int) -> list[int]:
    """Split ``size`` in proportion to ``counts``: largest remainders, at least 1 and at most the count each."""
    quotas = [size * count / sum(counts) for count in counts]
    shares = [max(1, int(quota)) for quota in quotas]
    while sum(shares) != size:
        step = 1 if sum(shares) < size else -1
        # The stratum that is furthest from its quota changes by one; no share falls below 1 or exceeds its count.
        movable = [i for i, share in enumerate(shares) if 1 <= share + step <= counts[i]]
        best = max(movable, key=lambda i: step * (quotas[i] - shares[i]))
        shares[best] += step
    return shares


def digest_of(content: object) -> str:
    """SHA-256 (hex) of content that JSON can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
