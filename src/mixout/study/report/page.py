"""The page: one HTML file that needs no other and asks no network for anything.

Style and script stand in it. All text is escaped by the template engine, and a content security policy lets nothing run
or load but the page's own script, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from mixout.errors import needs
from mixout.study.report.canvas import pictures, swatch

with needs("demo", "the report"):
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

# Where a long label may be broken at the end of a line.
_BREAK = re.compile(r"(?<=[+,])(?=\S)")


@dataclass(frozen=True)
class Section:
    """A part of the page; the name is its anchor."""

    name: str
    title: str
    blocks: Sequence[Markup]


def block(kind: str, *values: object) -> Markup:
    """A piece of a section, by the macro of ``blocks.html.j2`` of that name."""
    return Markup(getattr(_templates().get_template("blocks.html.j2").module, kind)(*values))


def render(title: str, facts: str, sections: Sequence[Section]) -> str:
    """The page as HTML; ``facts`` is a line below the title, and sections without blocks are left out."""
    script = _read("page.js")
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            title=title,
            facts=facts,
            sections=[section for section in sections if section.blocks],
            # Ours, not the user's: not escaped.
            css=Markup(_read("page.css")),
            script=Markup(script),
            script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        )
    )


@cache
def _templates() -> Environment:
    # Undefined names raise: a misspelled one would leave a hole in the page.
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["soft"] = lambda text: Markup("<wbr>").join(_BREAK.split(text))
    environment.globals.update(pictures=pictures, swatch=swatch)
    return environment


def _read(name: str) -> str:
    return resources.files("mixout.study.report").joinpath("template", name).read_text(encoding="utf-8")
