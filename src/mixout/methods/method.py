"""What a method is: a frozen description. :mod:`mixout.apply` acts on it."""

from __future__ import annotations

from typing import ClassVar


class Method:
    """One way to fine-tune. Abstract; subclasses are frozen dataclasses.

    ``name`` is how :func:`mixout.methods.parse` and :func:`mixout.methods.spell` write it.
    """

    name: ClassVar[str]
