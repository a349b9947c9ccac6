"""Settings as options of a command line, and as a file of options.

Names, defaults and help texts come from the fields of :class:`mixout.finetune.settings.Settings`. If a setting has
another name in transformers' Trainer, that name is accepted, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

from mixout.errors import InputError
from mixout.finetune.settings import FORMER, Settings, kind_of

_GROUPS = {
    "model and data": "model task task_type original data_dir text_column pair_column label_column "
    "multi_label assistant_only_loss metric max_length train_size",
    "method": "method where head",
    "training": "",
    "evaluation, checkpoints, loggers": "evaluate patience keep_best interpolate save logging_steps report_to",
    "seeds": "seed init_seed data_seed mask_seed subset_seed",
}
# Names of the settings in other trainers.
_ALIASES = {
    "model": "model-name-or-path",
    "task": "dataset-name",
    "max_length": "max-seq-length",
    "epochs": "num-train-epochs",
    "batch_size": "per-device-train-batch-size train-batch-size",
    "accumulation": "gradient-accumulation-steps",
    "warmup": "warmup-ratio",
    "schedule": "lr-scheduler-type",
    "label_smoothing": "label-smoothing-factor",
    "patience": "early-stopping-patience",
    "keep_best": "load-best-model-at-end",
    "save": "save-steps save-strategy",
    "evaluate": "eval-strategy",
}
_METAVARS = dict.fromkeys(("metric", "text_column", "pair_column", "label_column"), "NAME") | {
    "model": "NAME|DIR",
    "task": "NAME|FILE|DIR",
    "original": "FILE",
    "data_dir": "DIR",
    "head_first": "EPOCHS",
    "where": "LAYERS",
    "save": "epoch|no|N",
    "interpolate": "T",
    "report_to": "LOGGER",
}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting, in groups; the data may be given without an option's name."""
    parser.add_argument("data", metavar="DATA", nargs="?", help="what --task takes: a table, a folder or a task's name")
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    for item in fields(Settings):
        title = next((title for title, names in _GROUPS.items() if item.name in names.split()), "training")
        _add_option(groups[title], item)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, which is for :func:`use_device`."""
    parser.add_argument(
        "--device", metavar="cpu|N", help="the CPU, or the GPU with this number; default: the first GPU, or the CPU"
    )


def use_device(device: str | None) -> None:
    """Hide all other GPUs from torch, before it first looks for them; None changes nothing.

    InputError where there is no such device, or a launcher gives each process its own.
    """
    if device is None:
        return
    if os.environ.get("WORLD_SIZE"):
        raise InputError(f"expected no --device under torchrun, which gives each process its own, got {device!r}")
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if device != "cpu" and not (device.isdigit() and (not visible or int(device) < len(visible))):
        raise InputError(
            f"expected --device cpu or the number of a GPU{f' of {visible}' * bool(visible)}, got {device!r}"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else visible[int(device)] if visible else device
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"expected the number of a GPU that torch sees, got --device {device}; leave it out, or use cpu"
        )


def settings_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the options that were given."""
    settings = {item.name: given[item.name] for item in fields(Settings) if item.name in given}
    if "data" in given:
        if "task" in settings:
            raise InputError(f"expected the data once, got {given['data']!r} and --task {settings['task']!r}")
        settings["task"] = given["data"]
    return settings


def _add_option(group: Any, item: Field[Any]) -> None:  # noqa: ANN401  argparse hides the class
    value_type, name = kind_of(item), item.name
    options: dict[str, Any] = {"dest": name, "type": value_type}
    options["metavar"] = _METAVARS.get(name) or {int: "N", float: "X"}.get(value_type, name.upper())
    unset = item.default is None or item.default is False or item.default == ()
    default = "chosen by model, data and method" if name in FORMER else "" if unset else str(item.default)
    options["help"] = f"{item.metadata['help']}{f' (default: {default})' if default else ''}".replace("%", "%%")
    if item.metadata["choices"]:
        options["choices"] = item.metadata["choices"]
        del options["metavar"]
    if name == "save":
        options["type"] = lambda text: int(text) if text.isdigit() else text
    if value_type is tuple:
        options |= {"nargs": "+", "type": float if name == "interpolate" else str}
    if value_type is bool:
        options |= {"nargs": "?", "const": True, "type": _truth, "metavar": "true|false"}
    group.add_argument(f"--{name.replace('_', '-')}", **options)
    for alias in _ALIASES.get(name, "").split():
        group.add_argument(f"--{alias}", **(options | {"help": argparse.SUPPRESS}))


