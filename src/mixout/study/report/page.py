"""The page as a value, and its HTML: one file that needs no other and asks no network for anything.

Style and script stand in the page. All text is escaped by the template engine, and a content security policy lets
nothing run or load but the page's own script, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from mixout.finetune.extras import needs
from mixout.study.report.canvas import Chart, pictures, swatch
from mixout.study.report.tables import Table

with needs("demo", "the report"):
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

# Where a long label may be broken at the end of a line.
_BREAK = re.compile(r"(?<=[+,])(?=\S)")


@dataclass(frozen=True, kw_only=True)
class Statements:
    """Statements under a heading.

    Args:
        title: of the list.
        texts: one or more sentences each; the first of them is set off.
        shown: as many are seen at once, the others after a click.
    """

    title: str
    texts: tuple[str, ...]
    shown: int = 4

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Each text as its first sentence and the others."""
        split = [text.partition(". ") for text in self.texts]
        return [(first + (stop and "."), rest) for first, stop, rest in split]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page; what is empty is left out.

    Args:
        name: the anchor; unique within the page.
        title: the heading.
        lead: the answer in a sentence.
        statements: lists of sentences.
        chart: drawn here, with its caption.
        tables: in order.
        folded: title and preformatted text, behind a click.
        pairs: name and value.
        code: lines to copy.
        links: addresses of files beside the page, and what they are.
    """

    name: str
    title: str
    lead: str = ""
    statements: tuple[Statements, ...] = ()
    chart: Chart | None = None
    tables: tuple[Table, ...] = ()
    folded: tuple[tuple[str, str], ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    code: str = ""
    links: tuple[tuple[str, str], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing under the heading."""
        body = (self.lead, self.chart, self.tables, self.folded, self.pairs, self.code, self.links)
        return not any(body) and not any(group.texts for group in self.statements)


def render(title: str, facts: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: of the page.
        facts: a line below it.
        sections: in order; empty ones are left out.

    Returns:
        HTML.
    """
    # Undefined names raise: a misspelled one would leave a hole in the page.
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["soft"] = lambda text: Markup("<wbr>").join(_BREAK.split(text))
    script = _read("page.js")
    return environment.get_template("page.html.j2").render(
        title=title,
        facts=facts,
        sections=[section for section in sections if not section.empty],
        # Ours, not the user's: the only two things that are not escaped.
        css=Markup(_read("page.css")),
        script=Markup(script),
        pictures=pictures,
        swatch=swatch,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )


def _read(name: str) -> str:
    return resources.files("mixout.study.report").joinpath("template", name).read_text(encoding="utf-8")
