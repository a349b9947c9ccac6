"""One claim: what the theory says, what was found, and whether the two agree. It computes neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A number that is expected and the number that was found.

    Args:
        topic: the part of the theory it belongs to.
        statement: what is claimed, in words.
        p: the probability that a unit is replaced by the anchor.
        relation: of what was found to what is expected.
        expected: by the theory.
        found: by computation.
        tolerance: how far ``found`` may be on the wrong side.

    Example:
        >>> Claim(topic="t", statement="s", p=0.5, relation=">=", expected=1.0, found=0.9).holds
        False
    """

    topic: str
    statement: str
    p: float
    relation: Literal["=", ">=", "<="] = "="
    expected: float
    found: float
    tolerance: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it does. A number that is not finite never does."""
        gap = self.found - self.expected
        if self.relation == "=":
            return abs(gap) <= self.tolerance
        return gap >= -self.tolerance if self.relation == ">=" else gap <= self.tolerance


def equals(topic: str, statement: str, p: float, expected: float, found: float) -> Claim:
    """Two exact computations in float64 agree: to 1e-9 of the larger one, or to 1e-12."""
    tolerance = 1e-9 * max(abs(expected), abs(found)) + 1e-12
    return Claim(topic=topic, statement=statement, p=p, expected=expected, found=found, tolerance=tolerance)


def at_least(topic: str, statement: str, p: float, expected: float, found: float) -> Claim:
    """An exact expectation is not below a bound, except for rounding."""
    tolerance = 1e-12 * max(1.0, abs(expected))
    return Claim(
        topic=topic, statement=statement, p=p, relation=">=", expected=expected, found=found, tolerance=tolerance
    )  # fmt: skip
