"""The grid of a study, tasks x methods x factors x restarts; which of its runs are needed, and how long they take.

Settings of a method override those of a task, and these override the shared ones. Restart k uses seed k for every
method, so that differences are paired. Nothing is run here.

With ``rate = "best"`` the first ``search`` restarts run at every value of the factor ``learning_rate``. For each method
on each task the rate with the highest mean is its best, and the other restarts run at that rate only. A comparison on
the restarts that chose the rate would favour methods that were lucky at one of many rates.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from mixout._names import nearest
from mixout.errors import InputError
from mixout.finetune.settings import AUTO, Settings
from mixout.study.analysis.runs import CellKey, Restart, Run, grouped, text_of
from mixout.study.identity import WATCHED, Inputs, Planned
from mixout.study.ledger import Contents

_NAMES = tuple(item.name for item in fields(Settings))
RATE = "learning_rate"
_PLACED = {"task": "list it under [[task]]", "method": "list it under [[method]]", "seed": "restart k has seed k"}
_PLACED |= {"restarts": "write it under [study], or --restarts N", "baseline": "write it under [study]"}
# A factor changes the result, and gets a column of that name beside those of the score.
_NO_FACTORS = (*_PLACED, *WATCHED)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One task or one method of a study: its label, and its own settings."""

    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Tasks x methods x factors x restarts.

    Raises:
        InputError: a name is unknown, or a value is not valid.
    """

    name: str
    restarts: int  # runs of each cell, at least 1
    tasks: Sequence[Axis]  # at least one, with labels that differ
    methods: Sequence[Axis]  # at least one, with labels that differ
    title: str | None = None  # of the report; None for the name
    baseline: str | None = None  # label of a method; None for none
    settings: Mapping[str, Any] = field(default_factory=dict)  # shared by all runs
    factors: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # setting -> its values
    # restart k trains on subset k of ``train_size`` examples, so that intervals include the choice of examples
    own_subsets: bool = False
    # ``"best"``: each method at its own best value of the factor ``learning_rate``; None: at each of them
    rate: str | None = None
    search: int = 3  # the first restarts, which choose the best rate and are not compared

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"expected a name of the study, got {self.name!r}")
        if self.title is not None and not isinstance(self.title, str):
            raise InputError(f"expected title as text, got {self.title!r}")
        if type(self.restarts) is not int or self.restarts < 1:
            raise InputError(f"expected restarts as a whole number >= 1, got {self.restarts!r}")
        if not isinstance(self.own_subsets, bool):
            raise InputError(f"expected own_subsets as true or false, got {self.own_subsets!r}")
        self._check_search()
        check_settings("[settings]", self.settings)
        for kind, axes in (("task", self.tasks), ("method", self.methods)):
            _check_axes(kind, axes)
        _check_factors(self.factors, [*self.tasks, *self.methods])
        labels = [axis.label for axis in self.methods]
        if self.baseline is not None and self.baseline not in labels:
            # A label that was not given by the user ends with the method's own settings.
            hints = [f"; did you mean {label!r}?" for label in labels if label.startswith(f"{self.baseline},")]
            raise InputError(
                f"expected baseline as the label of a method ({', '.join(map(repr, labels))}), "
                f"got {self.baseline!r}{(hints or [nearest(str(self.baseline), labels)])[0]}"
            )

    def _check_search(self) -> None:
        if self.rate is None:
            return
        if self.rate != "best":
            raise InputError(f"expected rate as 'best' or left out, got {self.rate!r}")
        if len(self.factors.get(RATE, ())) < 2:
            raise InputError(f"expected two rates or more with rate = 'best'; list them under [factors] as {RATE}")
        if type(self.search) is not int or not 1 <= self.search < self.restarts:
            raise InputError(
                f"expected search as a whole number from 1 to {self.restarts - 1}, below the {self.restarts} restarts, "
                f"got {self.search!r}"
            )

    def with_settings(self, changes: Mapping[str, Any]) -> Study:
        """The study with other shared settings; a task's or method's own settings stay.

        InputError for one that no run would have.
        """
        for name in changes:
            own = [axis.settings for axis in self.methods], [axis.settings for axis in self.tasks]
            if name in self.factors or any(all(name in settings for settings in axes) for axes in own):
                source = "a factor" if name in self.factors else "which its tasks or methods name themselves"
                raise InputError(
                    f"expected a setting that the study leaves open, got {name!r}, {source}; edit the file"
                )
        return replace(self, settings={**self.settings, **changes})

    def runs(self, inputs: Inputs | None = None, *, first: int = 0) -> list[Planned]:
        """All runs: task by task, to read data and weights once, and within a task restart by restart from ``first``.

        Raises:
            InputError: a value is not valid, data or models are missing, or two cells are the same.
            MissingExtraError: the embedded model or task is not installed.
        """
        input_cache = inputs or Inputs()
        grid = [dict(zip(self.factors, values, strict=True)) for values in itertools.product(*self.factors.values())]
        runs: dict[str, Planned] = {}
        restarts = range(first, self.restarts)
        for task, restart, factors, method in itertools.product(self.tasks, restarts, grid, self.methods):
            values = {**self.settings, **task.settings, **factors, **method.settings, "seed": restart}
            texts = {name: text_of(value) for name, value in factors.items()}
            coordinates = Restart(task=task.label, method=method.label, factors=texts, restart=restart)
            try:
                if self.own_subsets:
                    _check_own_subset(values)
                    values["subset_seed"] = restart
                # Runs of other restarts differ in their seeds only.
                run = input_cache.planned(coordinates, Settings(**values), check=restart == first)
            except InputError as error:
                where = ", ".join([task.label, method.label, *(f"{name} {text}" for name, text in texts.items())])
                raise InputError(f"{where}: {error}") from error
            if run.id in runs:
                named = {axis.label: axis.settings.get("method", AUTO) for axis in self.methods}
                chosen = AUTO in (named[method.label], named[runs[run.id].method])
                auto = f" ({AUTO!r} chooses {run.settings.method!r} for these rows)" if chosen else ""
                raise InputError(
                    f"expected every cell once, got the same run as {str(runs[run.id])!r} and as {str(run)!r}{auto}; "
                    "remove one of them; to judge the same runs by another score, report again with --set metric=NAME"
                )
            runs[run.id] = run
        return list(runs.values())


def _check_own_subset(values: Mapping[str, Any]) -> None:
    if values.get("train_size") is None:
        raise InputError("expected train_size with own_subsets, got none; without it every restart has all examples")
    if "subset_seed" in values:
        raise InputError(
            f"expected no subset_seed with own_subsets, by which restart k has subset k, got "
            f"{values['subset_seed']!r}; remove one of them"
        )


def check_settings(where: str, table: Mapping[str, Any], *, also: Sequence[str] = ()) -> None:
    """Refuse names that are not settings, or belong elsewhere in a study; the InputError begins with ``where``."""
    for name in table:
        if name in _PLACED:
            raise InputError(f"{where}: expected settings without {name!r}; {_PLACED[name]}")
        if name not in _NAMES:
            raise InputError(f"{where}: expected a setting, got {name!r}{nearest(name, [*_NAMES, *also])}")


def _check_axes(kind: str, axes: Sequence[Axis]) -> None:
    if not axes:
        raise InputError(f"expected at least one {kind}, got none; add [[{kind}]]")
    seen: set[str] = set()
    for axis in axes:
        if not isinstance(axis.label, str) or not axis.label.strip():
            raise InputError(f"expected the label of a {kind} as text, got {axis.label!r}")
        if axis.label in seen:
            raise InputError(f"expected every {kind} under its own label, got {axis.label!r} twice; give it a label")
        seen.add(axis.label)


def _check_factors(factors: Mapping[str, Sequence[Any]], axes: Sequence[Axis]) -> None:
    allowed = [name for name in _NAMES if name not in _NO_FACTORS]
    for name, values in factors.items():
        if name not in allowed:
            raise InputError(f"expected a factor among {', '.join(allowed)}, got {name!r}{nearest(name, allowed)}")
        if not isinstance(values, (list, tuple)) or not values:
            raise InputError(f"expected the values of the factor {name} as a list, got {values!r}")
        for axis in axes:
            if name in axis.settings:
                raise InputError(
                    f"expected {name} either as a factor or as a setting of {axis.label!r}, got both; remove one"
                )


def with_all_restarts(study: Study, contents: Contents, inputs: Inputs | None = None) -> Study:
    """The study with as many restarts as the ledger holds, if these are more than in its file."""
    last = max((entry.run.restart for entry in contents.entries.values()), default=-1)
    if last < study.restarts:
        return study
    # Also restarts after a missing one, for example if its copy was interrupted.
    held = contents.pairs(replace(study, restarts=last + 1).runs(inputs, first=study.restarts))
    return replace(study, restarts=max([study.restarts, *(run.restart + 1 for run, _ in held)]))


def wanted(study: Study, planned: Sequence[Planned], contents: Contents) -> list[Planned]:
    """The runs that a study needs now: if it searches for the best rate, the other restarts once that is known."""
    if study.rate is None:
        return list(planned)
    best = best_rates(study, planned, contents)
    return [
        run for run in planned if run.restart < study.search or best.get(run.key.without(RATE)) == run.factors[RATE]
    ]


def best_rates(study: Study, planned: Sequence[Planned], contents: Contents) -> dict[CellKey, str]:
    """The best rate of each method on each task whose search has ended; the keys are without the rate."""

    def score(run: Planned) -> float:
        if (entry := contents.entry(run)) is None:
            return math.nan
        counted = entry.seen_as(run).counted
        # A failed run must not keep the search open: where chance is unknown it counts as the worst.
        return -math.inf if math.isnan(counted) else counted

    best = {}
    search = (run for run in planned if run.restart < study.search)
    for key, runs in grouped(search, lambda run: run.key.without(RATE)).items():
        rates = grouped(runs, lambda run: run.factors[RATE])
        means = {rate: float(np.mean([score(run) for run in members])) for rate, members in rates.items()}
        if not any(map(math.isnan, means.values())):
            best[key] = max(means, key=means.__getitem__)
    return best


def judged(study: Study, planned: Sequence[Planned], contents: Contents) -> tuple[list[Run], list[str]]:
    """The runs by which methods are compared, without the rate among their factors; and notes on the chosen rates."""
    if study.rate is None:
        return contents.of(planned), []
    best = best_rates(study, planned, contents)
    values = [str(value) for value in dict.fromkeys(run.factors[RATE] for run in planned)]
    notes = []
    for (task, method, factors), rate in best.items():
        factor_text = "".join(f", {name} {value}" for name, value in factors)
        ends = (min(values, key=float), max(values, key=float))
        edge = ", at the end of the list: a better one may lie beyond" if rate in ends else ""
        notes.append(
            f"{method} on {task}{factor_text}: learning rate {rate}, the best of {len(values)} over restarts 0 to "
            f"{study.search - 1}{edge}; it is judged on the others."
        )
    chosen = [run for run in wanted(study, planned, contents) if run.restart >= study.search]
    return [replace(run, factors=run.key.without(RATE).named["factors"]) for run in contents.of(chosen)], notes


class Clock:
    """Expected time of runs, from runs that have ended: those of the same cell, else of the same task, else all.

    Runs of one task may train on different numbers of examples for different numbers of epochs, so the time is taken to
    grow with the examples seen in training. It is an estimate: loading and evaluation do not grow with them.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[object, float] = defaultdict(float)
        self._work: defaultdict[object, float] = defaultdict(float)

    @classmethod
    def of(cls, planned: Sequence[Planned], contents: Contents) -> Clock:
        """A clock with the times of those of these runs that a ledger holds."""
        clock = cls()
        for run, entry in contents.pairs(planned):
            if entry.wall is not None:
                clock.add(run, entry.wall)
        return clock

    def add(self, run: Planned, seconds: float) -> None:
        """One more run has ended."""
        for key, work in _sizes(run).items():
            self._seconds[key] += seconds
            self._work[key] += work

    def expect(self, runs: Sequence[Planned]) -> float | None:
        """Seconds that these runs take one after the other; None where no run has ended yet."""
        if not self._work:
            return None
        closest = (next((key, work) for key, work in _sizes(run).items() if key in self._work) for run in runs)
        return math.fsum(work * self._seconds[key] / self._work[key] for key, work in closest)


def _sizes(run: Planned) -> dict[object, float]:
    """The work of a run in the unit of each group that contains it, the closest group first."""
    # The number of examples of a whole task is unknown here: its runs are compared only with each other.
    epochs, size = run.settings.epochs, run.settings.train_size
    by_examples: dict[object, float] = {("examples",): epochs * size} if size else {}
    return {run.key: epochs, (run.task, size is None): epochs * (size or 1), **by_examples, None: 1.0}
