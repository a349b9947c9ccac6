"""Numbers as a reader needs them, in the answer, the report and on the command line."""

from __future__ import annotations

from mixout._names import count as count
from mixout.study.analysis.stats import ALPHA


def p_value(p: float) -> str:
    """The value of p: no more digits than it carries, but on the right side of 0.05.

    Example:
        >>> [p_value(p) for p in (0.00002, 0.0042, 0.031, 0.0496, 0.3, 1.0)]
        ['< 0.001', '0.004', '0.03', '0.050', '0.30', '1']
    """
    if p < 0.001:
        return "< 0.001"
    if p >= 0.995:
        return "1"
    return f"{p:.{3 if p < 0.01 or abs(p - ALPHA) < 0.005 else 2}f}"


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


def percent_of(level: float) -> str:
    """A confidence level, such as ``97.5 %``."""
    return f"{round(100 * level, 1):g} %"


def in_points(points: float) -> str:
    """A number of points."""
    return f"{points:g} point{'' if points == 1 else 's'}"


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
