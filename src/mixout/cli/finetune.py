"""``mixout finetune``: one run from the command line.

Options, defaults and help texts come from the fields of :class:`mixout.finetune.settings.Settings`; only what is no
setting is written here. Where a setting has another name in transformers' Trainer, that name is taken too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mixout.errors import InputError
from mixout.finetune.defaults import RECIPES, P
from mixout.finetune.settings import FORMER, Settings
from mixout.methods import METHODS

if TYPE_CHECKING:
    from mixout.finetune.record import Record

_GROUPS = {
    "what": (
        "model",
        "task",
        "task_type",
        "original",
        "data_dir",
        "text_column",
        "pair_column",
        "label_column",
        "metric",
    ),
    "method": ("method", "where", "head"),
    "seeds and subset": ("train_size", "seed", "init_seed", "data_seed", "mask_seed", "subset_seed"),
    "looking on": ("evaluate", "save", "patience", "keep_best", "logging_steps", "report_to"),
}
# What other trainers call them.
_ALIASES = {
    "model": ("--model-name-or-path",),
    "task": ("--dataset-name",),
    "max_length": ("--max-seq-length",),
    "epochs": ("--num-train-epochs",),
    "batch_size": ("--per-device-train-batch-size", "--train-batch-size"),
    "accumulation": ("--gradient-accumulation-steps",),
    "warmup": ("--warmup-ratio",),
    "schedule": ("--lr-scheduler-type",),
    "label_smoothing": ("--label-smoothing-factor",),
    "patience": ("--early-stopping-patience",),
    "keep_best": ("--load-best-model-at-end",),
    "save": ("--save-steps", "--save-strategy"),
    "evaluate": ("--eval-strategy",),
}
_METAVARS = {
    "model": "NAME|DIR",
    "task": "NAME|FILE|DIR",
    "original": "FILE",
    "data_dir": "DIR",
    "metric": "NAME",
    "method": "METHOD",
    "where": "LAYERS",
    "save": "epoch|no|N",
    "report_to": "LOGGER",
}
_EXAMPLES = """examples:
  mixout finetune --task reviews.csv                      columns text and label; the model comes to out/
  mixout finetune --task reviews.csv --model roberta-base --method "mixout(0.7)" --output-dir out/reviews
  mixout finetune --task RTE --data-dir glue --recipe paper --model bert-large-uncased
  mixout finetune --config run.yaml --seed 1              settings from a file, and one that differs
  mixout finetune --resume out/reviews                    goes on where a run was cut off
  torchrun --nproc-per-node 2 -m mixout finetune ...      the same run on two devices
"""


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "finetune",
        help="train one model on one task with one method",
        description="Train one model on one task with one method. Without options: MiniLM on 'docstrings', offline. "
        "With --task-type causal-lm: a language model on text of your own.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Only what is given: the rest is the recipe's, or that of the run that goes on.
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(parser=parser)
    parser.add_argument(
        "--output-dir", metavar="DIR", help="where the result goes; default: out/<digest of the settings>"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="continue the unfinished run in DIR, or in --output-dir; its settings are known, and need not be repeated",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="options from a file: YAML or JSON, 'learning_rate: 1e-4' one a line"
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print every setting, also those that follow from model, data and method, for --config; train nothing",
    )
    parser.add_argument(
        "--test",
        metavar="FILE",
        help="after training, write the model's answers for the rows of FILE, with probabilities, to predictions.csv",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="what is used where no option says otherwise: 'auto', by model, data and method, or the 'paper' on mixout "
        "with all its settings (default: auto)",
    )
    parser.add_argument(
        "--p",
        type=float,
        metavar="P",
        help="probability that an input column is replaced by the pretrained weights, beside the bare name of a "
        "method: --method mixout --p 0.9",
    )
    groups: dict[str, Any] = {}
    for item in fields(Settings):
        title = next((title for title, names in _GROUPS.items() if item.name in names), "training")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_option(groups[title], item)


def run(args: argparse.Namespace) -> int:
    """Train, report on stderr while it lasts, print the result on stdout."""
    given = vars(args)
    if "config" in given:
        given = _from_file(Path(args.config), args.parser) | given
    resume = "resume" in given
    folder = given.get("resume") or given.get("output_dir")
    settings = _begun(given, folder) if resume else _settings(given)
    if "print_config" in given:
        print(_config(settings), end="")
        return 0
    from mixout.finetune.disk import WriteError
    from mixout.finetune.train import finetune

    place = Path(folder or Path("out") / settings.digest()[:12])
    # Of several processes one speaks.
    speaks = int(os.environ.get("RANK") or 0) == 0
    try:
        record = finetune(
            settings, place, resume=resume, report=_report if speaks else None, bars=speaks and sys.stderr.isatty()
        )
    except KeyboardInterrupt:
        way_on = f"continue with: mixout finetune --resume {place}" if place.exists() else "no files yet"
        print(f"mixout: interrupted; {way_on}", file=sys.stderr)
        return 130
    except WriteError as error:
        print(
            f"mixout: error: {error}; make room, then continue with: mixout finetune --resume {place}", file=sys.stderr
        )
        return 1
    if speaks:
        print(_summary(record, place))
        if "test" in given:
            print(_test(place, given["test"]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _add_option(group: Any, item: Field[Any]) -> None:  # noqa: ANN401  argparse hides the class
    kind, name = item.metadata["kind"], item.name
    options: dict[str, Any] = {"dest": name, "type": _steps_or_word if name == "save" else kind}
    options["metavar"] = _METAVARS.get(name) or {int: "N", float: "X"}.get(kind, name.upper())
    default = "none" if item.default in (None, ()) else item.default
    if name in FORMER:
        default = "follows from model, data and method"
    options["help"] = f"{item.metadata['help']} (default: {default})".replace("%", "%%")
    if item.metadata["choices"]:
        options["choices"] = item.metadata["choices"]
        del options["metavar"]
    if name == "report_to":
        options["nargs"] = "+"
    if kind is bool:
        options |= {"nargs": "?", "const": True, "type": _truth, "metavar": "true|false"}
    group.add_argument(f"--{name.replace('_', '-')}", **options)
    for alias in _ALIASES.get(name, ()):
        group.add_argument(alias, **(options | {"help": argparse.SUPPRESS}))


def _steps_or_word(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def _from_file(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options in a file: read as words of a command line, where they are checked like all others."""
    from mixout.cli import unknown_option

    try:
        found, unknown = parser.parse_known_args(_words(path))
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    if unknown:
        raise InputError(f"{path.name}: {unknown_option(parser, unknown[0])}")
    return vars(found)


