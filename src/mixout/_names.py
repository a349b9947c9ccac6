"""Names that are not there: an error that tells the new one, or the one that was meant. And counts in words."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], NoReturn]:
    """A ``__getattr__`` for ``module``, whose ``names`` of an earlier version lead to the present ones.

    An old name raises an ImportError: ``from module import name`` replaces an AttributeError by one of its own words.
    """

    def look_up(name: str) -> NoReturn:
        missing = f"module {module!r} has no attribute {name!r}"
        if name in names:
            raise ImportError(f"{missing}; it is called {names[name]} now")
        raise AttributeError(missing)

    return look_up


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown ``name``: the valid one that it resembles, or nothing.

    Example:
        >>> nearest("mixuot", ["mixout", "dropout"])
        "; did you mean 'mixout'?"
    """
    folded = {_fold(one): one for one in valid}
    close = difflib.get_close_matches(_fold(name), list(folded), n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def count(quantity: float, noun: str) -> str:
    """A number and what is counted.

    Example:
        >>> count(1200, "run"), count(1, "row"), count(1.5, "epoch")
        ('1,200 runs', '1 row', '1.5 epochs')
    """
    number = f"{quantity:,}" if isinstance(quantity, int) else f"{quantity:.3g}"
    return f"{number} {noun}{'' if quantity == 1 else 's'}"


def _fold(name: str) -> str:
    return name.lower().replace("-", "_")
