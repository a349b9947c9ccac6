"""``mixout finetune``: one run from the command line.

Only the options that are not settings are defined here; the others are in :mod:`mixout.cli.options`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixout.cli.lines import aligned
from mixout.cli.options import add_device, add_settings, from_file, settings_in, use_device
from mixout.errors import InputError
from mixout.finetune.settings import CAUSAL, RECIPES, Settings

if TYPE_CHECKING:
    from mixout.finetune.record import Record

_EXAMPLES = """examples:
  mixout finetune reviews.csv                             columns text and label; the model comes to out/
  mixout finetune reviews.csv --model roberta-base --method "mixout(0.7)" --output-dir out/reviews
  mixout finetune imdb --train-size 1000                  a data set of the hub
  mixout finetune moods.csv --multi-label                 cells such as joy, fear: each label may be right
  mixout finetune names.jsonl --task-type token-classification
                                                          lists of words in text, of their tags in label; also .conll
  mixout finetune reviews.csv --method "lora(8)"          low-rank adapters, merged at the end
  mixout finetune chats.jsonl --text-column messages --task-type causal-lm --model Qwen/Qwen3-0.6B
                  --original old.txt --method "anchor_decay(radius=0.025, fisher=200)"
  mixout finetune RTE --data-dir glue --recipe paper --model bert-large-uncased
  mixout finetune --config run.yaml --seed 1              settings from a file, and one that differs
  mixout finetune --resume out/reviews                    goes on where a run was cut off
  torchrun --nproc-per-node 2 -m mixout finetune ...      the same run on two devices
"""


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "finetune",
        help="train one model on one task with one method",
        usage="mixout finetune DATA [--model NAME] [--method METHOD] [OPTION ...]",
        description="Train one model on one task with one method. Method, learning rate, epochs and batch size "
        "are chosen\nfor you where you name none, and printed. Without options: MiniLM on embedded text, offline.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Only the given options: the others come from the recipe, or from the run that is resumed.
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(parser=parser)
    for name, metavar, text in (
        ("--output-dir", "DIR", "where the result goes; default: out/<digest of the settings>"),
        ("--config", "FILE", "read options from a YAML or JSON file, such as learning_rate: 1e-4"),
        ("--test", "FILE", "after training, answer the rows of FILE, with probabilities, in predictions.csv"),
        ("--push-to-hub", "OWNER/NAME", "after training, upload model, card and record to this repository"),
    ):
        parser.add_argument(name, metavar=metavar, help=text)
    text = "continue the unfinished run in DIR, or in --output-dir, with its settings"
    parser.add_argument("--resume", nargs="?", const="", metavar="DIR", help=text)
    text = "print all settings, also those that are chosen for you, as a file for --config; train nothing"
    parser.add_argument("--print-config", action="store_true", help=text)
    text = "settings where no option says otherwise: by model, data and method (auto, the default), or the paper's"
    parser.add_argument("--recipe", choices=RECIPES, help=text)
    add_device(parser)
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Train, report on stderr while it lasts, print the result on stdout."""
    options = vars(args)
    if "config" in options:
        in_file = from_file(Path(args.config), args.parser)
        options = {name: value for name, value in in_file.items() if name != "task" or "data" not in options} | options
    use_device(options.get("device"))
    resume = "resume" in options
    if resume and "recipe" in options:
        raise InputError("expected --resume without --recipe, got both: the run has its settings; leave out --recipe")
    folder = options.get("resume") or options.get("output_dir")
    chosen = settings_in(options)
    settings = _begun(chosen, folder) if resume else Settings(**{**RECIPES[options.get("recipe", "auto")], **chosen})
    if "print_config" in options:
        print(_config(settings), end="")
        return 0
    from mixout.finetune.cache import Cache
    from mixout.finetune.environment import leads
    from mixout.finetune.folder import unfinished
    from mixout.finetune.record import WriteError
    from mixout.finetune.train import finetune

    cache = Cache()
    if "push_to_hub" in options:
        from mixout.finetune import card

        card.prepare(options["push_to_hub"])
    if "test" in options:
        from mixout.finetune.predict import predict, rows

        # Errors in the file are found before the training.
        rows(options["test"], settings, pairs=cache.task(settings).train.pair is not None)
    _tell_unnamed(settings, named=resume or "task" in chosen)
    output_dir = Path(folder or Path("out") / settings.digest()[:12])
    try:
        record = finetune(settings, output_dir, resume=resume, report=_report, bars=sys.stderr.isatty(), cache=cache)
    except KeyboardInterrupt:
        hint = f"continue with: mixout finetune --resume {output_dir}" if unfinished(output_dir) else "no files yet"
        print(f"mixout: interrupted; {hint}", file=sys.stderr)
        return 130
    except WriteError as error:
        print(
            f"mixout: error: {error}; make room, then continue with: mixout finetune --resume {output_dir}",
            file=sys.stderr,
        )
        return 1
    if leads():
        print(_summary(record, output_dir))
        if "test" in options:
            print(predict(output_dir, options["test"], output_dir / "predictions.csv"))
        if "push_to_hub" in options:
            print(f"on the hub: {card.push(output_dir, options['push_to_hub'])}")
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _tell_unnamed(settings: Settings, *, named: bool) -> None:
    from mixout.finetune.environment import leads

    if not named and leads():
        _report(f"no data named: this trains on {settings.task!r}, which comes with mixout; see mixout finetune --help")


def _begun(chosen: dict[str, Any], folder: str | None) -> Settings:
    """The settings of the run that is resumed; ``chosen`` must agree with them, except for loggers."""
    from mixout.finetune.folder import begun

    if folder is None:
        raise InputError("expected the folder of the run to go on with, got none; write --resume DIR")
    return replace(begun(Path(folder)), **chosen)


def _config(settings: Settings) -> str:
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


def _report(line: str) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]  # comes with transformers

    # Not print: a line must not run into a progress bar.
    tqdm.write(line, file=sys.stderr)


def _summary(record: Record, folder: Path) -> str:
    def said(scores: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())

    first, lines = record.evaluations[0], []
    if record.verdict:
        lines.append(record.verdict)
    if first.step == 0:
        lines.append(f"before training: {said(first.scores)}")
    if record.interpolated:  # the models between the pretrained weights, t = 0, and the trained ones, t = 1
        rows = [[f"{row['t']:g}", *(f"{value:.4f}" for value in [*row.values()][1:])] for row in record.interpolated]
        lines.append(aligned([[*record.interpolated[0]], *rows], left=0))
    lines.append(f"model, record.json and model card: {folder}")
    if record.settings.task_type != CAUSAL:
        lines.append(f"answers for new rows: mixout predict {folder} FILE")
    head = (
        f"{record.settings.method} on {record.settings.task}: {said(record.scores)} on the dev set (a constant answer: "
        f"{record.metric} {record.chance:.4f}), {record.seconds:.0f} s of training"
    )
    return "\n".join([head, *lines])
