"""Errors and warnings that a caller may catch; each docstring says what to do.

Every error that mixout raises on purpose, apart from plain ``ValueError`` and ``TypeError`` for single arguments,
derives from :class:`MixoutError`. Each also derives from the builtin exception that fits, so that code that knows
nothing of mixout still catches it. Every warning derives from :class:`MixoutWarning`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class MixoutError(Exception):
    """Base of the errors that mixout raises on purpose. The message says what was found and what to do."""


class NothingMixedError(MixoutError, ValueError):
    """A mixing method finds no layer that can be mixed, or only the new head.

    What to do: look at ``print(mixout.coverage(model, method))``, which says of each layer why it is not mixed; choose
    other layers with ``where=``, or register the class of a layer of your own with ``mixout.register``.
    """


class AlreadyAppliedError(MixoutError, RuntimeError):
    """The model, or a part of it, carries a method already.

    What to do: call ``mixout.remove_(model)`` first, or give several methods in one call.
    """


class NotAppliedError(MixoutError, RuntimeError):
    """The model carries no method, or none that mixes or has an anchor.

    What to do: call ``mixout.apply_(model, method)`` first.
    """


class AnchorMismatchError(MixoutError, ValueError):
    """The anchor is not the one that is expected: names, shapes or fingerprint differ.

    What to do: load the pretrained weights, call ``apply_``, and only then load the checkpoint of the run. Where the
    anchor lacks a layer, leave it out with ``where=``.
    """


class RankMismatchError(MixoutError, RuntimeError):
    """Ranks of a distributed run differ where they should agree; the message says in what.

    What to do: apply the same method with the same seed to the same weights on every rank, or give each rank masks of
    its own with ``mixout.Seed(scope="rank")``.
    """


class MissingExtraError(MixoutError, ImportError):
    """An optional dependency is missing.

    What to do: run the pip command in the message.
    """


class InputError(MixoutError, ValueError):
    """Settings or data given by the user cannot be used.

    What to do: the message says it.
    """


class MixoutWarning(UserWarning):
    """Base of the warnings that mixout gives."""


class FineTunedAnchorWarning(MixoutWarning):
    """The weights of a run under way have become the anchor, where the pretrained ones were expected.

    What to do: load the pretrained model, call ``apply_``, then load the fine-tuned weights or resume. If the
    fine-tuned weights are meant, pass their folder as ``anchor=``.
    """


class ZeroDecayWarning(MixoutWarning):
    """An optimizer decays weights towards zero that a method decays towards their start.

    What to do: set the optimizer's ``weight_decay`` to 0 for these weights.
    """


class DecayStrengthWarning(MixoutWarning):
    """AnchorDecay is so strong that each step goes most of the way back, or so weak that it does nothing.

    What to do: if it is too strong, a smaller learning rate, or a larger radius; SGD goes about radius x gradient far,
    so 0.005 is too small for it; try 1. If it is too weak, a radius instead of a rate: AnchorDecay(radius=0.005).
    """


class EvalModeWarning(MixoutWarning):
    """A model with a mixing method is trained in eval mode, so nothing is mixed.

    What to do: call ``model.train()`` before training; ``from_pretrained`` returns a model in eval mode.
    """


class MissingPenaltyWarning(MixoutWarning):
    """A model with OutputAnchor is trained, and nobody adds its penalty to the loss, so the method does nothing.

    What to do: add ``mixout.output_penalty(model, batch, outputs)`` to the loss; see docs/methods/output-anchor.md.
    """


class GenerationWarning(MixoutWarning):
    """A model was asked to generate in training mode; it does so unmixed.

    What to do: call ``generate`` in ``with mixout.disabled(model):``, or ``model.eval()`` first.
    """


class ForgottenMasksWarning(MixoutWarning):
    """With a seed, more passes without gradients were made than can be repeated with their masks.

    What to do: under gradient caching use fewer chunks, or leave the seed out. Otherwise nothing.
    """


class FrozenLayersWarning(MixoutWarning):
    """Every layer to mix and every weight to decay is frozen, so nothing is done until one requires a gradient.

    What to do: choose layers that are trained with ``where=``, or unfreeze these.
    """


class LowCoverageWarning(MixoutWarning):
    """A mixing method reaches less than half of the FLOPs of the pretrained body, or of the layers that were chosen.

    What to do: look at ``print(mixout.coverage(model))``. Choose embeddings and convolutions with
    ``where=mixout.Where(types=...)``, and register classes of your own with ``mixout.register``. Where little is meant,
    choose the layers with ``where=``: then only those count.
    """


def outside() -> int:
    """The ``stacklevel`` of a warning that is to name the caller: the first frame outside of torch and mixout."""
    frame, level = sys._getframe(1), 1
    inside = ("torch", "mixout", "")  # a compiled graph has no name
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    return level


def missing_module(error: ImportError) -> str | None:
    """The package that an import lacked, or None; loaders that import lazily hide it in the cause of their error.

    Example:
        >>> missing_module(ModuleNotFoundError("no a.b", name="a.b")), missing_module(ModuleNotFoundError("broken"))
        ('a', None)
    """
    cause: BaseException | None = error
    while isinstance(cause, ImportError):
        if cause.name:
            return cause.name.partition(".")[0]
        cause = cause.__cause__
    return None


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Turn a failing import in the body, for a purpose such as "metrics", into an error that names the extra."""
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
