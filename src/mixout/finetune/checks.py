"""Whether settings have valid values, as far as this is known without data, model or machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any

from mixout._names import nearest
from mixout.errors import InputError

if TYPE_CHECKING:
    from mixout.finetune.settings import Settings

PRESETS = ("body", "paper", "all")
_COUNTS = ("batch_size", "accumulation", "train_size", "max_steps", "patience", "logging_steps")
_SEEDS = ("seed", "init_seed", "data_seed", "mask_seed", "subset_seed")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(_SEEDS, (lambda value: 0 <= value < 2**63, "in [0, 2**63)")),
    **dict.fromkeys(("learning_rate", "epochs"), (lambda value: value > 0, "> 0")),
    **dict.fromkeys(
        ("weight_decay", "max_grad_norm", "reinit_layers", "head_first"), (lambda value: value >= 0, ">= 0")
    ),
    **dict.fromkeys(_COUNTS, (lambda value: value >= 1, ">= 1")),
    "max_length": (lambda value: value >= 2, ">= 2"),
    "layer_decay": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "warmup": (lambda value: 0 <= value < 1, "in [0, 1): it is a share of the steps"),
    "label_smoothing": (lambda value: 0 <= value < 1, "in [0, 1): it is a share of each label"),
}


def kind_of(item: Field[Any]) -> type:
    """The type of a setting's values, by its annotation; of several types the first."""
    name = re.split(r"[ \[]", str(item.type))[0]
    return {"int": int, "float": float, "bool": bool, "tuple": tuple}.get(name, str)


def check(settings: Settings) -> None:
    """Refuse the first invalid value by an InputError; whole numbers become floats where floats are expected."""
    for item in fields(settings):
        value = getattr(settings, item.name)
        if value is not None or item.default is not None:
            _check_value(settings, item.name, value, kind_of(item), item.metadata["choices"])
    if settings.where not in PRESETS:
        try:
            re.compile(settings.where)
        except re.error as error:
            raise InputError(
                f"expected where as one of {PRESETS} or a regular expression, got {settings.where!r}: {error}"
            ) from error
    save = settings.save
    if save not in ("epoch", "no") and (isinstance(save, (str, bool)) or save < 1):
        raise InputError(f"expected save as 'epoch', 'no' or a number of steps >= 1, got {save!r}")
    loggers: object = settings.report_to
    # A text is a sequence of texts too, its letters.
    if not isinstance(loggers, tuple) or not all(isinstance(name, str) for name in loggers):
        raise InputError(f'expected report_to as a list of names of loggers, such as ["tensorboard"], got {loggers!r}')
    ts: object = settings.interpolate
    if not isinstance(ts, tuple) or not all(isinstance(t, (int, float)) and 0 <= t <= 1 for t in ts):
        raise InputError(
            f"expected interpolate as numbers in [0, 1], such as 0.5 0.7 (in a study [0.5, 0.7]), got {ts!r}"
        )
    if settings.evaluate != "epoch" and (settings.patience is not None or settings.keep_best):
        raise InputError(
            "expected evaluate='epoch' with patience or keep_best, which compare evaluations, got 'end'; use "
            "evaluate='epoch', or leave them out"
        )
    if settings.task_type == "token-classification" and (settings.multi_label or settings.pair_column is not None):
        raise InputError(
            f"expected neither multi_label nor pair_column with task_type={settings.task_type!r}, got "
            f"{'multi_label' if settings.multi_label else 'pair_column'}; leave it out"
        )


def _check_value(settings: Settings, name: str, value: Any, value_type: type, choices: tuple[str, ...]) -> None:  # noqa: ANN401
    """Check the type of one value, its range, and whether it is among its choices."""
    if value_type in (int, float):
        not_finite = value_type is float and isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max
        if isinstance(value, bool) or not isinstance(value, (int, value_type)) or not_finite:
            raise InputError(f"expected {name} as a {'whole' if value_type is int else 'finite'} number, got {value!r}")
        object.__setattr__(settings, name, value_type(value))
        in_range, expected = _RANGES[name]
        if not in_range(value):
            raise InputError(f"expected {name} {expected}, got {value!r}")
    elif value_type is bool and not isinstance(value, bool):
        raise InputError(f"expected {name} as true or false, got {value!r}")
    elif value_type is str and name != "save" and (not isinstance(value, str) or not value.strip()):
        raise InputError(f"expected {name} as text that is not empty, got {value!r}")
    if choices and value not in choices:
        raise InputError(f"expected {name} in {choices}, got {value!r}{nearest(str(value), choices)}")
