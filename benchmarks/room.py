"""The pre-registered verdict of benchmarks/evidence/room.toml: is mixout tolerant of the rate, or only shifted?

    mixout study run benchmarks/evidence/room.toml --set data_dir=glue --ledger out/room
    mixout study export --ledger out/room --output results/room.csv
    python benchmarks/room.py results/room.csv    # or results/room-tasks.csv, results/strength-causal.csv

What is compared, and what counts for and against, was written into the study file before any run: see its first lines.
Only restarts of which every run is there are read.

- **Mean over rates** (primary 1): the mean score over all rates, mixout(0.7) minus dropout(0.0), Student's t.
- **Loss** (primaries 2 and 3): a method's best rate is that of the highest mean over the *other* restarts. Its loss is
  the score there minus the score at four times that rate, both of this restart. Losses are compared in pairs, Student's
  t, Holm over the family. Where four times the best rate is above the grid, the highest rate of the grid stands for it,
  so that the loss is understated; the table says for how many restarts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from mixout.errors import InputError
from mixout.study.analysis.stats import holm, mean_interval
from table import Row

MIXOUT, PLAIN, MASK = "mixout(0.7)", "dropout(0.0)", "gradient_mask(0.7)"
DECAYS = ["wdecay(w_pre, 40)", "wdecay(w_pre, 160)", "wdecay(w_pre, 1000)"]
TOLERANT = 2.0  # points that a method which needs no rate may lose
ALPHA = 0.05


@dataclass(frozen=True)
class Losses:
    """Of one method, in points, by restart."""

    best: list[float]  # the rate
    score: np.ndarray  # there
    loss: np.ndarray  # at four times that rate
    beyond: int  # restarts in which that rate is above the grid


def complete(runs: pd.DataFrame) -> pd.DataFrame:
    """Score in percent by restart (rows), method and rate (columns), of restarts that lack none."""
    table = runs.pivot_table(index="restart", columns=["method", "learning_rate"], values="score") * 100
    methods, rates = table.columns.get_level_values(0).unique(), sorted(runs["learning_rate"].unique())
    return table.reindex(columns=pd.MultiIndex.from_product([methods, rates])).dropna()


def losses(scores: pd.DataFrame) -> Losses:
    """Of one method's ``scores``: restarts by rates."""
    rates, values = list(scores.columns), scores.to_numpy()
    best, at, lost, beyond = [], [], [], 0
    for k in range(len(values)):
        others = np.delete(values, k, axis=0).mean(axis=0)
        index = int(others.argmax())
        wanted = 4 * rates[index] * (1 - 1e-9)
        far = next((i for i, rate in enumerate(rates) if rate >= wanted), None)
        beyond += far is None
        best.append(rates[index])
        at.append(values[k, index])
        lost.append(values[k, index] - values[k, len(rates) - 1 if far is None else far])
    return Losses(best, np.array(at), np.array(lost), beyond)


def family(differences: Mapping[str, np.ndarray]) -> list[Row]:
    """One row for each of these, by what they are: mean, Student's t, and p-values corrected over all of them."""
    corrected = holm([float(stats.ttest_1samp(each, 0.0).pvalue) for each in differences.values()])
    rows = []
    for (what, each), p in zip(differences.items(), corrected, strict=True):
        low, high = mean_interval(each) or (np.nan, np.nan)
        rows.append({"what": what, "points": each.mean(), "low": low, "high": high, "p-value": p})
    return rows


def losses_compared(pairs: list[tuple[str, str]], of: dict[str, Losses]) -> list[Row]:
    """One row a pair: how much more the first loses than the second, corrected over ``pairs``."""
    return family({f"loss of {one} - of {other}": of[one].loss - of[other].loss for one, other in pairs})


def verdict(first: Row, second: list[Row]) -> str:
    """In the words of the study file."""
    if all(row["p-value"] < ALPHA and row["points"] < 0 for row in second):
        return "robust: mixout loses less at four times its best rate than every other method"
    if first["p-value"] < ALPHA and first["points"] > 0:
        return "shifted: mixout scores higher over the rates, but is not shown to lose less at four times its best rate"
    return "neither shown"


