"""What a task is: two splits of labelled text, the names of the classes, the metrics; and few-sample subsets.

Everything here is immutable and free of tensors. It does not read files and does not tokenize.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar

from mixout.errors import InputError, needs


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts in a fixed order; other columns are tuples of the same length, or None."""

    text: tuple[Any, ...]  # str, or where words have tags a tuple of words

    def __len__(self) -> int:
        return len(self.text)

    def questions(self) -> list[str]:
        """What each row asks, without its answer."""
        others = getattr(self, "pair", None) or getattr(self, "prompt", None) or [""] * len(self)
        return [f"{text}\0{other}" for text, other in zip(self.text, others, strict=True)]

    def select(self, indices: Iterable[int]) -> Self:
        """The rows at these positions, in the order given."""
        rows = tuple(indices)
        columns = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(
            self, **{name: tuple(cells[i] for i in rows) for name, cells in columns.items() if isinstance(cells, tuple)}
        )


@dataclass(frozen=True, kw_only=True)
class Split(Texts):
    """Labelled texts, maybe with a second text each.

    Labels are numbers of classes; the values of a regression, which are floats; or tuples: for each class 1 or 0, where
    a text has several, or the number of each word's tag, where it is a tuple of words.

    Example:
        >>> split = Split(text=("good", "bad", "fine"), label=(1, 0, 1))
        >>> len(split), split.select([2, 0])
        (3, Split(text=('fine', 'good'), pair=None, label=(1, 1)))
    """

    pair: tuple[str, ...] | None = None
    label: tuple[Any, ...]

    def fingerprint(self) -> str:
        """The SHA-256 (hex) of the content: texts, pairs, labels and their order."""
        return digest_of([self.text, self.pair, self.label])


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with its metrics."""

    name: str
    train: Split
    dev: Split
    labels: tuple[str, ...] | None  # names of the classes by number; None for a regression
    metrics: tuple[str, ...]  # everything that is reported
    metric: str  # by which runs are compared
    source: str  # one sentence on where the data came from
    separator: str = ""  # of several labels in a cell
    original: tuple[str, ...] = ()  # text that the model knew before, to see how far it moved there

    @property
    def classes(self) -> int | None:
        """Number of classes, also of those that a split lacks; None for a regression."""
        return None if self.labels is None else len(self.labels)

    @property
    def kind(self) -> Literal["classes", "values", "labels", "tags"]:
        """What is learned: one class a row, a value, several labels a row (multi-label), or a tag a word."""
        if self.labels is None:
            return "values"
        if not isinstance(self.train.label[0], tuple):
            return "classes"
        return "tags" if isinstance(self.train.text[0], tuple) else "labels"

    @property
    def tags(self) -> tuple[str, ...] | None:
        """The names of the classes, where these are tags of words."""
        return self.labels if self.kind == "tags" else None

    def of_row(self, label: Any) -> tuple[int, ...]:  # noqa: ANN401
        """The numbers of the classes that a row's label holds: one, several, or one for each word; of a value none."""
        if self.kind == "labels":
            return tuple(number for number, has in enumerate(label) if has)
        return label if self.kind == "tags" else () if self.labels is None else (label,)

    def fingerprint(self) -> str:
        """The SHA-256 (hex) of all the text and the class names; not of the name, source or metrics."""
        # Without original text as before there was any, so that earlier runs stay what they are.
        original = [digest_of(self.original)] if self.original else []
        return digest_of([self.train.fingerprint(), self.dev.fingerprint(), self.labels, *original])


T = TypeVar("T", bound=Texts)


def few_sample(part: T, size: int, seed: int) -> T:
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
    for index, label in enumerate(getattr(part, "label", [0] * len(part))):
        members.setdefault(label if isinstance(label, int) else 0, []).append(index)
    if not len(members) <= size <= len(part):
        kind = "examples (every class must be present)" if isinstance(part, Split) else "documents"
        raise InputError(
            f"expected a training subset of {len(members)} to {len(part)} {kind}, got {size}; choose a size in that "
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
        # The stratum that is furthest from its quota moves; rounding down left room, and 1 is never given up.
        movable = [i for i, share in enumerate(shares) if 1 <= share + step <= counts[i]]
        best = max(movable, key=lambda i: step * (quotas[i] - shares[i]))
        shares[best] += step
    return shares


def digest_of(content: object) -> str:
    """SHA-256 (hex) of content that JSON can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
