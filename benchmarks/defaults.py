"""The rule for defaults (``mixout.finetune.defaults``) against a search over learning rates: is one run good enough?

    python benchmarks/defaults.py run --data-dir glue                # what is missing in out/defaults.csv
    python benchmarks/defaults.py run --data-dir glue --share 1/2    # half of it; 2/2 in another shell
    python benchmarks/defaults.py run --data-dir glue --tasks SST-2 RTE --rows 100 --restarts 1    # a part of it
    python benchmarks/defaults.py report                             # the table, from what is there so far

A cell is a task at a number of training rows. In each, every method runs once by the rule alone, and once at each rate
of the search, all else by the rule; restart k trains on subset k with seed k. A finished run is a row of the CSV file;
a run whose row is there is skipped, so the script can be stopped at any time, and its options may be widened later.
``--set`` changes a setting of all runs (``--set epochs=10``), and is part of a row's name. One thread in a process.

Tasks: five of GLUE from the folder ``--data-dir``; ``docstrings``, which is in the package; and ``genre``, a table that
is made of STS-B's training file: which of three sources a sentence is from.

The report gives, for each cell, the mean score by the rule for each method, and the best mean of the search over rates
and methods together: what the rule leaves on the table, in points.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from filelock import FileLock

from mixout.errors import InputError
from mixout.finetune.cache import Cache
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

TASKS = ("SST-2", "CoLA", "RTE", "STS-B", "MRPC", "genre", "docstrings")
ROWS = (100, 400)
METHODS = ("anchor_decay(radius=0.005)", "plain", "mixout(0.7)")
RATES = tuple(2.5e-5 * 2**power for power in range(7))
RULE = "rule"
NAMES = ("model", "task", "rows", "method", "rate", "restart", "set")
MEASURED = (
    "metric",
    "score",
    "chance",
    "learning_rate",
    "batch_size",
    "epochs",
    "steps",
    "loss",
    "dev_loss",
    "status",
    "seconds",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: a row of the file once it has ended."""

    model: str
    task: str
    rows: int
    method: str
    rate: str
    restart: int
    set: str

    @property
    def name(self) -> tuple[str, ...]:
        """What tells it apart, as the file spells it."""
        return tuple(str(getattr(self, name)) for name in NAMES)


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--output", type=Path, default=Path("out/defaults.csv"), metavar="FILE")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the TSV files of GLUE; else the hub is asked")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--rates", nargs="*", type=float, default=RATES, help="none: the rule alone")
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--share", default="1/1", metavar="K/N", help="every N-th run, from the K-th on")
    args = parser.parse_args()
    if args.what == "report":
        print(report(read(args.output)))
        return
    torch.set_num_threads(1)
    share, shares = map(int, args.share.split("/"))
    wanted = runs(args)[share - 1 :: shares]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    cache = Cache()
    for number, run in enumerate(wanted, 1):
        if run.name in {tuple(row[name] for name in NAMES) for row in read(args.output)}:
            continue
        row = measure(run, args.data_dir, args.output.parent, cache)
        write(args.output, {**dict(zip(NAMES, run.name, strict=True)), **row})
        print(
            f"[{number}/{len(wanted)}] {' '.join(run.name)}: {row['metric']} {row['score']:.4f}, "
            f"{row['seconds']:.0f} s",
            flush=True,
        )


def runs(args: argparse.Namespace) -> list[Run]:
    """All runs, restart by restart; runs of one task follow each other, so that its tokens are read once."""
    rates = [RULE, *(f"{rate:g}" for rate in args.rates)]
    return [
        Run(model=args.model, task=task, rows=rows, method=method, rate=rate, restart=restart, set=" ".join(args.set))
        for restart, task, rows, method, rate in itertools.product(
            range(args.restarts), args.tasks, args.rows, args.methods, rates
        )
    ]


def measure(run: Run, data_dir: str | None, folder: Path, cache: Cache) -> dict[str, Any]:
    """Train once."""
    values: dict[str, Any] = {"task": run.task, "data_dir": None if run.task == "docstrings" else data_dir}
    if run.task == "genre":
        if data_dir is None:
            raise InputError("expected --data-dir for the task 'genre', got none; leave it out of --tasks")
        values = {"task": str(genres(Path(data_dir), folder))}
    for assignment in run.set.split():
        name, _, value = assignment.partition("=")
        values[name] = type_of(value)
    if run.rate != RULE:
        values["learning_rate"] = float(run.rate)
    settings = Settings(
        model=run.model, method=run.method, train_size=run.rows, seed=run.restart, subset_seed=run.restart,
        evaluate="end", save="no", **values,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        record = finetune(settings, Path(place) / "run", keep_model=False, cache=cache)
    last = record.training[-1].loss
    chosen = {name: getattr(record.settings, name) for name in ("learning_rate", "batch_size", "epochs")}
    measured = {name: getattr(record, name) for name in ("metric", "score", "chance", "steps", "status", "seconds")}
    return {**measured, **chosen, "loss": last, "dev_loss": record.evaluations[-1].loss}


def genres(data_dir: Path, folder: Path) -> Path:
    """The table of the task ``genre``: first sentences of STS-B's training file with their source, each once."""
    place = folder / "genre.csv"
    if not place.exists():
        lines = (data_dir / "STS-B" / "train.tsv").read_text(encoding="utf-8-sig").splitlines()
        rows = {cells[7]: cells[1] for cells in (line.split("\t") for line in lines[1:]) if len(cells) > 9}
        # Every fourth: a dev set of a fifth of them is enough.
        chosen = list(rows.items())[::4]
        with place.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *chosen])
    return place


def type_of(value: str) -> str | int | float:
    """A value as a number where it is one."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the file; none where there is none yet."""
    if not path.exists():
        return []
    with FileLock(f"{path}.lock"), path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, row: dict[str, Any]) -> None:
    """Add one row."""
    with FileLock(f"{path}.lock"), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*NAMES, *MEASURED), lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def report(rows: list[dict[str, str]]) -> str:
    """The table, one line a cell, and the mean over the cells."""
    scores: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        scores[row["model"], row["task"], row["rows"], row["set"], row["method"], row["rate"]].append(
            100 * float(row["score"])
        )
    if not scores:
        return "no runs yet"
    means = {key: fmean(found) for key, found in scores.items()}
    methods = sorted({key[4] for key in scores})
    lines = [f"{'cell':34}" + "".join(f"{method:>28}" for method in methods) + f"{'best of the search':>44}"]
    behind: dict[str, list[float]] = defaultdict(list)
    for cell in sorted({key[:4] for key in scores}):
        searched = {key: mean for key, mean in means.items() if key[:4] == cell and key[5] != RULE}
        best = max(searched, key=searched.__getitem__, default=None)
        line = f"{' '.join(filter(None, cell)):34}"
        for method in methods:
            found = scores.get((*cell, method, RULE), [])
            spread = f" ±{stdev(found):.1f}" if len(found) > 1 else ""
            line += f"{f'{fmean(found):.1f}{spread} ({len(found)})' if found else '-':>28}"
            if found and best is not None:
                behind[method].append(searched[best] - fmean(found))
        if best is not None:
            line += f"{f'{searched[best]:.1f} ({len(scores[best])}) {best[4]} at {best[5]}':>44}"
        lines.append(line)
    for name, summary in (("behind the best, mean", fmean), ("behind the best, most", max)):
        if behind:
            cells = [f"{summary(behind[method]):.1f}" if behind[method] else "-" for method in methods]
            lines.append(f"{name:34}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
