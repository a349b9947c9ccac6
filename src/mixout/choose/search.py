"""Which runs are made, in which order, until the time is over; and which candidate they favour.

A candidate is a method at a learning rate. The steps are in docs/choose.md: plain fine-tuning at several rates, each
other method at rates around the best one, both by successive halving (K. Jamieson and A. Talwalkar, AISTATS 2016); then
the best two and the default on the parts by which no candidate was dropped.

The order follows from scores and times alone. After an interruption the same call makes the same choices, with the runs
that are there already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from statistics import fmean, stdev
from typing import Any

from mixout.choose.parts import PARTS
from mixout.finetune.defaults import in_short
from mixout.finetune.settings import AUTO
from mixout.study.analysis.words import in_words

PLAIN = "plain"
# What is tried beside plain fine-tuning: any text that --method takes, and the default for so many rows. Adapters need
# the extra 'lora'. Most models have one of the two dropouts already; that one is left out.
METHODS = (
    "dropout(0.0)",
    "dropout(0.1)",
    "mixout(0.5)",
    "mixout(0.7)",
    AUTO,
    "interpolate(0.5)",
    *(("lora(8)",) if find_spec("peft") else ()),
)
# Multiples of the rule's rate (plain fine-tuning) and of the best rate (other methods), the likeliest first.
RATES, RATES_OF_METHOD = (1.0, 2.0, 0.5, 4.0, 0.25), (1.0, 2.0, 0.5)
SEARCHED, JUDGED = (0, 1), (2, 3, 4)
LEAST = 3  # judged runs that a choice other than the default takes
FINALISTS, REPEATS = 2, 3
# About so many runs try everything: five rates of plain fine-tuning, three of each method, and the judging.
USEFUL = 75
FEWEST = 15  # below about so many the default is mostly kept, since too few runs judge (benchmarks/choose_luck.py)
# Shares of the budget after which the rate, each method's own rate, and the finalists are known.
UNTIL_RATE, UNTIL_METHODS, UNTIL_FINALISTS = 0.2, 0.45, 0.5
_SPLITS = [(part, repeat) for repeat in range(64) for part in SEARCHED]


@dataclass(frozen=True)
class Candidate:
    """A method at a learning rate."""

    method: str
    rate: float

    def __str__(self) -> str:
        return f"{self.method} at {in_short(self.rate)}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came out of one run."""

    score: float  # higher is better
    predictions: tuple[Any, ...]  # for the part's rows
    seconds: float
    new: bool = False  # made now


Splits = dict[tuple[int, int], Trained]
# Called with a candidate, the number of the part that is held out, and the number of the repeat.
Train = Callable[[Candidate, int, int], Trained]