def _truth(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(
            f"expected true or false, got {text!r}; if it is DATA, put it before all options"
        )
    return words[text.lower()]


def unclaimed(named: str | None, default: str) -> Path:
    """Where to write: what is named, which is overwritten; else ``default``, refused where there is one."""
    if named is None and Path(default).exists():
        raise InputError(f"expected no {default} here, got one; name another file, or this one, with --output")
    return Path(named or default)


def from_file(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options in a file, parsed as words of a command line, so that they are checked like all others."""
    values = _values(path)
    try:
        return vars(parser.parse_args(_words(values, parser)))
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error


def _text(value: Any) -> str:  # noqa: ANN401
    # YAML takes the two halves of JSON's \ud83d\ude00 for two characters.
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _values(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]  # comes with transformers

    from mixout.finetune.tasks.tables import read_text

    if path.is_file() and not path.stat().st_size:
        raise InputError(f"{path.name}: expected lines such as 'learning_rate: 1e-4', got an empty file")
    try:
        # Each value as it is written: YAML reads 1e-4 as a text, and no as false.
        values = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path.name}: expected YAML or JSON, got what does not parse: {error}") from error
    if not isinstance(values, dict):
        kind = "TOML, which studies alone take" if path.suffix == ".toml" else type(values).__name__
        raise InputError(f"{path.name}: expected lines such as 'learning_rate: 1e-4', got {kind}")
    settings = values.get("settings")
    return settings if isinstance(settings, dict) and {"id", "digest"} & values.keys() else values


def _words(values: Mapping[str, Any], parser: argparse.ArgumentParser) -> list[str]:
    from mixout.cli import unknown_option

    words: list[str] = []
    takes = {option: action.nargs for action in parser._actions for option in action.option_strings}
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if option not in takes:
            raise unknown_option(parser, option)
        if option in ("--config", "--resume", "--print-config", "--help"):
            raise InputError(f"expected settings of a run, got {name!r}; write {option} on the command line")
        if isinstance(value, dict) or (isinstance(value, list) and takes[option] != "+"):
            raise InputError(f"expected one value for {name}, got several: {value}")
        if isinstance(value, list):
            words += [option, *map(_text, value)] if value else []
        elif str(value).lower() not in ("", "~", "null"):
            words.append(f"{option}={_text(value)}")  # with an equals sign, so that a value may begin with a dash
    return words


def as_config(settings: Settings) -> str:
    """Settings as a file for ``--config``, including those chosen by model, data and method, with the reasons."""
    from mixout.finetune import data, defaults, levels, models

    task = data.subset(data.load(settings), settings)
    shape = models.outline(settings.model, settings.task_type)
    chosen, why = defaults.complete(settings, shape.model, task)
    data.check_kind(chosen, task)
    levels.check_limits(chosen, shape)
    values = {name: value for name, value in asdict(chosen).items() if value is not None and value != ()}
    # 2.0e-05: many readers of YAML take 2e-05 for a text.
    texts = {name: re.sub(r"^(\d)e", r"\1.0e", json.dumps(value, ensure_ascii=False)) for name, value in values.items()}
    reasons = {name: f"  # {reason.partition(':')[2].strip()}" for name, reason in why.items()}
    lines = [f"{name}: {text}{reasons.get(name, '')}" for name, text in texts.items()]
    # Letters that a code page would change are written as YAML escapes: the file is read as UTF-8.
    return "\n".join([*lines, ""]).encode("ascii", "backslashreplace").decode()
