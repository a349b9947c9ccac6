"""What a model's shape allows: settings are held against it before anything is trained, and without its weights.

It reads no data and no weights; what only the checkpoint or the machine can tell is found out by the run itself.
"""

from __future__ import annotations

from mixout.errors import InputError
from mixout.finetune.levels import blocks
from mixout.finetune.models import Loaded, longest_input
from mixout.finetune.reinit import top_blocks
from mixout.finetune.settings import PRESETS, Settings
from mixout.methods import MixingMethod, parse
from mixout.methods.text import nearest
from mixout.selection import resolve


def check_limits(settings: Settings, loaded: Loaded) -> None:
    """Refuse settings that the model cannot take.

    Args:
        settings: of a run.
        loaded: from :func:`mixout.finetune.models.load` or :func:`mixout.finetune.models.outline`.

    Raises:
        InputError: texts longer than the model has positions, more new top layers than it has blocks, layer-wise rates
            without blocks, or ``where`` selects none of its layers for a method that mixes.

    Example:
        >>> from mixout.finetune.models import outline
        >>> check_limits(Settings(reinit_layers=7), outline("minilm"))
        Traceback (most recent call last):
        mixout.errors.InputError: expected reinit_layers <= 6, the blocks that the model has, got 7
    """
    limit = longest_input(loaded)
    if limit is not None and settings.max_length > limit:
        raise InputError(
            f"expected max_length <= {limit}, the most that {settings.model!r} takes, got {settings.max_length}"
        )
    if settings.reinit_layers:
        top_blocks(loaded.model, settings.reinit_layers)
    if settings.layer_decay != 1.0:
        blocks(loaded.model)
    _check_where(settings, loaded)


def _check_where(settings: Settings, loaded: Loaded) -> None:
    try:
        chosen = resolve(settings.where, loaded.model)
    except ValueError as error:
        raise InputError(f"where={settings.where!r}: {error}") from error
    mixes = any(isinstance(method, MixingMethod) for method in parse(settings.method))
    if mixes and not any(chosen.mixes(name, module) for name, module in loaded.model.named_modules()):
        raise InputError(
            f"expected where as {', '.join(PRESETS)}, or a regular expression that matches a layer of "
            f"{settings.model!r}, got {settings.where!r}{nearest(settings.where, PRESETS)}"
        )
