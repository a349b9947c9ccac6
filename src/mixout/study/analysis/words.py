"""Numbers and errors as a reader needs them, in the answer, the report and on the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mixout.study.analysis.stats import ALPHA

MISSING = "\u2013"


def p_value(p: float) -> str:
    """The value of p: no more digits than it carries, but on the right side of 0.05.

    Example:
        >>> [p_value(p) for p in (0.00002, 0.0042, 0.031, 0.0496, 0.0504, 0.3, 1.0)]
        ['< 0.001', '0.004', '0.03', '0.0496', '0.0504', '0.30', '1']
    """
    if p < 0.001:
        return "< 0.001"
    if p >= 0.995:
        return "1"
    distance = abs(p - ALPHA)
    return f"{p:.{4 if distance < 0.0005 else 3 if p < 0.01 or distance < 0.005 else 2}f}"


def rounded(points: float) -> str:
    """Points with one digit, or with the first that is not 0.

    Example:
        >>> rounded(5.12), rounded(0.0042), rounded(1e-15)
        ('5.1', '0.004', '0.0')
    """
    text = f"{points:.1f}"
    if text not in ("0.0", "-0.0"):
        return text
    return f"{points:.1g}" if abs(points) > 1e-9 else "0.0"


def figures(points: float) -> str:
    """Points with two digits, large ones as whole numbers.

    Example:
        >>> figures(0.0312), figures(2.04), figures(99.6), figures(1234.5)
        ('0.031', '2', '100', '1,234')
    """
    return f"{points:.2g}" if abs(points) < 99.5 else f"{points:,.0f}"


def percent_of(level: float) -> str:
    """A confidence level, such as ``97.5 %``."""
    return f"{round(100 * level, 1):g} %"


def in_words(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> in_words(42.4), in_words(600), in_words(9000), in_words(5e5)
        ('42 s', '10 min', '2.5 h', '5.8 days')
    """
    for limit, unit, form in ((100, 1, ".0f} s"), (100 * 60, 60, ".0f} min"), (48 * 3600, 3600, ".1f} h")):
        if seconds < limit:
            return f"{{:{form}".format(seconds / unit)
    return f"{seconds / 86400:.1f} days"


class Scores:
    """Scores of one task as text: three decimals where none exceeds 1 (fractions, log-likelihoods), else one.

    Example:
        >>> Scores([0.5, 0.61]).value(0.57), Scores([56.5]).difference(-2.31)
        ('0.570', '\u22122.3')
    """

    def __init__(self, scores: Iterable[float]) -> None:
        self.digits = 3 if all(score <= 1 for score in scores if math.isfinite(score)) else 1

    def value(self, value: float | None) -> str:
        """A score."""
        return number(value, self.digits)

    def difference(self, value: float | None) -> str:
        """A difference of scores, with its sign."""
        return number(value, self.digits, sign=True)


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A number with a true minus sign; a dash if there is none.

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
    """Both ends of an interval; a dash if there are none.

    Example:
        >>> interval(52.3, 60.81, 1), interval(-0.2, 1.0, 1, sign=True), interval(0.5, None, 1)
        ('52.3 to 60.8', '\u22120.2 to +1.0', '\u2013')
    """
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    return f"{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)}"


def compact(values: Sequence[float]) -> list[str]:
    """Values of one axis in few letters: large ones as powers of ten, those below 1 as well if some are small.

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


def error_of(traceback: str) -> str:
    r"""Type and message of the exception that a traceback is of; of several lines the first that says something.

    Example:
        >>> error_of('Traceback:\n  File "a.py", line 1, in f\n    f()\nRuntimeError: CUDA error\nSee there.')
        'RuntimeError: CUDA error'
    """
    lines = traceback.strip().rpartition('\n  File "')[2].splitlines()
    start = next((index for index, line in enumerate(lines[1:], start=1) if line[:1].strip()), -1)
    first, *others = lines[start:] or [""]
    more = next((line.strip() for line in others if line.strip()), "") if first.rstrip().endswith(":") else ""
    return f"{first.rstrip()} {more}".strip()
