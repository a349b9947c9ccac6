"""What a method is called in a report, and its number, which decides its look.

Where a study has factors, a learning rate say, a label names those that differ; each combination has its own number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Placed(Protocol):
    """What has a place in a study: a run, a cell, a comparison."""

    @property
    def method(self) -> str:
        """Label of the compared thing."""

    @property
    def factors(self) -> dict[str, str]:
        """Further coordinates."""


@dataclass(frozen=True)
class Label:
    """A method's number and name."""

    number: int
    text: str


class Labels:
    """The labels of a study, numbered in the order in which they come.

    Example:
        >>> from mixout.study.analysis.runs import Run
        >>> runs = [Run(task="RTE", method="plain", restart=0, score=0.5, factors={"epochs": n}) for n in ("3", "9")]
        >>> Labels(runs).of(runs[1])
        Label(number=1, text='plain, epochs 9')
    """

    def __init__(self, items: Iterable[Placed]) -> None:
        items = list(items)
        values: dict[str, set[str | None]] = {}
        for name in {name for item in items for name in item.factors}:
            values[name] = {item.factors.get(name) for item in items}
        self._varying = sorted(name for name, seen in values.items() if len(seen) > 1)
        self._numbers = {text: number for number, text in enumerate(dict.fromkeys(map(self._text, items)))}

    def of(self, item: Placed) -> Label:
        """The label of what was among the items."""
        text = self._text(item)
        return Label(self._numbers[text], text)

    def all(self) -> list[Label]:
        """Every label, in order."""
        return [Label(number, text) for text, number in self._numbers.items()]

    def _text(self, item: Placed) -> str:
        named = [f"{name} {item.factors[name]}" for name in self._varying if name in item.factors]
        return ", ".join([item.method, *named])
