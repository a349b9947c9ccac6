"""``mixout predict``: what a fine-tuned model answers to the rows of a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mixout.cli.options import add_device, use_device
from mixout.errors import InputError

_OUTPUT = "predictions.csv"


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "predict",
        help="write a fine-tuned model's answers for the rows of a file, with probabilities",
        description=(
            "Write the columns of FILE, the model's answer and the probability of each class, its value, or the words' "
            "tags, as CSV. "
            "Where FILE has labels, they are scored."
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="folder that mixout finetune wrote, or another classifier's")
    parser.add_argument("file", metavar="FILE", help=".csv, .tsv, .jsonl, .conll or .parquet")
    parser.add_argument("--output", metavar="FILE", help=f"default: {_OUTPUT}, if there is none yet")
    for name, text in (("text", "the text"), ("pair", "the second text"), ("label", "the label, to be scored")):
        parser.add_argument(f"--{name}-column", metavar="NAME", help=f"column with {text}; default: as in training")
    add_device(parser)
    parser.add_argument("--max-length", type=int, metavar="N", help="longest input, in tokens; default: as in training")


def run(args: argparse.Namespace) -> int:
    """Predict, and print where the answers are."""
    from mixout.finetune.predict import predict

    use_device(args.device)
    names = ("text_column", "pair_column", "label_column", "max_length")
    chosen = {name: getattr(args, name) for name in names}
    if args.output is None and Path(_OUTPUT).exists():
        raise InputError(f"expected no {_OUTPUT} here, got one; name another file, or this one, with --output")
    print(predict(args.model, args.file, args.output or _OUTPUT, **chosen))
    return 0