def said(name: str, one: Losses) -> str:
    """A line on the loss of one method."""
    beyond = f", above the grid in {one.beyond}" if one.beyond else ""
    tolerant = "" if one.loss.mean() >= TOLERANT else "; below 2 points"
    score, loss = one.score.mean(), one.loss.mean()
    return f"{name}: best rates {sorted(set(one.best))}, {score:.1f} %, loss {loss:.1f}{beyond}{tolerant}"


def on_tasks(runs: pd.DataFrame) -> None:
    """Print the verdict of room-tasks.toml."""
    tables = {task: complete(some) for task, some in runs.groupby("task", sort=False)}
    decay, others = DECAYS[1], (PLAIN, MIXOUT)
    of = {
        method: {task: losses(table[method]) for task, table in tables.items()} for method in (*others, decay)
    }  # fmt: skip
    for task, table in tables.items():
        print(f"{task}, {len(table)} restarts\n{table.mean().unstack().round(1).to_string()}\n")
    print("\n".join(said(f"{task}, {method}", one) for method, by_task in of.items() for task, one in by_task.items()))
    all_losses = {method: np.concatenate([one.loss for one in by_task.values()]) for method, by_task in of.items()}
    first = [family({f"loss of {decay}, {task}": one.loss})[0] for task, one in of[decay].items()]
    second = family({f"loss of {other} - of {decay}": all_losses[other] - all_losses[decay] for other in others})
    print("\n" + pd.DataFrame([*first, *second]).round(4).to_string(index=False))
    shown = all(row["high"] < TOLERANT for row in first)
    holds = all(row["points"] < TOLERANT for row in first)
    print(f"\n{decay}: {'needs no rate, shown' if shown else 'needs no rate, not shown' if holds else 'needs a rate'}")


def on_strengths(runs: pd.DataFrame) -> None:
    """Print the verdict of strength-causal.toml."""
    means = runs.groupby(["method", "learning_rate"])["score"].mean()
    table = complete(runs.assign(score=(runs["score"] - runs["chance"]) / (means.max() - runs["chance"])))
    print(f"{len(table)} restarts\n{table.mean().unstack().round(1).to_string()}\n")
    of = {method: losses(table[method]) for method in table.columns.get_level_values(0).unique()}
    print("\n".join(said(method, one) for method, one in of.items()))
    strengths = sorted(of.keys() - {"none"}, key=lambda method: float(method[len("decay(") : -1]))
    rows = family({f"loss of {method}": of[method].loss for method in strengths})
    print("\n" + pd.DataFrame(rows).round(4).to_string(index=False))
    inside = [(method, row) for method, row in zip(strengths, rows, strict=True) if not of[method].beyond]
    shown = [method for method, row in inside if row["high"] < TOLERANT]
    holds = [method for method, row in inside if row["points"] < TOLERANT]
    print(f"\nneeds no rate: {', '.join(holds) or 'none'}; shown: {', '.join(shown) or 'none'}")


def main() -> int:
    """Print the means, each method's loss, the comparisons and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS.csv", help="written by mixout study export")
    runs = pd.read_csv(parser.parse_args().runs)
    if runs["task"].nunique() > 1:
        on_tasks(runs)
        return 0
    if MIXOUT not in set(runs["method"]):
        on_strengths(runs)
        return 0
    table = complete(runs)
    if len(table) < 3:
        raise InputError(f"expected three complete restarts, got {len(table)}; run the study further")
    of = {method: losses(table[method]) for method in table.columns.get_level_values(0).unique()}
    print(f"{len(table)} restarts, {table.shape[1]} runs each\n")
    print(table.mean().unstack().round(1).to_string(), "\n")
    print("\n".join(said(method, one) for method, one in of.items()))
    difference = (table[MIXOUT].mean(axis=1) - table[PLAIN].mean(axis=1)).to_numpy()
    [first] = family({f"mean over rates, {MIXOUT} - {PLAIN}": difference})
    second = losses_compared([(MIXOUT, other) for other in (PLAIN, MASK, *DECAYS)], of)
    third = losses_compared([(decay, other) for decay in DECAYS[1:] for other in (PLAIN, MIXOUT)], of)
    print("\n" + pd.DataFrame([first, *second, *third]).round(4).to_string(index=False))
    print(f"\nmixout(0.7): {verdict(first, second)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
