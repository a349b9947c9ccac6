"""Numbers as text, and what methods are called, the same everywhere in a report. It decides nothing.

Where a study has factors, a learning rate say, a label names those that differ; each combination has its own number,
which decides its look.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

MISSING = "\u2013"


class Scores:
    """Scores of one task as text: three decimals where none exceeds 1 (fractions, log-likelihoods), else one.

    Args:
        scores: that occur in the task.

    Example:
        >>> text = Scores([0.5, 0.61])
        >>> text.value(0.57), text.difference(-0.0712), text.interval(0.5, None)
        ('0.570', '\u22120.071', '\u2013')
        >>> Scores([56.5]).interval(52.3, 60.81)
        '[52.3, 60.8]'
    """

    def __init__(self, scores: Iterable[float]) -> None:
        self.digits = 3 if all(score <= 1 for score in scores if math.isfinite(score)) else 1

    def value(self, value: float | None) -> str:
        """A score."""
        return number(value, self.digits)

    def difference(self, value: float | None) -> str:
        """With its sign."""
        return number(value, self.digits, sign=True)

    def interval(self, low: float | None, high: float | None, *, sign: bool = False) -> str:
        """Both ends in brackets."""
        return interval(low, high, self.digits, sign=sign)


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """With a true minus sign; a dash where there is none.

    Example:
        >>> number(-0.0004, 2), number(1.5, 1, sign=True), number(None, 1)
        ('0.00', '+1.5', '\u2013')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\u2212")


def interval(low: float | None, high: float | None, digits: int, *, sign: bool = False) -> str:
    """Both ends in brackets; a dash where there are none."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"


def compact(values: Sequence[float]) -> list[str]:
    """Values of one axis in few letters: powers of ten for large ones, and below 1 where some are small.

    Example:
        >>> compact([1e-4, 3e-4, 0.01]), compact([0, 0.01, 0.1]), compact([500, 2000, 1.5e6])
        (['1e-4', '3e-4', '1e-2'], ['0', '0.01', '0.1'], ['500', '2000', '1.5e6'])
    """
    small = any(0 < abs(value) < 1e-3 for value in values)
    return [_power(value) if abs(value) >= 1e5 or (small and 0 < abs(value) < 1) else f"{value:g}" for value in values]


def _power(value: float) -> str:
    digits, exponent = f"{value:.5e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def percent(share: float | None) -> str:
    """A share as a whole percentage.

    Example:
        >>> percent(0.356)
        '36 %'
    """
    return MISSING if share is None else f"{share * 100:.0f} %"


def percentages(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """The ends of an interval of shares in whole percentages; empty where there are none.

    Example:
        >>> percentages(0.181, 0.567), percentages(None, None)
        ('[18, 57]', '')
    """
    return "" if low is None or high is None else interval(low * 100, high * 100, 0, sign=sign)


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, whichever is read most easily.

    Example:
        >>> duration(8.25), duration(75), duration(8000)
        ('8.2 s', '75 s', '2.2 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory(size: float | None) -> str:
    """Bytes in MB or GB.

    Example:
        >>> memory(1_234_000_000), memory(87_000_000)
        ('1.23 GB', '87 MB')
    """
    if size is None:
        return MISSING
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def count(quantity: int, noun: str) -> str:
    """A number and what is counted.

    Example:
        >>> count(1, "run"), count(1200, "run")
        ('1 run', '1,200 runs')
    """
    return f"{quantity:,} {noun}{'' if quantity == 1 else 's'}"


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