class Search:
    """The runs so far, and the time that they took."""

    def __init__(self, train: Train, budget: float, default: Candidate, tell: Callable[[str], None] = print) -> None:
        self.train = train
        self.budget = budget
        self.default = default
        self.tell = tell
        self.runs: dict[Candidate, Splits] = {}
        self.spent = 0.0
        self.made = 0
        self._run(default, (SEARCHED[0], 0), 1.0)

    def through(self, methods: Sequence[str], rate_of: Callable[[str], float]) -> list[Candidate]:
        """Search and judge: the default and the best two others, the chosen one first."""
        base_rate = rate_of(PLAIN)
        self._run(Candidate(PLAIN, base_rate), _SPLITS[0], UNTIL_FINALISTS)  # however little time there is
        [best] = self._halve([_at(PLAIN, base_rate, RATES)], 1, UNTIL_RATE)
        rate = best[0].rate if best else base_rate
        names = [method for method in dict.fromkeys(methods) if method != PLAIN]
        groups = [_at(method, rate_of(method) * rate / base_rate, RATES_OF_METHOD) for method in names]
        kept = [best, *self._halve(groups, 1, UNTIL_METHODS)]
        [finalists] = self._halve([[winner for group in kept for winner in group]], FINALISTS, UNTIL_FINALISTS, level=2)
        finalists = list(dict.fromkeys([self.default, *finalists]))
        all(self._run(pick, (part, repeat), 1.0) for repeat in range(REPEATS) for part in JUDGED for pick in finalists)
        return self.decided(finalists)

    def decided(self, finalists: Sequence[Candidate], *, without: int | None = None) -> list[Candidate]:
        """Ranked by the judged parts, the default first where the best is not one standard error better than it."""

        def judged(candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
            return [split for split in self.common(candidates) if split[0] in JUDGED and split[0] != without]

        tried = [candidate for candidate in finalists if candidate in self.runs and not self.failed(candidate)]
        if self.default not in tried:
            return self.ranked(finalists)
        ranked = self.ranked(tried, judged(tried))
        runs, default_runs = self.runs[ranked[0]], self.runs[self.default]
        # The two may have more in common than all have.
        differences = [runs[split].score - default_runs[split].score for split in judged([ranked[0], self.default])]
        # Three, so that two are left to judge the choice itself, without each part in turn.
        if len(differences) >= (LEAST if without is None else LEAST - 1):
            # The parts' training rows overlap (Nadeau and Bengio, Machine Learning 52, 2003).
            error = stdev(differences) * math.sqrt(1 / len(differences) + 1 / (PARTS - 1))
            if fmean(differences) > error:
                return ranked
        return [self.default, *(candidate for candidate in ranked if candidate != self.default)]

    def can_decide(self, finalists: Sequence[Candidate]) -> bool:
        """Whether another than the default has so many judged runs that it could be chosen."""
        pairs = (self.common([self.default, pick]) for pick in finalists if pick != self.default and pick in self.runs)
        return any(sum(part in JUDGED for part, _ in splits) >= LEAST for splits in pairs)

    def ranked(self, candidates: Sequence[Candidate], splits: Sequence[tuple[int, int]] = ()) -> list[Candidate]:
        """Those that were run, the best first, by their means over ``splits``, or over all that all of them have."""
        tried = [candidate for candidate in candidates if candidate in self.runs]
        common = splits or self.common(tried)
        return sorted(tried, key=lambda candidate: -self.mean(candidate, common))

    def common(self, candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
        """The splits that all of them have."""
        return sorted(set.intersection(*(set(self.runs[tried]) for tried in candidates))) if candidates else []

    def failed(self, candidate: Candidate) -> bool:
        """Whether one of its runs has no score."""
        return any(math.isnan(trained.score) for trained in self.runs[candidate].values())

    def mean(self, candidate: Candidate, splits: Sequence[tuple[int, int]]) -> float:
        """Mean score; a run without a score is below everything."""
        scores = [self.runs[candidate][split].score for split in splits]
        return -math.inf if any(map(math.isnan, scores)) else math.fsum(scores) / len(scores)

    def left_out(self, finalists: Sequence[Candidate]) -> dict[int, Candidate]:
        """For each judged part the candidate that is chosen without it.

        The part's rows have neither dropped a candidate nor chosen this one, so its score there is not the luck of the
        best of several.
        """
        parts = [part for part in JUDGED if (part, 0) in self.common(finalists)]
        return {part: self.decided(finalists, without=part)[0] for part in parts}

    def repeats(self, parts: Sequence[int], finalists: Sequence[Candidate]) -> list[int]:
        """The repeats in which all of these parts were judged."""
        common = self.common(finalists)
        return [repeat for repeat in range(REPEATS) if all((part, repeat) in common for part in parts)]

    def _halve(
        self, groups: Sequence[Sequence[Candidate]], keep: int, until: float, *, level: int = 1
    ) -> list[list[Candidate]]:
        """The best ``keep`` of each group; after ``until`` of the time those that look best so far."""
        kept = [list(group) for group in groups]
        while True:
            # One of each group in turn, so that the groups share the time until it runs out.
            queue = [candidate for column in zip_longest(*kept) for candidate in column if candidate is not None]
            complete = all(self._run(candidate, split, until) for candidate in queue for split in _SPLITS[:level])
            kept = [self.ranked(group) for group in kept]
            kept = [group[: max(keep, math.ceil(len(group) / 2)) if complete else keep] for group in kept]
            if max(map(len, kept), default=0) <= keep:
                return kept
            level *= 2

    def _run(self, candidate: Candidate, split: tuple[int, int], until: float) -> bool:
        """Make the run, if there is time for it and for the final training; return whether it is there."""
        if split in self.runs.get(candidate, ()):
            return True
        run_seconds = self.spent / self.made if self.made else 0.0
        final_seconds = run_seconds * PARTS / (PARTS - 1)  # on all parts
        if self.spent + run_seconds > until * (self.budget - final_seconds):
            return False
        trained = self.train(candidate, *split)
        self.runs.setdefault(candidate, {})[split] = trained
        self.spent += trained.seconds
        self.made += 1
        if trained.new:
            self.tell(self._line(candidate, split))
        return True

    def _line(self, candidate: Candidate, split: tuple[int, int]) -> str:
        """A run that has ended, the time left, and the best mean of those with the most runs: a mean of few is luck."""
        most = max(map(len, self.runs.values()))
        longest = [tried for tried, splits in self.runs.items() if len(splits) == most]
        best = max(longest, key=lambda tried: self.mean(tried, [*self.runs[tried]]))
        score, left = self.runs[candidate][split].score, in_words(max(0.0, self.budget - self.spent))
        return (
            f"[{self.made}, {left} left] {candidate}, part {split[0]}, repeat {split[1]}: {score:.3f}; best so far "
            f"{best}: {self.mean(best, [*self.runs[best]]):.3f} (mean of {most})"
        )


def _at(method: str, rate: float, factors: Sequence[float]) -> list[Candidate]:
    return [Candidate(method, float(f"{rate * factor:.1e}")) for factor in factors]
