"""How often the intervals of a report hold the truth, and its claims are wrong, for scores of realistic shapes.

    python benchmarks/coverage.py --studies 2000

Each simulated study has n restarts of a method and of a baseline. Shapes: both normal; both skewed; the baseline, or
both, fail in some runs, which then score at chance, 20 points below. The interval of a mean, or of a difference, is
held against that of the runs that do not fail, of which it speaks. ``claims`` is the share of studies that show a
difference of means where there is none (nan where there is one).

Intervals of rates are of counts, so their coverage jumps with the rate: it is 1 at a rate of 0, whatever the interval.
It is computed without simulation, as the mean over rates from 0.05 to 0.95, and the lowest of them.

Writes one row a shape, n and interval to ``benchmarks/results/coverage.csv``: the share of studies that print it, and
of these the share in which it holds the truth.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from mixout.study.analysis import stats as analysis
from mixout.study.analysis.across import aggregate
from mixout.study.analysis.cells import Cell, summarise
from mixout.study.analysis.compare import Comparison, compare
from mixout.study.analysis.runs import Run
from mixout.study.analysis.stats import newcombe, wilson

RESULTS = Path(__file__).parent / "results" / "coverage.csv"
RESTARTS = (3, 5, 10, 20)
CHANCE = 50.0


@dataclass(frozen=True)
class Law:
    """How one method scores: around a level, or at chance where a run fails."""

    level: float
    sd: float = 2.0
    fails: float = 0.0
    skewed: bool = False

    @property
    def mean(self) -> float:
        """Of all runs."""
        return (1 - self.fails) * self.level + self.fails * CHANCE

    def draw(self, random: np.random.Generator, shared: np.ndarray) -> np.ndarray:
        """Scores of the restarts; ``shared`` is what they have in common with those of other methods."""
        own = random.standard_normal(len(shared))
        noise = math.sqrt(0.5) * (shared + own)
        if self.skewed:  # a tail to the left, as accuracies near their ceiling have: minus a gamma variable, of sd 1
            noise = (4.0 - stats.gamma.ppf(stats.norm.cdf(-noise), 4.0)) / 2.0
        return np.where(random.random(len(shared)) < self.fails, CHANCE, self.level + self.sd * noise)


SHAPES: dict[str, tuple[Law, Law]] = {
    "normal": (Law(71.0), Law(70.0)),
    "normal, equal": (Law(70.0), Law(70.0)),
    "skewed, equal": (Law(70.0, skewed=True), Law(70.0, sd=4.0, skewed=True)),
    "baseline fails 0.5": (Law(76.0), Law(70.0, sd=2.5, fails=0.5)),
    "baseline fails 0.1": (Law(72.0), Law(70.0, fails=0.1)),
    "both fail 0.5, 0.6": (Law(70.0, fails=0.5), Law(70.0, fails=0.6)),
    "baseline fails 0.1, equal means": (Law(68.0), Law(70.0, fails=0.1)),
    "baseline fails 0.25, equal means": (Law(65.0), Law(70.0, fails=0.25)),
}
UNPAIRED = ("normal", "skewed, equal", "baseline fails 0.5")


def main() -> None:
    """Simulate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies of each shape and n")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    analysis.RANDOM = 999  # random permutations: enough to tell a share of claims
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["shape", "restarts", "pairs", "interval", "printed", "coverage", "median_width", "claims"])
        for rows in simulated(args.studies):
            writer.writerows(rows)
            file.flush()


Row = tuple[object, ...]


def simulated(studies: int) -> Iterator[list[Row]]:
    """All rows of the table, a few at a time."""
    for shape in SHAPES:
        for n, paired in itertools.product(RESTARTS, (True, False) if shape in UNPAIRED else (True,)):
            yield simulate(shape, n, paired=paired, studies=studies)
    for n in RESTARTS:
        yield over_tasks(n, studies)
    for n in RESTARTS:
        yield of_rates(n)


def simulate(shape: str, n: int, *, paired: bool, studies: int, seed: int = 0) -> list[Row]:
    """Rows of the table, one an interval."""
    random = np.random.default_rng(seed)
    method, baseline = SHAPES[shape]
    seen: dict[str, list[tuple[float, float, float]]] = {}
    printed: dict[str, float] = {}
    wrong: list[bool] = []
    for _ in range(studies):
        shared = random.standard_normal(n)
        x = method.draw(random, shared)
        y = baseline.draw(random, shared if paired else random.standard_normal(n))
        runs = [
            Run(task="T", method=name, restart=k, score=float(score), chance=CHANCE, paired=paired)
            for name, scores in (("plain", y), ("mixout", x))
            for k, score in enumerate(scores)
        ]
        [comparison] = compare(runs, "plain")
        for name, low, high, truth in intervals(comparison, summarise(runs), method, baseline):
            seen.setdefault(name, []).append((low, high, truth))
            printed[name] = printed.get(name, 0.0) + (0.5 if name == "mean" else 1.0) / studies  # one for each method
        truth = target(comparison.some_failed, method, baseline)
        wrong += [comparison.shown] if abs(truth) < 1e-9 else []
    claims = round(float(np.mean(wrong)), 4) if len(wrong) > studies / 20 else math.nan
    pairs = "paired" if paired else "unpaired"
    return [(shape, n, pairs, name, round(printed[name], 3), *covered(seen[name]), claims) for name in seen]


