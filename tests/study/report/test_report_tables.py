"""Tables in Markdown and LaTeX with texts that mean something there: each is undone by the format's own rules."""

from __future__ import annotations

import html
import re

from mixout.study.report.markup import to_latex, to_markdown
from mixout.study.report.tables import Table, Value

NASTY = "a|b <i>*x*</i> `c` \\d w_pre 5 % & $1 #2 {y} ~z ^0 \u22121"

COMMANDS = {"backslash": "\\", "asciitilde": "~", "asciicircum": "^"}


def _table(*rows) -> Table:
    return Table(name="t", title="100 %", columns=("method", "n_1"), rows=rows, note="A_note")


def test_markdown_cells_survive():
    text = to_markdown([_table((Value(NASTY), Value("1")))])
    row = text.splitlines()[4]
    cells = re.split(r"(?<!\\)\|", row)[1:-1]
    assert len(cells) == 2
    assert html.unescape(re.sub(r"\\([\\|*`])", r"\1", cells[0].strip())) == NASTY


def test_latex_cells_survive():
    text = to_latex([_table((Value(NASTY), Value("1", 1.0, mark="highest")))])
    row = next(line for line in text.splitlines() if line.strip().startswith("a"))
    first, second = re.split(r"(?<!\\)&", row.removesuffix(r" \\"))
    undone = first.strip()
    for command, letter in COMMANDS.items():
        undone = undone.replace(rf"\text{command} ", f"\0{letter}")
    undone = re.sub(r"\$([<>|])\$", r"\1", undone.replace("$-$", "\u2212"))
    undone = re.sub(r"\\([&%$#_{}])", r"\1", undone).replace("\0", "")
    assert undone == NASTY
    assert second.strip() == r"\textbf{1}"
    # Nothing that LaTeX reads as a command's argument is left open.
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    assert r"\caption{100 \%. A\_note}" in text
