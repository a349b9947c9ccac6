"""Tables as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from mixout.study.report.tables import Table

# Underscores within words, as in w_pre, are plain text in Markdown.
_MARKDOWN = str.maketrans({"\\": "\\\\", "|": "\\|", "*": "\\*", "`": "\\`", "<": "&lt;", ">": "&gt;", "\n": " "})
_CAPTION = str.maketrans(
    {
        "\\": r"\textbackslash ",
        "~": r"\textasciitilde ",
        "^": r"\textasciicircum ",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }
)
_LATEX = str.maketrans({"\u2212": "$-$", "\u2013": "--", "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": "$|$"})


def to_markdown(tables: Sequence[Table]) -> str:
    r"""The tables as Markdown, each under a heading; marked values are bold.

    Example:
        >>> from mixout.study.report.tables import Value
        >>> rows = ((Value("x|y"), Value("1", 1, "shown")),)
        >>> print(to_markdown([Table(name="t", title="T", columns=("a", "b"), rows=rows)]))
        ## T
        <BLANKLINE>
        | a | b |
        |:--|--:|
        | x\|y | **1** |
        <BLANKLINE>
    """
    blocks = []
    for one in tables:
        rows = [[f"**{_markdown(v.text)}**" if v.mark else _markdown(v.text) for v in row] for row in one.rows]
        lines = [f"| {' | '.join(row)} |" for row in ([*map(_markdown, one.columns)], *rows)]
        lines.insert(1, f"|{'|'.join('--:' if numeric else ':--' for numeric in one.numeric)}|")
        note = f"\n{_markdown(one.note)}\n" if one.note else ""
        blocks.append("\n".join([f"## {_markdown(one.title)}\n", *lines, note]))
    return "\n".join(blocks)


def to_latex(tables: Sequence[Table]) -> str:
    """The tables as LaTeX with booktabs, by pandas; marked values are bold."""
    blocks = [r"% needs \usepackage{booktabs}"]
    for one in tables:
        frame = pandas.DataFrame([[value.text for value in row] for row in one.rows], columns=list(one.columns))
        bold = [["textbf:--rwrap;" if value.mark else "" for value in row] for row in one.rows]
        styler = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        styler = styler.apply(lambda shown, bold=bold: pandas.DataFrame(bold, shown.index, shown.columns), axis=None)
        layout = "".join("r" if numeric else "l" for numeric in one.numeric)
        caption = (f"{one.title}. {one.note}" if one.note else one.title).translate(_CAPTION)
        blocks.append(styler.to_latex(hrules=True, column_format=layout, caption=caption))
    return "\n".join(blocks).translate(_LATEX)


def _markdown(text: str) -> str:
    return text.translate(_MARKDOWN)
