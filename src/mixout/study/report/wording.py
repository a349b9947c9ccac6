"""Numbers as text, and what methods are called and look like, the same everywhere in a report. It decides nothing.

Where a study has factors, such as a learning rate, a label names those that differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mixout.study.analysis.runs import Placed
from mixout.study.report.theme import LINES, Look

MISSING = "\u2013"


class Scores:
    """Scores of one task as text: three decimals where none exceeds 1 (fractions, log-likelihoods), else one.

    Example:
        >>> text = Scores([0.5, 0.61])
        >>> text.value(0.57), text.difference(-0.0712), text.interval(0.5, None)
        ('0.570', '\u22120.071', '\u2013')
        >>> Scores([56.5]).interval(52.3, 60.81)
        '52.3 to 60.8'
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
        """Both ends."""
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
    """Both ends; a dash where there are none."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    return f"{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)}"


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
    """A share as a whole percentage, such as ``36 %``."""
    return MISSING if share is None else f"{share * 100:.0f} %"


def memory(size: float | None) -> str:
    """Bytes in MB or GB, such as ``1.23 GB``."""
    if size is None:
        return MISSING
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


class Labels:
    """What the methods of a study are called, with the factors that differ, and what they look like.

    Example:
        >>> from mixout.study.analysis.runs import Run
        >>> from mixout.study.report.theme import looks
        >>> runs = [Run(task="RTE", method="plain", restart=0, score=0.5, factors={"epochs": n}) for n in ("3", "9")]
        >>> labels = Labels(runs, looks(["plain"], "plain"))
        >>> labels.of(runs[1]), list(labels.all())
        ('plain, epochs 9', ['plain, epochs 3', 'plain, epochs 9'])
    """

    def __init__(self, items: Iterable[Placed], looks: dict[str, Look]) -> None:
        items = list(items)
        values: dict[str, set[str | None]] = {}
        for name in {name for item in items for name in item.factors}:
            values[name] = {item.factors.get(name) for item in items}
        self.varying = sorted(name for name, seen in values.items() if len(seen) > 1)
        self.looks = looks
        self.tasks = list(dict.fromkeys(item.task for item in items))
        self._looks: dict[str, Look] = {}
        seen_of: dict[str, int] = {}
        for item in items:
            if (text := self.of(item)) not in self._looks:
                base, at = looks[item.method], seen_of.get(item.method, 0)
                # Lines of one method, with other factors, differ in their dashes.
                self._looks[text] = Look(color=base.color, mark=base.mark, line=LINES[at % len(LINES)])
                seen_of[item.method] = at + 1

    def of(self, item: Placed) -> str:
        """The label of what was among the items."""
        return ", ".join([item.method, *self._named(item)])

    def place(self, item: Placed) -> str:
        """Where it was made: its task, and the factors that differ."""
        named = self._named(item)
        return ", ".join([item.task, *named] if len(self.tasks) > 1 or not named else named)

    def _named(self, item: Placed) -> list[str]:
        return [f"{name} {item.factors[name]}" for name in self.varying if name in item.factors]

    def look(self, item: Placed) -> Look:
        """Its look."""
        return self._looks[self.of(item)]

    def all(self) -> dict[str, Look]:
        """Every label, in order, with its look."""
        return dict(self._looks)
