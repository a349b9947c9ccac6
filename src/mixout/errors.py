"""Errors that a caller may catch.

Every error that mixout raises on purpose, apart from plain ``ValueError`` and ``TypeError`` for single
arguments, derives from :class:`MixoutError`. Each also derives from the builtin exception that fits, so that
code that knows nothing of mixout still catches it.
"""

from __future__ import annotations


class MixoutError(Exception):
    """Base of the errors that mixout raises on purpose."""


class NothingMixedError(MixoutError, ValueError):
    """A mixing method was applied, but no layer was selected that can be mixed."""


class AlreadyAppliedError(MixoutError, RuntimeError):
    """The model already carries a method; remove it first."""


class NotAppliedError(MixoutError, RuntimeError):
    """The model carries no method; apply one first."""


class AnchorMismatchError(MixoutError, ValueError):
    """The anchor is not the one that is expected: names, shapes or fingerprint differ."""


class RankMismatchError(MixoutError, RuntimeError):
    """Ranks of a distributed run differ where they should agree; the message says in what."""


class MissingExtraError(MixoutError, ImportError):
    """An optional dependency is missing; the message names the pip command."""


class InputError(MixoutError, ValueError):
    """Settings or data given by the user cannot be used; the message says what to do."""


class MixoutWarning(UserWarning):
    """Base of the warnings that mixout gives."""


class FineTunedAnchorWarning(MixoutWarning):
    """The weights of a run under way have become the anchor, where the pretrained ones were expected."""


class ZeroDecayWarning(MixoutWarning):
    """An optimizer decays weights towards zero that a method decays towards their start."""


class GenerationWarning(MixoutWarning):
    """A model was asked to generate in training mode; it does so unmixed."""


class FrozenLayersWarning(MixoutWarning):
    """Every layer that was chosen is frozen, so nothing is mixed until a weight requires a gradient."""


def missing_module(error: ImportError) -> str | None:
    """The package that an import lacked, or None; loaders that import lazily hide it in the cause of their error.

    Example:
        >>> missing_module(ModuleNotFoundError("no a.b", name="a.b")), missing_module(ModuleNotFoundError("broken"))
        ('a', None)
    """
    found: BaseException | None = error
    while isinstance(found, ImportError):
        if found.name:
            return found.name.partition(".")[0]
        found = found.__cause__
    return None
