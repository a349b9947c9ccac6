"""Wrong labels and another domain: the data of two studies that were planned before they were run, and their verdicts.

    python benchmarks/regimes.py data glue out                       # out/noise and out/shift, from GLUE's files
    mixout study run benchmarks/evidence/noise.toml --ledger out/noise-ledger
    mixout study run benchmarks/evidence/noise-final.toml --ledger out/noise-ledger
    python benchmarks/regimes.py table noise out/noise-ledger results/noise.csv
    python benchmarks/regimes.py verdict noise results/noise.csv
    mixout study run benchmarks/evidence/shift.toml --ledger out/shift-ledger
    mixout study run benchmarks/evidence/shift-final.toml --ledger out/shift-ledger
    python benchmarks/regimes.py table shift out/shift-ledger results/shift.csv
    python benchmarks/regimes.py verdict shift results/shift.csv

What is compared, and what counts for and against, is in the first lines of the study files. A method's rate is the one
with the highest mean over the restarts of the search. The others are judged, at that rate: differences in points,
Student's t, exact sign flips, Holm over each family. With four restarts no sign-flip test has a p-value below 0.125.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mixout.errors import InputError
from mixout.finetune.tasks.tables import read_tsv
from mixout.study.analysis.runs import Run
from mixout.study.analysis.stats import holm, sign_flips
from mixout.study.ledger import Ledger
from room import ALPHA, DECAYS, MASK, MIXOUT, PLAIN, family
from table import Row

SEARCH = (0, 1)  # restarts that choose the rate
HALF, SHORT = "interpolate(0.5)", "dropout(0.0), 3 epochs"
SOFT, MIDDLE, HARD = DECAYS
# Primary and secondary comparisons of each study: the first minus the second.
FAMILIES = {
    "noise": (
        [(MIXOUT, other) for other in (PLAIN, SHORT, SOFT, MASK)],
        [(other, PLAIN) for other in (MIDDLE, HARD, HALF)],
    ),
    "shift": (
        [(MIXOUT, other) for other in (PLAIN, SOFT, MASK, HALF)],
        [(other, PLAIN) for other in (MIDDLE, HARD)],
    ),
}
# The rate is chosen by the first, and a method is judged by the last. A run of shift is a row of both.
TASKS = {
    "noise": ("SST-2, 30 % of the labels wrong",),
    "shift": ("STS-B captions", "STS-B captions, then news and forums"),
}
HOME = 625  # the first pairs of STS-B's dev set are captions


def make_data(glue: Path, output: Path) -> None:
    """Write noise/ (30 % of 6,000 labels wrong) and shift/ (captions; all of the dev set)."""
    draw = random.Random(0)
    sentences = [row for row in _rows(glue / "SST-2" / "train.tsv") if len(row["sentence"].split()) >= 4]
    noisy = [
        (row["sentence"].strip(), 1 - int(row["label"]) if draw.random() < 0.3 else int(row["label"]))
        for row in draw.sample(sentences, 6000)
    ]
    clean = [(row["sentence"].strip(), row["label"]) for row in _rows(glue / "SST-2" / "dev.tsv")]
    captions = [_pair(row) for row in _rows(glue / "STS-B" / "train.tsv") if row["genre"] == "main-captions"]
    everything = [_pair(row) for row in _rows(glue / "STS-B" / "dev.tsv")]
    for name, head, rows in (
        ("noise/train.csv", ("text", "label"), noisy),
        ("noise/dev.csv", ("text", "label"), clean),
        ("shift/train.csv", ("text", "text_pair", "label"), captions),
        ("shift/dev.csv", ("text", "text_pair", "label"), everything),
    ):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        with (output / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows])


def _rows(path: Path) -> list[dict[Hashable, Any]]:
    rows: list[dict[Hashable, Any]] = pd.DataFrame(dict(read_tsv(path).columns)).to_dict("records")
    return rows


def _pair(row: dict[Hashable, Any]) -> tuple[str, str, float]:
    return row["sentence1"], row["sentence2"], float(row["score"])


def write_table(study: str, ledger: Path, output: Path, dev: Path) -> None:
    """Write a row for each run of ``ledger``; of ``shift`` two, at home and away."""
    truth = pd.read_csv(dev)["label"].to_numpy(dtype=float) if study == "shift" else np.empty(0)
    rows = []
    for entry in Ledger(ledger).read().entries.values():
        run = entry.run
        scores = (run.score,) if study == "noise" else by_domain(run, truth)
        common = {name: getattr(run, name) for name in ("method", "restart", "metric", "chance", "distance", "seconds")}
        common["learning_rate"] = entry.settings["learning_rate"]
        rows += [{"task": task, "score": score, **common} for task, score in zip(TASKS[study], scores, strict=True)]
    names = ["task", "method", "learning_rate", "restart"]
    columns = [*names, "score", "metric", "chance", "distance", "seconds"]
    pd.DataFrame(rows)[columns].sort_values(names).to_csv(output, index=False)


def by_domain(run: Run, truth: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of a run's predictions with the dev labels, at home and away."""
    predicted = np.array(run.predictions)
    if len(predicted) != len(truth):
        raise InputError(
            f"expected {len(truth)} predictions of {run.method}, restart {run.restart}, got {len(predicted)}"
        )
    home, away = (stats.spearmanr(predicted[one], truth[one]).statistic for one in (slice(HOME), slice(HOME, None)))
    return float(home), float(away)


