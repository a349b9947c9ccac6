"""``mixout choose``: from a table to a model, a report and one sentence, within a budget of training time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mixout.cli.options import add_device, add_settings, settings_in, use_device
from mixout.finetune.settings import Settings

_EXAMPLES = """examples:
  mixout choose reviews.csv                                 columns text and label; the model comes to chosen/model
  mixout choose reviews.csv --budget 2h --model roberta-base --output-dir chosen/reviews
  mixout choose SST-2 --data-dir glue --train-size 200 --methods "mixout(0.8)" "dropout(0.1)"
"""


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "choose",
        help="choose method and learning rate on a small table, and train the model",
        usage="mixout choose DATA [--budget TIME] [--model NAME] [OPTION ...]",
        description="Search over learning rates, then over methods, within a budget of training time. The score to "
        "expect\non new data is measured on rows that the choice has not seen, beside that of the default. Call it "
        "again to\ncontinue after an interruption, or with a larger budget.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(parser=parser)
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


def run(args: argparse.Namespace) -> int:
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
        return 0

    return guarded(work, args.output_dir)
