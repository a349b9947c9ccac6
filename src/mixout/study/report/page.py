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

from mixout.errors import needs
from mixout.study.report.canvas import Chart, pictures, swatch
from mixout.study.report.tables import Table

with needs("demo", "the report"):
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

# Where a long label may be broken at the end of a line.
_BREAK = re.compile(r"(?<=[+,])(?=\S)")


@dataclass(frozen=True)
class Lines:
    """Sentences, one a line; the first of an answer is its headline."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Examples:
    """Texts of the data, and what is said of each in short lines."""

    items: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Pairs:
    """Name and value."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Links:
    """Addresses of files beside the page, and what they are."""

    links: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fold:
    """Something behind a click."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Switch:
    """One of several; the first is shown, also where no script runs."""

    label: str
    options: tuple[tuple[str, tuple[Block, ...]], ...]


Block = Lines | Examples | Pairs | Code | Links | Fold | Switch | Chart | Table


@dataclass(frozen=True)
class Section:
    """A part of the page; the name is its anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]


def render(title: str, facts: str, sections: Sequence[Section]) -> str:
    """The page as HTML; ``facts`` is a line below the title, and sections without blocks are left out."""
    # Undefined names raise: a misspelled one would leave a hole in the page.
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["soft"] = lambda text: Markup("<wbr>").join(_BREAK.split(text))
    environment.filters["kind"] = lambda block: type(block).__name__
    script = _read("page.js")
    return environment.get_template("page.html.j2").render(
        title=title,
        facts=facts,
        sections=[section for section in sections if section.blocks],
        # Ours, not the user's: the only two things that are not escaped.
        css=Markup(_read("page.css")),
        script=Markup(script),
        pictures=pictures,
        swatch=swatch,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )


def _read(name: str) -> str:
    return resources.files("mixout.study.report").joinpath("template", name).read_text(encoding="utf-8")
