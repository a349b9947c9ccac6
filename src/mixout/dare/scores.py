"""One score of a curve as a row; rows as CSV, and summed up as a table. It measures nothing and draws nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean, stdev

from mixout.errors import InputError

INTERPOLATION = "interpolation"


@dataclass(frozen=True, kw_only=True)
class Score:
    """The dev set's score at one point.

    Args:
        curve: ``element`` or ``input``, what shares a coin; or ``interpolation``.
        removed: drop rate p; of the interpolation 1 - t.
        seed: of the draw; None where nothing is drawn.
        score: in the task's metric.
    """

    curve: str
    removed: float
    seed: int | None
    score: float

    @property
    def point(self) -> tuple[str, float, int | None]:
        """What tells it from the other scores of a run."""
        return self.curve, self.removed, self.seed


@dataclass(frozen=True, kw_only=True)
class Point:
    """The scores of all draws at one point, summed up; ``spread`` is their standard deviation, None of a single one."""

    curve: str
    removed: float
    draws: int
    mean: float
    spread: float | None
    low: float
    high: float


def points(scores: Sequence[Score]) -> list[Point]:
    """Mean and spread over the draws, in the order of the curves.

    Example:
        >>> draws = [Score(curve="element", removed=0.5, seed=seed, score=seed / 4) for seed in (0, 1, 2)]
        >>> points(draws)[0].mean, points(draws)[0].spread
        (0.25, 0.25)
    """
    groups: dict[tuple[str, float], list[float]] = {}
    for one in scores:
        groups.setdefault((one.curve, one.removed), []).append(one.score)
    return [
        Point(
            curve=curve,
            removed=removed,
            draws=len(found),
            mean=fmean(found),
            spread=stdev(found) if len(found) > 1 else None,
            low=min(found),
            high=max(found),
        )
        for (curve, removed), found in sorted(groups.items())
    ]


def table(scores: Sequence[Score], metric: str) -> str:
    """The points as aligned text."""
    lines = [("curve", "removed", "draws", metric, "sd", "lowest", "highest")]
    for one in points(scores):
        spread = "" if one.spread is None else f"{one.spread:.4f}"
        ends = f"{one.low:.4f}", f"{one.high:.4f}"
        lines.append((one.curve, f"{one.removed:g}", str(one.draws), f"{one.mean:.4f}", spread, *ends))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def to_csv(scores: Sequence[Score], constants: Mapping[str, str]) -> str:
    """The scores as CSV with a header; ``constants`` are further columns, after the scores' own."""
    text = io.StringIO()
    names = [item.name for item in fields(Score)]
    writer = csv.DictWriter(text, [*names, *constants], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(one), **constants} for one in scores)
    return text.getvalue()


def from_csv(text: str, constants: Mapping[str, str]) -> list[Score]:
    """The scores that :func:`to_csv` wrote with these ``constants``.

    Raises:
        InputError: if the text is no such table, or one of other constants.
    """
    found = []
    try:
        for line in csv.DictReader(io.StringIO(text)):
            other = next((name for name, value in constants.items() if line[name] != value), None)
            if other is not None:
                raise InputError(
                    f"expected scores of {other} {constants[other]!r}, got some of {line[other]!r}; choose another "
                    "--output-dir"
                )
            seed = int(line["seed"]) if line["seed"] else None
            found.append(
                Score(curve=line["curve"], removed=float(line["removed"]), seed=seed, score=float(line["score"]))
            )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"expected a table as mixout dare writes it, got something else: {error!r}") from error
    return found
