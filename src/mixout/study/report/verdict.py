"""The verdict: what the comparisons show and do not show, strongest first. It orders sentences and tests nothing."""

from __future__ import annotations

from collections.abc import Sequence

from mixout.study.analysis.cells import Cell
from mixout.study.analysis.stats import ALPHA
from mixout.study.analysis.summary import Summary
from mixout.study.report.page import Section, Statements
from mixout.study.report.wording import count


def verdict(summary: Summary) -> Section:
    """The first section of the page."""
    # Equal p values are common at the smallest that a permutation test can reach.
    ordered = sorted(
        summary.comparisons, key=lambda one: (one.p_holm, one.p_permutation, -abs(one.difference * one.points))
    )
    return Section(
        name="verdict",
        title="Verdict",
        lead=summary.verdict,
        statements=(
            Statements(title="What the data show", texts=tuple(one.sentence for one in ordered if one.p_holm <= ALPHA)),
            Statements(
                title="What the data do not show", texts=tuple(one.sentence for one in ordered if one.p_holm > ALPHA)
            ),
            Statements(title="What was left out", texts=summary.notes),
        ),
    )


def facts(cells: Sequence[Cell]) -> str:
    """How large the study is, in a line."""
    runs, failed = sum(cell.runs for cell in cells), sum(cell.failed for cell in cells)
    sizes = sorted({cell.runs for cell in cells})
    restarts = count(sizes[0], "restart") if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} restarts"
    values: dict[str, set[str]] = {}
    for cell in cells:
        for name, value in cell.factors.items():
            values.setdefault(name, set()).add(value)
    parts = [
        count(runs, "run"),
        count(len({cell.task for cell in cells}), "task"),
        count(len({cell.method for cell in cells}), "method"),
        *(f"{len(seen)} values of {name}" for name, seen in sorted(values.items()) if len(seen) > 1),
        f"{restarts} each",
        f"{failed:,} failed",
    ]
    return " \u00b7 ".join(parts)