def intervals(
    c: Comparison, cells: list[Cell], method: Law, baseline: Law
) -> Iterator[tuple[str, float, float, float]]:
    """Each interval of means that a report on these runs prints: name, ends, and what it should hold."""
    for cell, law in zip(cells, (baseline, method), strict=True):
        if cell.mean_low is not None and cell.mean_high is not None:
            yield "mean", cell.mean_low, cell.mean_high, law.level
    if c.low is not None and c.high is not None:
        yield "difference", c.low, c.high, method.level - baseline.level


def target(some_failed: bool, method: Law, baseline: Law) -> float:
    """The difference that the test of a report speaks of."""
    return method.mean - baseline.mean if some_failed else method.level - baseline.level


def over_tasks(n: int, studies: int) -> list[Row]:
    """The mean difference over three tasks, whose restarts spread by 1, 3 and 10 points."""
    random, seen = np.random.default_rng(0), []
    for _ in range(studies):
        runs = [
            Run(task=task, method=method, restart=k, score=float(score))
            for task, sd in (("A", 1.0), ("B", 3.0), ("C", 10.0))
            for method, level in (("plain", 60.0), ("mixout", 62.0))
            for k, score in enumerate(random.normal(level, sd, n))
        ]
        [found] = aggregate(compare(runs, "plain"), summarise(runs))
        if found.low is not None and found.high is not None:
            seen.append((found.low, found.high, 2.0))
    return [("three tasks", n, "paired", "difference over tasks", round(len(seen) / studies, 3), *covered(seen), "nan")]


def covered(seen: list[tuple[float, float, float]]) -> tuple[float, float]:
    """How often (low, high, truth) holds the truth, and the median width."""
    low, high, truth = np.array(seen).T
    hits = (low - 1e-9 <= truth) & (truth <= high + 1e-9)
    return round(float(hits.mean()), 4), round(float(np.median(high - low)), 2)


def of_rates(n: int) -> list[Row]:
    """Exact coverage of a failure rate and of a difference of two, over a grid of rates."""
    rates = np.linspace(0.05, 0.95, 19)
    first, second = (axis.ravel() for axis in np.meshgrid(rates, rates))
    alone = [(k, wilson(k, n)) for k in range(n + 1)]
    chances = [np.asarray(stats.binom.pmf(k, n, rates)) for k, _ in alone]
    rows = _exact("failure rate", n, "", [ends for _, ends in alone], chances, rates)
    # Counts of pairs in which both fail, the first alone, the second alone, neither.
    counts = [(a, b, c, n - a - b - c) for a, b, c in itertools.product(range(n + 1), repeat=3) if a + b + c <= n]
    cells = [first * second, first * (1 - second), (1 - first) * second, (1 - first) * (1 - second)]
    pairs = [np.asarray(stats.multinomial.pmf(count, n, np.stack(cells, axis=-1))) for count in counts]
    for paired in (True, False):
        ends = []
        for a, b, c, d in counts:
            one, other = [True] * (a + b) + [False] * (c + d), [True] * a + [False] * b + [True] * c + [False] * d
            ends.append(newcombe(one, other, paired=paired))
        name = "paired" if paired else "unpaired"
        rows += _exact("difference of failure rates", n, name, ends, pairs, first - second)
    return rows


def _exact(
    name: str, n: int, pairs: str, ends: list[tuple[float, float]], chances: list[np.ndarray], truth: np.ndarray
) -> list[Row]:
    hits = np.array([(low - 1e-9 <= truth) & (truth <= high + 1e-9) for low, high in ends])
    coverage = (hits * np.array(chances)).sum(axis=0)
    width = round(float(np.median([high - low for low, high in ends])), 2)
    shape = "rates 0.05 to 0.95"
    return [
        (f"{shape}, {which}", n, pairs, name, 1.0, round(float(value), 4), width, "nan")
        for which, value in (("mean", coverage.mean()), ("lowest", coverage.min()))
    ]


if __name__ == "__main__":
    main()