def _words(path: Path) -> list[str]:
    import yaml  # type: ignore[import-untyped]  # comes with transformers

    from mixout.finetune.tasks.tables import read_text

    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path.name}: expected YAML or JSON, got what does not parse: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path.name}: expected lines such as 'learning_rate: 1e-4', got {type(values).__name__}")
    words: list[str] = []
    for name, value in values.items():
        if value is not None:
            several = value if isinstance(value, list) else [value]
            spelled = [str(one).lower() if isinstance(one, bool) else str(one) for one in several]
            if name == "save" and value is False:
                spelled = ["no"]  # which is false in YAML
            # With an equals sign, so that a value may begin with a dash.
            option = f"--{str(name).replace('_', '-')}"
            words += [option, *spelled] if isinstance(value, list) else [f"{option}={spelled[0]}"]
    return words


def _given(given: dict[str, Any]) -> dict[str, Any]:
    """The settings among what was given."""
    values = {item.name: given[item.name] for item in fields(Settings) if item.name in given}
    if "p" in given or "method" in values:
        values["method"] = _method(values.get("method"), given.get("p"))
    return values


def _settings(given: dict[str, Any]) -> Settings:
    return Settings(**{**RECIPES[given.get("recipe", "auto")], **_given(given)})


def _begun(given: dict[str, Any], folder: str | None) -> Settings:
    """The settings of the run that goes on; what is given beside must agree, but for loggers."""
    from mixout.finetune.folder import begun

    if folder is None:
        raise InputError("expected the folder of the run to go on with, got none; write --resume DIR")
    return replace(begun(Path(folder)), **_given(given))


def _config(settings: Settings) -> str:
    """Settings as a file for ``--config``, with those that follow from model, data and method and why."""
    from mixout.finetune import data, defaults, models

    task = data.subset(data.load(settings), settings)
    chosen, why = defaults.complete(settings, models.outline(settings.model, settings.task_type).model, task)
    values = {name: value for name, value in asdict(chosen).items() if value is not None and value != ()}
    lines = [
        f"{name}: {json.dumps(value)}{f'  # {why[name].partition(chr(58))[2].strip()}' if name in why else ''}"
        for name, value in values.items()
    ]
    return "\n".join(lines) + "\n"


def _method(method: str | None, p: float | None) -> str:
    """The method's text from ``--method`` and ``--p``."""
    name = "mixout" if method is None else method.strip()
    if p is None:
        # A name alone: with the value that is right for most.
        usual = {"anchor_decay": Settings().method} | {known: f"{known}({value!r})" for known, value in P.items()}
        return usual.get(name, name)
    if "(" in name or "+" in name:
        raise InputError(
            f"expected --p only with the bare name of a method, got --method {method!r}; write p inside it"
        )
    # An unknown name goes on, to be refused as every unknown name is.
    if name in METHODS and not _has_p(name):
        raise InputError(
            f"expected --p only with a method that has a p ({', '.join(filter(_has_p, METHODS))}), got --method "
            f"{method!r}; leave out --p"
        )
    return f"{name}({p!r})"


def _has_p(name: str) -> bool:
    return any(item.name == "p" for item in fields(METHODS[name]))  # type: ignore[arg-type]


def _report(line: str) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]  # comes with transformers

    # Not print: a line must not run into a progress bar.
    tqdm.write(line, file=sys.stderr)


def _test(place: Path, file: str) -> str:
    from mixout.cli.predict import told
    from mixout.finetune.isolation import quiet
    from mixout.finetune.predict import predict

    with quiet():
        answers = predict(place, file, place / "predictions.csv")
    return told(answers.scores, f"{answers.rows} predictions: {answers.output}")


def _summary(record: Record, folder: Path) -> str:
    scores = ", ".join(f"{name} {value:.4f}" for name, value in record.scores.items())
    before = "".join(
        f"\nbefore training: {', '.join(f'{name} {value:.4f}' for name, value in first.scores.items())}"
        for first in record.evaluations[:1]
        if first.step == 0
    )
    failed = f"\n{record.verdict}" if record.verdict else ""
    return (
        f"{record.settings.method} on {record.settings.task}: {scores} "
        f"(chance {record.metric} {record.chance:.4f}), {record.seconds:.0f} s of training{failed}{before}\n"
        f"model, record.json and model card: {folder}"
    )
