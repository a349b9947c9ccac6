"""A table as a value: what the page, Markdown and LaTeX show of it. Its numbers are texts already, in one width.

CSV files are written elsewhere, from full precision. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixout.study.report.wording import MISSING


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Args:
        name: its head.
        numeric: aligned to the right, and sorted by number.
        explanation: what the head means, for who does not know.
    """

    name: str
    numeric: bool = True
    explanation: str = ""


@dataclass(frozen=True)
class Value:
    """A place of a table.

    Args:
        text: what is shown.
        order: what is sorted by; the text where it is None.
        extra: shown after the text, smaller: an interval.
        mark: why it is set off; empty where it is not.
    """

    text: str
    order: float | None = None
    extra: str = ""
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns; the first column names the row.

    Args:
        name: unique within a report.
        title: a few words.
        columns: at least one.
        rows: as many values as columns each.
        note: a sentence below it.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""


METHOD = Column(name="method", numeric=False)


def compact(
    name: str, title: str, columns: Sequence[Column], rows: Sequence[tuple[Value, ...]], note: str = ""
) -> Table:
    """A table without the columns that say nothing in any row."""
    kept = [at for at in range(len(columns)) if any(row[at].text != MISSING for row in rows)]
    return Table(
        name=name,
        title=title,
        columns=tuple(columns[at] for at in kept),
        rows=tuple(tuple(row[at] for at in kept) for row in rows),
        note=note,
    )


def to_markdown(tables: Sequence[Table]) -> str:
    r"""The tables as Markdown, each under a heading; marked values are bold.

    Example:
        >>> table = Table(name="t", title="T", columns=(Column(name="a", numeric=False), Column(name="b")),
        ...     rows=((Value("x|y"), Value("1.5", extra="[1, 2]", mark="highest")),))
        >>> print(to_markdown([table]))
        ## T
        <BLANKLINE>
        | a | b |
        |:--|--:|
        | x\|y | **1.5** [1, 2] |
        <BLANKLINE>
    """
    blocks = []
    for table in tables:
        head = " | ".join(_markdown(column.name) for column in table.columns)
        rule = "|".join("--:" if column.numeric else ":--" for column in table.columns)
        rows = [f"| {' | '.join(_markdown_value(value) for value in row)} |" for row in table.rows]
        note = f"\n{_markdown(table.note)}\n" if table.note else ""
        blocks.append("\n".join([f"## {_markdown(table.title)}\n", f"| {head} |", f"|{rule}|", *rows, note]))
    return "\n".join(blocks)


def to_latex(tables: Sequence[Table]) -> str:
    r"""The tables as LaTeX with booktabs; marked values are bold.

    Example:
        >>> table = Table(name="t", title="50 %", columns=(Column(name="a_b", numeric=False),), rows=((Value("x"),),))
        >>> print(to_latex([table]))
        % needs \usepackage{booktabs}
        \begin{table}
          \centering
          \caption{50 \%}
          \begin{tabular}{l}
            \toprule
            a\_b \\
            \midrule
            x \\
            \bottomrule
          \end{tabular}
        \end{table}
        <BLANKLINE>
    """
    lines = [r"% needs \usepackage{booktabs}"]
    for table in tables:
        layout = "".join("r" if column.numeric else "l" for column in table.columns)
        rows = [" & ".join(_latex_value(value) for value in row) for row in table.rows]
        caption = _latex(f"{table.title}. {table.note}" if table.note else table.title)
        lines += [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{caption}}}",
            rf"  \begin{{tabular}}{{{layout}}}",
            r"    \toprule",
            f"    {' & '.join(_latex(column.name) for column in table.columns)} \\\\",
            r"    \midrule",
            *(f"    {row} \\\\" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(lines)


def _markdown_value(value: Value) -> str:
    text = f"**{_markdown(value.text)}**" if value.mark else _markdown(value.text)
    return f"{text} {_markdown(value.extra)}".rstrip()


# Underscores within words, as in w_pre, are plain text in Markdown.
_MARKDOWN = str.maketrans({"\\": "\\\\", "|": "\\|", "*": "\\*", "`": "\\`", "<": "&lt;", ">": "&gt;", "\n": " "})
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\u2212": "$-$",
        "\u2013": "--",
        "\u00d7": r"$\times$",
        "\n": " ",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }
)


def _markdown(text: str) -> str:
    return text.translate(_MARKDOWN)


def _latex_value(value: Value) -> str:
    text = rf"\textbf{{{_latex(value.text)}}}" if value.mark else _latex(value.text)
    return f"{text} {_latex(value.extra)}".rstrip()


def _latex(text: str) -> str:
    return text.translate(_LATEX)
