"""An extension of griffe: the docstrings' few words of reStructuredText, in Markdown."""

from __future__ import annotations

import re

import griffe

# What is written in the source, and what it becomes.
CHANGES = (
    (re.compile(r"^( *)Example:$", re.MULTILINE), r"\1Examples:"),  # the section whose code is shown as code
    (re.compile(r":(?:func|class|meth|mod|attr|data|math|exc):`~?([^`]*)`"), r"`\1`"),
    (re.compile(r"^( *)\.\. math:: (.*)$", re.MULTILINE), r"\1`\2`"),
    (re.compile(r"(?<=\w)::$", re.MULTILINE), ":"),
)


class Markdown(griffe.Extension):  # type: ignore[misc]  # not installed beside the types
    """Changes each docstring as it is read."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change that of ``obj``."""
        if obj.docstring:
            for pattern, replacement in CHANGES:
                obj.docstring.value = pattern.sub(replacement, obj.docstring.value)
