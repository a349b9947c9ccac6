"""``mixout finetune``: one run from the command line.

Options, defaults and help texts come from the fields of :class:`mixout.finetune.settings.Settings`; only what is no
setting is written here.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixout.errors import InputError
from mixout.finetune.settings import Settings
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
    "method": ("method", "where"),
    "seeds and subset": ("train_size", "seed", "init_seed", "data_seed", "mask_seed", "subset_seed"),
}


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "finetune",
        help="train one model on one task with one method",
        description="Train one model on one task with one method. Without options: MiniLM on 'docstrings', offline. "
        "With --task-type causal-lm: a language model on text of your own.",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", help="where the result goes; default: out/<digest of the settings>"
    )
    parser.add_argument("--resume", action="store_true", help="continue an unfinished run in --output-dir")
    parser.add_argument("--p", type=float, help="probability for a bare --method name: --method mixout --p 0.9")
    groups: dict[str, Any] = {}
    for item in fields(Settings):
        title = next((title for title, names in _GROUPS.items() if item.name in names), "training")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_option(groups[title], item)


def run(args: argparse.Namespace) -> int:
    """Train, report on stderr while it lasts, print the result on stdout."""
    settings = _settings(args)
    from mixout.finetune.disk import WriteError
    from mixout.finetune.train import finetune

    folder = Path(args.output_dir or Path("out") / settings.digest()[:12])
    try:
        record = finetune(settings, folder, resume=args.resume, report=_report, bars=sys.stderr.isatty())
    except KeyboardInterrupt:
        way_on = (
            f"continue with the same options and --output-dir {folder} --resume" if folder.exists() else "no files yet"
        )
        print(f"mixout: interrupted; {way_on}", file=sys.stderr)
        return 130
    except WriteError as error:
        print(
            f"mixout: error: {error}; make room, then continue with the same options and "
            f"--output-dir {folder} --resume",
            file=sys.stderr,
        )
        return 1
    print(_summary(record, folder))
    return 0


def _add_option(group: Any, item: Field[Any]) -> None:  # noqa: ANN401  argparse hides the class
    options: dict[str, Any] = {
        "dest": item.name,
        "default": item.default,
        "metavar": item.metadata["kind"].__name__.upper(),
    }
    default = "none" if item.default in (None, ()) else item.default
    options["help"] = f"{item.metadata['help']} (default: {default})".replace("%", "%%")
    if item.metadata["choices"]:
        options["choices"] = item.metadata["choices"]
        del options["metavar"]
    if item.name == "report_to":
        options |= {"nargs": "+", "metavar": "LOGGER"}
    options["type"] = _steps_or_word if item.name == "save" else item.metadata["kind"]
    if item.name == "method":
        # Not the field's default: --p alone must find out that no method was named.
        options["default"] = None
    group.add_argument(f"--{item.name.replace('_', '-')}", **options)


def _steps_or_word(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _settings(args: argparse.Namespace) -> Settings:
    values = {item.name: getattr(args, item.name) for item in fields(Settings)}
    values["method"] = _method(args.method, args.p)
    return Settings(**values)


def _method(method: str | None, p: float | None) -> str:
    """The method's text from ``--method`` and ``--p``."""
    if p is None:
        return Settings().method if method is None else method
    name = "mixout" if method is None else method.strip()
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


def _summary(record: Record, folder: Path) -> str:
    scores = ", ".join(f"{name} {value:.4f}" for name, value in record.scores.items())
    before = "".join(
        f"\nbefore training: {', '.join(f'{name} {value:.4f}' for name, value in first.scores.items())}"
        for first in record.evaluations[:1]
        if first.step == 0
    )
    diverged = "\ndiverged: a loss was not finite; lower the learning rate" if record.status == "diverged" else ""
    return (
        f"{record.settings.method} on {record.settings.task}: {scores} "
        f"(chance {record.metric} {record.chance:.4f}), {record.seconds:.0f} s of training{diverged}{before}\n"
        f"model, record.json and model card: {folder}"
    )
