"""``mixout dare``: the score of a fine-tuned model over how much of its task delta is dropped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixout.dare.curve import Plan, Subject
    from mixout.dare.scores import Score

_RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_INTERPOLATE = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "dare",
        help="score a fine-tuned model over the share of its task delta that is dropped",
        description=(
            "Drop each element of w - u with probability p and divide the rest by 1-p (DARE), drop input neurons' as "
            "mixout does, and interpolate between u and w (WiSE-FT); score each on the dev set. Writes dare.csv after "
            "every score, and figures; the same command goes on where an interrupted one stopped."
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="folder that mixout finetune wrote")
    parser.add_argument("--anchor", metavar="BASE", help="the base model; default: the one that MODEL began with")
    parser.add_argument("--task", help="score on another task of the same labels; default: the one trained on")
    parser.add_argument("--data-dir", metavar="DIR", help="where GLUE's files are; default: as in training")
    parser.add_argument("--rates", nargs="*", type=float, default=_RATES, metavar="P", help="drop rates in [0, 1]")
    parser.add_argument(
        "--interpolate", nargs="*", type=float, default=_INTERPOLATE, metavar="T", help="shares of w - u in [0, 1]"
    )
    parser.add_argument(
        "--unit", nargs="+", choices=("element", "input"), default=("element", "input"), help="what shares a coin"
    )
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="draws at each rate; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first draw; default: %(default)s")
    parser.add_argument("--output-dir", metavar="DIR", help="default: out/dare/<digest of MODEL's settings>")


def run(args: argparse.Namespace) -> int:
    """Score, write what is known after each score, draw, print the table."""
    from mixout.dare import figure  # first of all: without matplotlib the end would be missing
    from mixout.dare.curve import Plan, load
    from mixout.dare.scores import table

    plan = Plan(
        rates=tuple(args.rates),
        interpolate=tuple(args.interpolate),
        units=tuple(args.unit),
        draws=args.draws,
        seed=args.seed,
    )
    subject = load(args.model, anchor=args.anchor, task=args.task, data_dir=args.data_dir)
    folder = Path(args.output_dir or Path("out") / "dare" / subject.record.digest[:12])
    scores = _measure(subject, plan, folder / "dare.csv")
    metric = subject.task.metric
    drawn = figure.draw(scores, folder, metric=metric, chance=subject.record.chance)
    print(f"{table(scores, metric)}\n\ntable and {len(drawn)} figures in {folder}")
    return 0


def _measure(subject: Subject, plan: Plan, path: Path) -> list[Score]:
    from mixout.bench.table import environment
    from mixout.dare.curve import measure
    from mixout.dare.scores import from_csv, to_csv
    from mixout.finetune.folder import making
    from mixout.finetune.record import write_atomically

    with making(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = from_csv(path.read_text(encoding="utf-8"), subject.constants) if path.exists() else []
        constants = {**subject.constants, **environment()}
        write_atomically(path, to_csv(known, constants))  # whether it can be written, before the work
    done = {one.point for one in known}
    left = [point for point in plan.points() if point not in done]
    if known:
        print(f"{len(known)} scores are there already, {len(left)} to go", file=sys.stderr)
    for one in measure(subject, left):
        known.append(one)
        write_atomically(path, to_csv(known, constants))
        print(f"  {one.curve}, {one.removed:g} removed: {subject.task.metric} {one.score:.4f}", file=sys.stderr)
    return known
