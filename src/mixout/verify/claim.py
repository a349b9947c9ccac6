"""One claim: what the theory says, what was found, and whether the two agree. It computes neither."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Relation = Literal["=", ">=", "<="]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A number that is expected and the number that was found.

    Args:
        topic: the part of the theory it belongs to.
        statement: what is claimed, in words.
        p: the probability that a unit is replaced by the anchor; None where the claim is about several.
        relation: of what was found to what is expected.
        expected: by the theory.
        found: by computation.
        tolerance: how far ``found`` may be on the wrong side: rounding where expectations are exact, a stated number
            of standard errors where they are sampled.

    Example:
        >>> Claim(topic="t", statement="s", p=0.5, relation=">=", expected=1.0, found=0.9, tolerance=0.0).holds
        False
    """

    topic: str
    statement: str
    p: float | None
    relation: Relation
    expected: float
    found: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it does. A number that is not finite never does."""
        gap = self.found - self.expected
        if self.relation == "=":
            return abs(gap) <= self.tolerance
        return gap >= -self.tolerance if self.relation == ">=" else gap <= self.tolerance


def equals(topic: str, statement: str, p: float | None, expected: float, found: float) -> Claim:
    """The claim that two exact computations in float64 agree: to 1e-9 of the larger one, or to 1e-12."""
    tolerance = 1e-9 * max(abs(expected), abs(found)) + 1e-12
    return Claim(
        topic=topic, statement=statement, p=p, relation="=", expected=expected, found=found, tolerance=tolerance
    )


def at_least(topic: str, statement: str, p: float | None, expected: float, found: float) -> Claim:
    """The claim that an exact expectation is not below a bound, but for rounding."""
    tolerance = 1e-12 * max(1.0, abs(expected))
    return Claim(
        topic=topic, statement=statement, p=p, relation=">=", expected=expected, found=found, tolerance=tolerance
    )


def table(claims: Sequence[Claim]) -> str:
    """The claims as aligned text, under their topics."""
    head = ("claim", "p", "expected", "found", "holds")
    cells = [
        (
            f"  {claim.statement}",
            "" if claim.p is None else f"{claim.p:g}",
            f"{claim.relation:>2} {claim.expected:.6g}",
            f"{claim.found:.6g}",
            "yes" if claim.holds else "NO",
        )
        for claim in claims
    ]
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    lines = ["  ".join(map(str.ljust, head, widths)).rstrip()]
    topic = ""
    for claim, line in zip(claims, cells, strict=True):
        if claim.topic != topic:
            topic = claim.topic
            lines.append(topic)
        lines.append("  ".join(map(str.ljust, line, widths)).rstrip())
    return "\n".join(lines)


def claims_csv(claims: Sequence[Claim], constants: Mapping[str, str]) -> str:
    """The claims as CSV, with whether they hold."""
    return _csv([{**asdict(claim), "holds": claim.holds} for claim in claims], constants)


def rows_csv(rows: Sequence[DataclassInstance], constants: Mapping[str, str]) -> str:
    """Rows of one dataclass as CSV; ``constants`` are further columns that are equal in all rows.

    Example:
        >>> claim = Claim(topic="t", statement="s", p=0.5, relation="=", expected=1.0, found=1.0, tolerance=0.0)
        >>> print(rows_csv([claim], {"torch": "2"}), end="")
        topic,statement,p,relation,expected,found,tolerance,torch
        t,s,0.5,=,1.0,1.0,0.0,2
    """
    return _csv([{item.name: getattr(row, item.name) for item in fields(row)} for row in rows], constants)


def _csv(rows: Sequence[Mapping[str, Any]], constants: Mapping[str, str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0], *constants], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **constants} for row in rows)
    return text.getvalue()
