"""``mixout choose`` beside the plain default and beside the best of a full grid, on the dev rows of GLUE tasks.

    python benchmarks/choose.py --data-dir glue                                # what is missing in out/choose.csv
    python benchmarks/choose.py --data-dir glue --tasks SST-2 --budget 10m     # a part of it, with less time

A row is a task with one subset of training rows. The choice and the default never see the dev rows. The grid is one run
of each method at the rule's rate, twice and half of it, and of plain fine-tuning also at four times and a quarter. It
picks the best of these by its dev score, so that score is too good: a bound, not a rival. The default is one of them.
``expected`` is what the choice promised, and should agree with ``chosen_score``. A row that is there is skipped, and
what was cut off goes on from its ledger.

All runs have bucketed batches and one evaluation at their end. On one core a row costs the budget and about 20 runs.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

from mixout.choose import METHODS, choose
from mixout.choose.search import PLAIN, RATES, RATES_OF_METHOD
from mixout.finetune.cache import Cache
from mixout.finetune.record import RECORD_NAME, Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune
from mixout.study.identity import Inputs
from table import Row, Table

TASKS = ("SST-2", "CoLA", "RTE")
NAMES = ("model", "task", "rows", "subset", "budget")


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/choose.csv"), metavar="FILE")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the TSV files of GLUE; else the hub is asked")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--rows", nargs="+", type=int, default=(200,))
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--budget", default="15m")
    args = parser.parse_args()
    table = Table(args.output, keep=True)
    for task, rows, subset in itertools.product(args.tasks, args.rows, range(args.subsets)):
        names = dict(zip(NAMES, map(str, (args.model, task, rows, subset, args.budget)), strict=True))
        if any(all(row[name] == value for name, value in names.items()) for row in table.rows):
            continue
        settings = Settings(
            model=args.model, task=task, data_dir=args.data_dir, train_size=rows, subset_seed=subset, save="no",
            evaluate="end", batching="bucketed",
        )  # fmt: skip
        place = args.output.parent / "choose" / "-".join((Path(args.model).name, task, str(rows), str(subset)))
        table.add({**names, **measure(settings, place, args.budget)})
        print(table.text([*NAMES, "chosen", "chosen_score", "expected", "default_score", "grid_score"]), flush=True)


def measure(settings: Settings, place: Path, budget: str) -> Row:
    """The choice, the default and the grid for one subset."""
    choice = choose(settings, output_dir=place / "choice", budget=budget, report=lambda line: print(line, flush=True))
    cache = Cache()
    # The rule's rates, as far as a run with the rule tells them.
    grid = [(PLAIN, factor) for factor in RATES]
    inputs = Inputs()
    methods = [method for method in METHODS if not inputs.is_plain(replace(settings, method=method))]
    grid += [(method, factor) for method in methods for factor in RATES_OF_METHOD]
    runs = []
    for method, factor in grid:
        rule = once(replace(settings, method=method), place / f"{method}-1", cache)
        rate = rule.settings.learning_rate * factor
        named = replace(settings, method=method, learning_rate=rate)
        runs.append(rule if factor == 1.0 else once(named, place / f"{method}-{factor:g}", cache))
    default = once(settings, place / f"{settings.method}-1", cache)
    best = max(runs, key=lambda record: record.score)
    expected = choice.expected
    return {
        "metric": choice.metric,
        "chosen": f"{choice.method} at {choice.learning_rate:g}",
        "chosen_score": choice.dev[choice.metric],
        "expected": "" if expected is None else expected.value,
        "expected_low": "" if expected is None else expected.low,
        "expected_high": "" if expected is None else expected.high,
        "default_score": default.score,
        "grid": f"{best.settings.method} at {best.settings.learning_rate:g}",
        "grid_score": best.score,
        "runs": choice.runs,
        "seconds": choice.seconds,
        "grid_seconds": sum(record.seconds + record.evaluation_seconds for record in runs),
    }


def once(settings: Settings, place: Path, cache: Cache) -> Record:
    """One run, or its record where it is there."""
    if (place / RECORD_NAME).exists():
        return Record.read(place)
    resume = (place / "checkpoints" / "run.json").exists()
    return finetune(settings, place, keep_model=False, resume=resume, cache=cache)


if __name__ == "__main__":
    main()
