"""How often the intervals of a report hold the truth, and its claims are wrong, for scores of realistic shapes.

    python benchmarks/coverage.py --studies 500

Each simulated study has n restarts of a method and of a baseline. Shapes: both normal; both skewed; the baseline, or
both, fail in some runs, which then score at chance, 20 points below. What an interval is held against: the difference
of the means of all runs where some failed, and of the runs that do not fail where none did, as the report says.
``claims`` is the share of studies that show a difference of means where there is none (nan where there is one).

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

from mixout.study.analysis.cells import Cell, Comparison, summarise
from mixout.study.analysis.compare import compare
from mixout.study.analysis.runs import Run

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
TWICE = ("mean", "failure rate")  # once for each method
UNPAIRED = ("normal", "skewed, equal", "baseline fails 0.5")


def main() -> None:
    """Simulate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=500, help="simulated studies of each shape and n")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["shape", "restarts", "pairs", "interval", "printed", "coverage", "median_width", "claims"])
        for shape in SHAPES:
            for n, paired in itertools.product(RESTARTS, (True, False) if shape in UNPAIRED else (True,)):
                rows = simulate(shape, n, paired=paired, studies=args.studies)
                writer.writerows(rows)
                file.flush()
                print(*rows, sep="\n")


def simulate(shape: str, n: int, *, paired: bool, studies: int, seed: int = 0) -> list[tuple[object, ...]]:
    """Rows of the table, one an interval."""
    random = np.random.default_rng(seed)
    hits: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    wrong: list[bool] = []
    better = superior(*SHAPES[shape], random)
    for _ in range(studies):
        method, baseline = SHAPES[shape]
        shared = random.standard_normal(n)
        x = method.draw(random, shared)
        y = baseline.draw(random, shared if paired else random.standard_normal(n))
        runs = [
            Run(task="T", method=name, restart=k, score=float(score), chance=CHANCE, paired=paired)
            for name, scores in (("plain", y), ("mixout", x))
            for k, score in enumerate(scores)
        ]
        [comparison] = compare(runs, "plain")
        for name, low, high, truth in intervals(comparison, summarise(runs), method, baseline, better):
            hits.setdefault(name, []).append(low - 1e-9 <= truth <= high + 1e-9)
            widths.setdefault(name, []).append(high - low)
        truth = target(comparison.some_failed, method, baseline)
        wrong += [comparison.p_holm <= 0.05] if abs(truth) < 1e-9 else []
    claims = round(float(np.mean(wrong)), 4) if len(wrong) > studies / 20 else math.nan
    pairs = "paired" if paired else "unpaired"
    return [
        (shape, n, pairs, name, round(len(hits[name]) / studies / (2 if name in TWICE else 1), 3),
         round(float(np.mean(hits[name])), 4), round(float(np.median(widths[name])), 2), claims)
        for name in hits
    ]  # fmt: skip


def intervals(
    c: Comparison, cells: list[Cell], method: Law, baseline: Law, better: float
) -> Iterator[tuple[str, float, float, float]]:
    """Each interval that a report on these runs prints: name, ends, and what it should hold."""
    for cell, law in zip(cells, (baseline, method), strict=True):
        if cell.mean_low is not None and cell.mean_high is not None:
            yield "mean", cell.mean_low, cell.mean_high, law.mean if cell.failed else law.level
        yield "failure rate", cell.failure_low, cell.failure_high, law.fails
    if c.low is not None and c.high is not None:
        name = "difference, some failed" if c.some_failed else "difference"
        yield name, c.low, c.high, target(c.some_failed, method, baseline)
    if c.some_failed and c.level_low is not None and c.level_high is not None:
        yield "difference without failed", c.level_low, c.level_high, method.level - baseline.level
    yield "difference of failure rates", c.failure_low, c.failure_high, method.fails - baseline.fails
    yield "P(better)", c.improvement_low, c.improvement_high, better


def target(some_failed: bool, method: Law, baseline: Law) -> float:
    """The difference that a report speaks of."""
    return method.mean - baseline.mean if some_failed else method.level - baseline.level


def superior(method: Law, baseline: Law, random: np.random.Generator) -> float:
    """P(X > Y) + P(X = Y) / 2 of independent runs."""
    x, y = (law.draw(random, random.standard_normal(200_000)) for law in (method, baseline))
    return float((x > y).mean() + (x == y).mean() / 2)


if __name__ == "__main__":
    main()