def judged(runs: pd.DataFrame, study: str) -> tuple[dict[str, float], pd.DataFrame]:
    """Each method's rate, and its scores in percent of the restarts that did not choose it: restarts by methods."""
    of_choice, of_judgement = (runs[runs["task"] == TASKS[study][place]] for place in (0, -1))
    search = of_choice[of_choice["restart"].isin(SEARCH)]
    rates = search.pivot_table(index="learning_rate", columns="method", values="score", aggfunc=["mean", "count"])
    means = rates["mean"].where(rates["count"] == len(SEARCH))  # a rate at which both ran
    best = {str(method): float(rate) for method, rate in means.idxmax().items()}
    for method in set(runs["method"]) - set(best):  # an interpolation of plain fine-tuning's own run
        best[method] = best[PLAIN]
    others = of_judgement[~of_judgement["restart"].isin(SEARCH)]
    at_best = others[np.isclose(others["learning_rate"], others["method"].map(best))]
    scores = at_best.pivot_table(index="restart", columns="method", values="score") * 100
    return best, scores.reindex(columns=sorted(best)).dropna()


def compared(pairs: list[tuple[str, str]], scores: pd.DataFrame) -> list[Row]:
    """One row a pair: the first minus the second, with p-values corrected over ``pairs``."""
    differences = {f"{one} - {other}": (scores[one] - scores[other]).to_numpy() for one, other in pairs}
    flips = holm([sign_flips(each) for each in differences.values()])
    return [row | {"sign flips": p} for row, p in zip(family(differences), flips, strict=True)]


def verdict(primary: list[Row]) -> str:
    """In the words of the study files."""
    shown = [row for row in primary if row["p-value"] < ALPHA]
    against = [str(row["what"]).split(" - ")[1] for row in shown if row["points"] < 0]
    if against:
        return f"against mixout: {', '.join(against)} shown above it"
    if len(shown) == len(primary):
        return "for mixout: shown above all four"
    above = [str(row["what"]).split(" - ")[1] for row in shown]
    return "neither" + (f"; shown above {', '.join(above)}" if above else "")


def report(study: str, path: Path) -> None:
    """Print rates, scores, comparisons and verdict of a study."""
    runs = pd.read_csv(path)
    best, scores = judged(runs, study)
    if len(scores) < 3:
        raise InputError(f"expected three restarts beside the search, got {len(scores)}; run the study further")
    print(f"{len(scores)} restarts are judged, at each method's own best rate\n")
    for method, mean in scores.mean().sort_values(ascending=False).items():
        print(f"{method}: {mean:.1f} at {best[str(method)]:g}, runs {', '.join(f'{x:.1f}' for x in scores[method])}")
    for name, pairs in zip(("primary", "secondary"), FAMILIES[study], strict=True):
        rows = compared(pairs, scores)
        print(f"\n{name}\n" + pd.DataFrame(rows).round(4).to_string(index=False))
        if name == "primary":
            words = verdict(rows)
    print(f"\n{words}")


def main() -> int:
    """Make the data, or say what the runs show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    data = commands.add_parser("data", help="make the tables of both studies")
    data.add_argument("glue", type=Path, help="folder with SST-2/train.tsv, SST-2/dev.tsv and those of STS-B")
    data.add_argument("output", type=Path)
    table = commands.add_parser("table", help="write the scores of a ledger's runs")
    verdicts = commands.add_parser("verdict", help="print what was planned")
    for command in (table, verdicts):
        command.add_argument("study", choices=FAMILIES)
    table.add_argument("ledger", type=Path)
    table.add_argument("output", type=Path, metavar="RUNS.csv")
    table.add_argument("--dev", type=Path, default=Path("out/shift/dev.csv"), help="labels of shift's dev rows")
    verdicts.add_argument("runs", type=Path, metavar="RUNS.csv")
    args = parser.parse_args()
    if args.what == "data":
        make_data(args.glue, args.output)
    elif args.what == "table":
        write_table(args.study, args.ledger, args.output, args.dev)
    else:
        report(args.study, args.runs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
