"""Names of an earlier version: an error that tells the new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], NoReturn]:
    """A ``__getattr__`` for ``module``, whose ``names`` of an earlier version lead to the present ones.

    An old name raises an ImportError: ``from module import name`` replaces an AttributeError by one of its own words.

    Example:
        >>> renamed("shapes", {"Ring": "Torus"})("Ring")
        Traceback (most recent call last):
        ImportError: module 'shapes' has no attribute 'Ring'; it is called Torus now
    """

    def look_up(name: str) -> NoReturn:
        missing = f"module {module!r} has no attribute {name!r}"
        if name in names:
            raise ImportError(f"{missing}; it is called {names[name]} now")
        raise AttributeError(missing)

    return look_up
