"""``mixout finetune``: one run from the command line.

Only the options that are no setting are written here; the others are in :mod:`mixout.cli.options`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mixout.cli.options import add_settings, from_file
from mixout.errors import InputError
from mixout.finetune.defaults import RECIPES, P
from mixout.finetune.settings import Settings
from mixout.methods import METHODS

if TYPE_CHECKING:
    from mixout.finetune.record import Record

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
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Train, report on stderr while it lasts, print the result on stdout."""
    given = vars(args)
    if "config" in given:
        given = from_file(Path(args.config), args.parser) | given
    resume = "resume" in given
    folder = given.get("resume") or given.get("output_dir")
    settings = _begun(given, folder) if resume else _settings(given)
    if "print_config" in given:
        print(_config(settings), end="")
        return 0
    from mixout.finetune.disk import WriteError
    from mixout.finetune.environment import leads
    from mixout.finetune.train import finetune

    place = Path(folder or Path("out") / settings.digest()[:12])
    try:
        record = finetune(settings, place, resume=resume, report=_report, bars=sys.stderr.isatty())
    except KeyboardInterrupt:
        way_on = f"continue with: mixout finetune --resume {place}" if place.exists() else "no files yet"
        print(f"mixout: interrupted; {way_on}", file=sys.stderr)
        return 130
    except WriteError as error:
        print(
            f"mixout: error: {error}; make room, then continue with: mixout finetune --resume {place}", file=sys.stderr
        )
        return 1
    if leads():
        print(_summary(record, place))
        if "test" in given:
            print(_test(place, given["test"]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


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
