"""What to say when an optional dependency is missing: which extra brings it, and the pip command.

It wraps imports; it does not import anything itself and does not check versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mixout.errors import MissingExtraError, missing_module


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Turn a failing import in the body, for a purpose such as "metrics", into an error that names the extra.

    Raises:
        MissingExtraError: a module of the body is not installed.

    Example:
        >>> with needs("hf", "metrics"):
        ...     import a_module_that_nobody_has  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        mixout.errors.MissingExtraError: expected 'a_module_that_nobody_has' to be installed for metrics, ...
    """
    try:
        yield
    # Only "not found": an installed but broken package must show its own error, pip would not help.
    except ModuleNotFoundError as error:
        name = missing_module(error)
        if name is None:
            raise
        raise MissingExtraError(
            f'expected {name!r} to be installed for {purpose}, got no such module; run: pip install "mixout[{extra}]"'
        ) from error
