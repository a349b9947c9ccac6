"""Rows of results as text and as CSV. It measures nothing and draws nothing."""

from __future__ import annotations

import csv
import io
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from mixout.errors import InputError
from mixout.finetune.environment import hardware, versions

_VERSIONS = ("python", "torch", "transformers", "mixout")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison with plain fine-tuning.

    Args:
        what: ``step``, ``layer`` or ``memory``.
        case: name of the case; of a layer its (in x out).
        tokens: in a step.
        precision: ``fp32``, or ``bf16`` for autocast.
        compiled: whether both ran under ``torch.compile``.
        method: name of the method.
        p: its probability.
        mode: ``train`` or ``eval``.
        anchor: how anchors are kept: empty, as the weights; ``bf16``; or ``host``.
        quantity: ``time``; ``saved``, what autograd keeps for backward; ``saved+anchor``, the anchors included; or
            ``peak``, allocated on the GPU.
        ratio: to plain fine-tuning, median of the pairs.
        low: lower quartile of the pairs' ratios.
        high: upper quartile.
        pairs: how many.
        floor: the ratio that the arithmetic alone would have; None where there is no such thing.
        plain: seconds or bytes of plain fine-tuning, median.
        value: seconds or bytes of the method, median.
    """

    what: str
    case: str
    tokens: int
    precision: str
    compiled: bool
    method: str
    p: float
    mode: str
    anchor: str
    quantity: str
    ratio: float
    low: float
    high: float
    pairs: int
    floor: float | None
    plain: float
    value: float

    @property
    def label(self) -> str:
        """The method with its p."""
        return label(self.method, self.p, self.mode, self.anchor)


def label(method: str, p: float, mode: str, anchor: str) -> str:
    """A method with its p, and what is unusual about it.

    Example:
        >>> label("mixout", 0.9, "train", ""), label("mixout", 0.9, "eval", ""), label("mixout", 0.9, "train", "bf16")
        ('mixout(0.9)', 'mixout(0.9), eval', 'mixout(0.9), bf16 anchor')
    """
    return f"{method}({p:g})" + ("" if mode == "train" else ", eval") + (f", {anchor} anchor" if anchor else "")


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text: ratios, no absolute times."""
    head = ("what", "case", "tokens", "precision", "method", "quantity", "ratio", "quartiles", "pairs", "floor")
    cells = [head] + [
        (
            row.what,
            row.case,
            f"{row.tokens:,}",
            row.precision + (" compiled" if row.compiled else ""),
            row.label,
            row.quantity,
            f"{row.ratio:.3f}",
            f"{row.low:.3f} {row.high:.3f}",
            str(row.pairs),
            "" if row.floor is None else f"{row.floor:.3f}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def environment() -> dict[str, str]:
    """The columns that say on what and when: they are equal in all rows of a file."""
    found = versions()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        **{name: "" if value is None else str(value) for name, value in hardware().items()},
        **{name: found[name] for name in _VERSIONS if name in found},
    }


def to_csv(rows: Sequence[Row], constants: Mapping[str, str]) -> str:
    """The rows as CSV with a header; ``constants`` are further columns, after the rows' own."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*(item.name for item in fields(Row)), *constants], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(row), **constants} for row in rows)
    return text.getvalue()


def from_csv(text: str) -> list[Row]:
    """The rows that :func:`to_csv` wrote, without the further columns.

    Raises:
        InputError: if a column is missing or a value is not of its type.
    """
    kinds = typing.get_type_hints(Row)
    try:
        return [
            Row(**{name: _value(kind, line[name]) for name, kind in kinds.items()})
            for line in csv.DictReader(io.StringIO(text))
        ]
    except (KeyError, ValueError) as error:
        raise InputError(f"expected a table as mixout bench writes it, got something else: {error!r}") from error


def _value(kind: Any, text: str) -> Any:  # noqa: ANN401  a type, or a union of types
    if isinstance(kind, types.UnionType):
        return None if text == "" else float(text)
    if kind is bool:
        return {"True": True, "False": False}[text]
    return kind(text)
