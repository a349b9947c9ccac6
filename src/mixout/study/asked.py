"""Which runs a study asks for, by what its ledger holds.

With ``rate = "best"`` each method runs at its own best learning rate, chosen on other restarts than it is judged on:
the first ``search`` restarts run at every rate of the factor ``learning_rate``. Of each method on each task the rate
with the highest mean is its best, and only that one is run with the other restarts. Judging on the restarts that chose
the rate would favour whoever has more luck among more rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mixout.study.analysis.runs import Run
from mixout.study.grid import RATE, Planned, Study
from mixout.study.identity import Inputs
from mixout.study.ledger import Contents

_Group = tuple[str, str, tuple[tuple[str, str], ...]]


def with_all_restarts(study: Study, contents: Contents, inputs: Inputs | None = None) -> Study:
    """The study with as many restarts as the ledger holds, where these are more than its file says."""
    inputs = inputs or Inputs()
    while any(
        contents.entry(run) is not None
        for run in replace(study, restarts=study.restarts + 1).runs(inputs, first=study.restarts)
    ):
        study = replace(study, restarts=study.restarts + 1)
    return study


def wanted(study: Study, planned: Sequence[Planned], contents: Contents) -> list[Planned]:
    """The runs that a study asks for now: of a search for the best rate the others only once it is known."""
    if study.rate is None:
        return list(planned)
    best = best_rates(study, planned, contents)
    return [run for run in planned if run.restart < study.search or best.get(_group(run)) == run.factors[RATE]]


def best_rates(study: Study, planned: Sequence[Planned], contents: Contents) -> dict[_Group, str]:
    """The best rate of each method on each task whose search has ended."""
    scores: dict[_Group, dict[str, list[float]]] = {}
    for run in planned:
        if run.restart < study.search:
            entry = contents.entry(run)
            score = np.nan if entry is None else entry.seen_as(run).counted
            # A run that failed for good ends its search: without a known chance it counts as the worst.
            lost = entry is not None and np.isnan(score)
            scores.setdefault(_group(run), {}).setdefault(run.factors[RATE], []).append(-np.inf if lost else score)
    means = {group: {rate: float(np.mean(s)) for rate, s in rates.items()} for group, rates in scores.items()}
    known = {group: rates for group, rates in means.items() if not np.isnan([*rates.values()]).any()}
    return {group: max(rates, key=rates.__getitem__) for group, rates in known.items()}


def judged(study: Study, planned: Sequence[Planned], contents: Contents) -> tuple[list[Run], list[str]]:
    """The runs by which methods are compared, without the rate among their factors; and which rates those are."""
    if study.rate is None:
        return contents.of(planned), []
    best = best_rates(study, planned, contents)
    values = [str(value) for value in dict.fromkeys(run.factors[RATE] for run in planned)]
    notes = []
    for (task, method, factors), rate in best.items():
        where = "".join(f", {name} {value}" for name, value in factors)
        edge = ", at the end of the list: a better one may lie beyond" if rate in (values[0], values[-1]) else ""
        notes.append(
            f"{method} on {task}{where}: learning rate {rate}, the best of {len(values)} over restarts 0 to "
            f"{study.search - 1}{edge}; it is judged on the others."
        )
    chosen = [run for run in planned if run.restart >= study.search and best.get(_group(run)) == run.factors[RATE]]
    runs = [
        replace(run, factors={name: value for name, value in run.factors.items() if name != RATE})
        for run in contents.of(chosen)
    ]
    return runs, notes


def _group(run: Planned) -> _Group:
    return run.task, run.method, tuple(pair for pair in run.key.factors if pair[0] != RATE)
