"""Numbers first: what the restarts of each method scored, as rows, text and CSV. It draws nothing and runs nothing."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from mixout.finetune.record import Record


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method over its restarts.

    Args:
        method: as text.
        restarts: number of runs.
        mean: of the scores.
        sd: sample standard deviation; 0 of a single run.
        min: lowest score.
        max: highest score; grows with the number of restarts, so compare it between equal numbers only.
        failed: runs at or below the score of a constant answer.
        distance: mean of ||w - u|| over the pretrained parameters.
        seconds: mean training time.
    """

    method: str
    restarts: int
    mean: float
    sd: float
    min: float
    max: float
    failed: int
    distance: float
    seconds: float


def summarise(records: Sequence[Record]) -> list[Row]:
    """One row a method, in the order of their first record."""
    rows = []
    for method in dict.fromkeys(record.settings.method for record in records):
        runs = [record for record in records if record.settings.method == method]
        scores = [record.score for record in runs]
        rows.append(
            Row(
                method=method,
                restarts=len(runs),
                mean=statistics.fmean(scores),
                sd=statistics.stdev(scores) if len(scores) > 1 else 0.0,
                min=min(scores),
                max=max(scores),
                failed=sum(record.score <= record.chance for record in runs),
                distance=statistics.fmean(record.distance for record in runs),
                seconds=statistics.fmean(record.seconds for record in runs),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    width = max(len(row.method) for row in rows)
    head = f"{'method':<{width}}  restarts   mean     sd    min    max  failed  ||w-u||  seconds"
    lines = [
        f"{row.method:<{width}}  {row.restarts:>8}  {row.mean:.3f}  {row.sd:.3f}  {row.min:.3f}  {row.max:.3f}"
        f"  {row.failed:>6}  {row.distance:>7.2f}  {row.seconds:>7.1f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
