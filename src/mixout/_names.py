"""Errors for names that do not exist, with the new name or the one that was meant; and counts in words."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn


def renamed(
    module: str, names: Mapping[str, str], valid: Callable[[], Iterable[str]] = tuple
) -> Callable[[str], NoReturn]:
    """A ``__getattr__`` for ``module``: ``names`` of an earlier version lead to present ones, typos to ``valid``."""

    def look_up(name: str) -> NoReturn:
        missing = f"module {module!r} has no attribute {name!r}"
        if name in names:  # no AttributeError: ``from module import name`` would replace its message
            raise ImportError(f"{missing}; it is called {names[name]} now")
        raise AttributeError(missing + nearest(name, valid()) if not name.startswith("_") else missing)

    return look_up


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown ``name``: "; did you mean 'mixout'?", or nothing."""
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in valid}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), list(folded), n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def count(quantity: float, noun: str) -> str:
    """A number and what is counted: 1,200 runs, 1 row, 1.5 epochs."""
    number = f"{quantity:,}" if isinstance(quantity, int) else f"{quantity:.3g}"
    return f"{number} {noun}{'' if quantity == 1 else 's'}"
