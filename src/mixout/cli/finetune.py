"""``mixout finetune``, ``choose`` and ``predict``: from a table to a model, and from the model to answers.

Only the options that are not settings are defined here; the others are in :mod:`mixout.cli.options`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixout._names import count
from mixout.cli.lines import aligned
from mixout.cli.options import add_device, add_settings, as_config, from_file, settings_in, unclaimed, use_device
from mixout.errors import InputError
from mixout.finetune.settings import CAUSAL, RECIPES, Settings

if TYPE_CHECKING:
    from mixout.finetune.cache import Cache
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
_CHOOSE_EXAMPLES = """examples:
  mixout choose reviews.csv                                 columns text and label; the model comes to chosen/model
  mixout choose reviews.csv --budget 2h --model roberta-base --output-dir chosen/reviews
  mixout choose SST-2 --data-dir glue --train-size 200 --methods "mixout(0.8)" "dropout(0.1)"
"""
_PREDICTIONS = "predictions.csv"


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the commands to the parser's ``commands``."""
    _add_finetune(commands)
    _add_choose(commands)
    _add_predict(commands)


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], **texts: str) -> Any:  # noqa: ANN401
    """A parser of settings: only those that are given, since others come from the recipe or a run that is resumed."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, formatter_class=raw, argument_default=argparse.SUPPRESS, **texts)
    parser.set_defaults(parser=parser, run=run)
    return parser


def _add_finetune(commands: Any) -> None:  # noqa: ANN401
    parser = _command(
        commands,
        "finetune",
        _finetune,
        help="train one model on one task with one method",
        usage="mixout finetune DATA [--model NAME] [--method METHOD] [OPTION ...]",
        description="Train one model on one task with one method. Method, learning rate, epochs and batch size "
        "are chosen\nfor you where you name none, and printed. Without options: MiniLM on embedded text, offline.",
        epilog=_EXAMPLES,
    )
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


def _add_choose(commands: Any) -> None:  # noqa: ANN401
    parser = _command(
        commands,
        "choose",
        _choose,
        help="choose method and learning rate on a small table, and train the model",
        usage="mixout choose DATA [--budget TIME] [--model NAME] [OPTION ...]",
        description="Search over learning rates, then over methods, within a budget of training time. The score to "
        "expect\non new data is measured on rows that the choice has not seen, beside that of the default. Call it "
        "again to\ncontinue after an interruption, or with a larger budget.",
        epilog=_CHOOSE_EXAMPLES,
    )
    text = "training time, such as 90s, 30m or 2h (default: %(default)s)"
    parser.add_argument("--budget", default="30m", metavar="TIME", help=text)
    text = "folder for model, report and all runs (default: %(default)s)"
    parser.add_argument("--output-dir", default="chosen", metavar="DIR", help=text)
    text = (
        "methods to try beside plain fine-tuning; default: no dropout, dropout, mixout, a decay, interpolation and LoRA"
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=text)
    add_device(parser)
    add_settings(parser)


def _add_predict(commands: Any) -> None:  # noqa: ANN401
    parser = commands.add_parser(
        "predict",
        help="write a fine-tuned model's answers for the rows of a file, with probabilities",
        description="Write the columns of FILE, the model's answer and the probability of each class, its value, or "
        "the words' tags, as CSV. Where FILE has labels, they are scored.",
    )
    parser.set_defaults(run=_predict)
    parser.add_argument("model", metavar="MODEL", help="folder that mixout finetune wrote, or another classifier's")
    parser.add_argument("file", metavar="FILE", help=".csv, .tsv, .jsonl, .conll or .parquet")
    parser.add_argument("--output", metavar="FILE", help=f"default: {_PREDICTIONS}, if there is none yet")
    for name, text in (("text", "the text"), ("pair", "the second text"), ("label", "the label, to be scored")):
        parser.add_argument(f"--{name}-column", metavar="NAME", help=f"column with {text}; default: as in training")
    add_device(parser)
    parser.add_argument("--max-length", type=int, metavar="N", help="longest input, in tokens; default: as in training")


def _finetune(args: argparse.Namespace) -> int:
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
    from mixout.finetune.folder import is_finished

    after = {"test", "push_to_hub"} & options.keys()
    if resume and folder and after and not chosen and "print_config" not in options and is_finished(Path(folder)):
        if "test" in options and Path(folder, _PREDICTIONS).exists():
            raise InputError(f"expected no {_PREDICTIONS} in {folder!r}, got one; call mixout predict for other rows")
        return _rest(Path(folder), options)
    settings = _begun(chosen, folder) if resume else Settings(**{**RECIPES[options.get("recipe", "auto")], **chosen})
    if "print_config" in options:
        print(as_config(settings), end="")
        return 0
    from mixout.finetune.cache import Cache
    from mixout.finetune.environment import leads
    from mixout.finetune.record import WriteError
    from mixout.finetune.train import finetune

    cache = Cache()
    if "push_to_hub" in options:
        from mixout.finetune import card

        card.prepare(options["push_to_hub"])
    if "test" in options:
        _check_test(options["test"], settings, cache)
    if not resume and "task" not in chosen and leads():
        _report(f"no data named: this trains on {settings.task!r}, which comes with mixout; see mixout finetune --help")
    output_dir = Path(folder or Path("out") / settings.digest()[:12])
    again = _again(output_dir, options)
    try:
        record = finetune(settings, output_dir, resume=resume, report=_report, bars=sys.stderr.isatty(), cache=cache)
        if leads():
            print(_summary(record, output_dir))
        _rest(output_dir, options)
    except KeyboardInterrupt:
        hint = _hint(output_dir, again, after=bool(after))
        print(f"mixout: interrupted; {hint}", file=sys.stderr)
        return 130
    except WriteError as error:
        print(f"mixout: error: {error}; make room, then continue with: {again}", file=sys.stderr)
        return 1
    return 0


def _rest(output_dir: Path, options: Mapping[str, Any]) -> int:
    """What follows the training, in one process: answers for new rows, and the upload."""
    from mixout.finetune.environment import leads
    from mixout.finetune.folder import settle

    settle(output_dir)
    if not leads():
        return 0
    if "test" in options:
        from mixout.finetune.predict import predict

        print(predict(output_dir, options["test"], output_dir / _PREDICTIONS))
    if "push_to_hub" in options:
        from mixout.finetune import card

        print(f"on the hub: {card.push(output_dir, options['push_to_hub'])}")
    return 0


def _check_test(file: str, settings: Settings, cache: Cache) -> None:
    """Find errors in the file before the training, and texts that are trained on."""
    from mixout.finetune.environment import leads
    from mixout.finetune.predict import rows

    trained_on = cache.task(settings).train
    table, tested = rows(file, settings, pairs=trained_on.pair is not None)
    repeated = len({*trained_on.questions()} & {*tested.questions()})
    if repeated and settings.label_column in table.columns and leads():
        _report(f"note: {count(repeated, 'text')} of {file} are trained on: its scores will be too good")


def _hint(output_dir: Path, again: str, *, after: bool) -> str:
    """What to do after an interruption; ``after``: something follows the training."""
    from mixout.finetune.folder import is_finished, unfinished

    finished = is_finished(output_dir)
    if finished and not after:
        return f"the run is finished: {output_dir}"
    return f"continue with: {again}" if finished or unfinished(output_dir) else "no files yet"


def _again(output_dir: Path, options: Mapping[str, Any]) -> str:
    """The command that continues a run, with the options that are no settings of it."""
    beside = [name for name in ("test", "push_to_hub", "device") if name in options]
    words = [word for name in beside for word in (f"--{name.replace('_', '-')}", options[name])]
    return shlex.join(["mixout", "finetune", "--resume", str(output_dir), *words])


def _choose(args: argparse.Namespace) -> int:
    """Choose, with lines of progress on stderr, and print the choice."""
    use_device(vars(args).get("device"))
    from mixout.choose import METHODS, choose
    from mixout.choose.verdict import text
    from mixout.cli.study.runs import guarded

    settings = Settings(**settings_in(vars(args)))
    methods = vars(args).get("methods", METHODS)

    def work(report: Any) -> int:  # noqa: ANN401
        choice = choose(settings, output_dir=args.output_dir, budget=args.budget, methods=methods, report=report)
        print(f"{text(choice)}\nmodel {choice.model}\nreport {Path(args.output_dir) / 'report.md'}")
        print(f"answers for new rows: mixout predict {shlex.quote(str(choice.model))} FILE")
        return 0

    return guarded(work, args.output_dir)


def _predict(args: argparse.Namespace) -> int:
    """Predict, and print where the answers are."""
    from mixout.finetune.predict import predict

    use_device(args.device)
    names = ("text_column", "pair_column", "label_column", "max_length")
    chosen = {name: getattr(args, name) for name in names}
    print(predict(args.model, args.file, unclaimed(args.output, _PREDICTIONS), **chosen))
    return 0


def _begun(chosen: dict[str, Any], folder: str | None) -> Settings:
    """The settings of the run that is resumed; ``chosen`` must agree with them, except for loggers."""
    from mixout.finetune.folder import begun

    if folder is None:
        raise InputError("expected the folder of the run to go on with, got none; write --resume DIR")
    return replace(begun(Path(folder)), **chosen)


def _report(line: str) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]  # comes with transformers

    # Not print: a line must not run into a progress bar.
    tqdm.write(line, file=sys.stderr)


def _summary(record: Record, folder: Path) -> str:
    def said(scores: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())

    first, lines = record.evaluations[0], [record.verdict] if record.verdict else []
    if first.step == 0:
        lines.append(f"before training: {said(first.scores)}")
    if record.interpolated:  # the models between the pretrained weights, t = 0, and the trained ones, t = 1
        rows = [[f"{row['t']:g}", *(f"{value:.4f}" for value in [*row.values()][1:])] for row in record.interpolated]
        lines.append(aligned([[*record.interpolated[0]], *rows], left=0))
    lines.append(f"model, record.json and model card: {folder}")
    if record.settings.task_type != CAUSAL:
        lines.append(f"answers for new rows: mixout predict {shlex.quote(str(folder))} FILE")
    spread = record.told_errors.get(record.metric)
    error = "" if spread is None else f"; standard error over {record.dev_size:,} dev examples: {spread:.4f}"
    head = (
        f"{record.settings.method} on {record.settings.task}: {said(record.scores)} on the dev set (a constant answer: "
        f"{record.metric} {record.chance:.4f}{error}), {record.seconds:.0f} s of training"
    )
    return "\n".join([head, *lines])
