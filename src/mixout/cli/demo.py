"""``mixout demo``: four methods on embedded text at rising learning rates, and the result in words."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixout._names import count
from mixout.cli.lines import LiveTable, aligned

if TYPE_CHECKING:
    from mixout.study.analysis.runs import Run
    from mixout.study.runner import Report

# The study; what it runs and how its settings were found: docs/demo.md.
STUDY = "demo"
RATE, BASELINE, MIXOUT, MASK = "learning_rate", "dropout(0.1)", "mixout(0.7)", "gradient_mask(0.7)"
# Methods within so many points are called alike: about twice the standard error of 2,400 dev sentences and two runs.
_ALIKE = 4.0
_NEXT = "Try it on your data: mixout finetune your.csv"
_WIDTH = 80

# Method -> learning rate -> mean score.
Means = Mapping[str, Mapping[str, float]]


def add(commands: Any) -> None:  # noqa: ANN401  argparse hides the class
    """Add the command to the parser's ``commands``."""
    parser = commands.add_parser(
        "demo",
        help="turn the learning rate up, with and without mixout: a table and a report in minutes, offline",
        description=(
            "Fine-tune MiniLM on 200 sentences of 'docstrings' (which library does this sentence come from?) with four "
            "methods at three learning rates. Prints a table and what it shows, and writes a report. Finished runs are "
            "kept: call it again to continue, or with more restarts."
        ),
    )
    parser.set_defaults(run=run)
    text = "folder for runs and report (default: %(default)s)"
    parser.add_argument("--output-dir", default="demo-output", metavar="DIR", help=text)
    text = "runs of each method at each learning rate (default: 1)"
    parser.add_argument("--restarts", type=int, metavar="N", help=text)
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the report in a browser")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, print what was seen, write the report."""
    from mixout.cli.study.runs import guarded
    from mixout.finetune.record import writing
    from mixout.study.declaration import read
    from mixout.study.executors import LocalExecutor, PoolExecutor
    from mixout.study.ledger import Ledger
    from mixout.study.reporting import report_on
    from mixout.study.runner import run as run_missing

    folder, study = Path(args.output_dir), read(STUDY)
    if args.restarts is not None:
        study = replace(study, restarts=args.restarts)
    executor = LocalExecutor() if args.workers == 1 else PoolExecutor(args.workers)
    planned = study.runs()
    settings = planned[0].settings
    print(
        f"{settings.model} on {study.tasks[0].label!r}: {settings.train_size} training sentences, "
        f"{len(study.methods)} methods, {len(study.factors[RATE])} learning rates, restarts each: "
        f"{study.restarts}. {count(len(planned), 'run')} in all.",
        file=sys.stderr,
    )
    ledger = Ledger(folder / "ledger")

    def work(report: Report) -> int:
        methods, rates = [method.label for method in study.methods], list(map(str, study.factors[RATE]))
        live = sys.stderr.isatty() and LiveTable(
            "learning rate", methods, rates, lambda: _means(ledger.read().of(planned))
        )
        with live or nullcontext(report) as shown:
            tally = run_missing(planned, ledger, executor, report=shown)
        if tally.elsewhere:
            print(f"{count(tally.elsewhere, 'run')} left to another process; call it again when that has ended")
            return 1
        contents = ledger.read()
        # As options of mixout study, with which the demo can also be enlarged and exported.
        options = f"{STUDY} --restarts {study.restarts} --ledger {shlex.quote(str(ledger.folder))}"
        with writing(folder):
            page = report_on(
                planned,
                contents,
                folder / "report",
                title=study.name,
                baseline=study.baseline,
                commands=[f"mixout study run {options} --workers {args.workers}", f"mixout study report {options}"],
            )
        means, different = summed_up(contents.of(planned))
        print(f"Mean accuracy of {count(study.restarts, 'run')} each:\n")
        print(f"{table(means)}\n")
        for text in (*seen(means, different), _NEXT):
            print(textwrap.fill(text, _WIDTH, break_on_hyphens=False))
        [figure] = page.parent.glob(f"figures/factor-*-{RATE}.png")
        print(f"\nfigure {figure}\nreport {page}")
        if args.open:
            webbrowser.open(page.resolve().as_uri())
        return 1 if tally.failed else 0

    return guarded(work, folder)


def summed_up(runs: Sequence[Run]) -> tuple[Means, Means]:
    """Mean scores, and how often two restarts answer differently; the latter is empty for one restart."""
    from mixout.study.analysis.cells import instability

    different: dict[str, dict[str, float]] = {}
    for cell in instability(runs):
        different.setdefault(cell.method, {})[cell.factors[RATE]] = cell.disagreement
    return _means(runs), different


def _means(runs: Sequence[Run]) -> Means:
    from mixout.study.analysis.cells import summarise

    means: dict[str, dict[str, float]] = {}
    for cell in summarise(runs) if runs else ():
        # A run without a score has entered as chance.
        means.setdefault(cell.method, {})[cell.factors[RATE]] = 0.0 if cell.mean is None else cell.mean
    return means


def table(means: Means) -> str:
    """A row for each method, a column for each learning rate.

    Example:
        >>> print(table({"plain": {"0.0005": 0.53, "0.001": 0.5}}))
        learning rate  0.0005  0.001
        plain           0.530  0.500
    """
    rows = [[name, *(f"{mean:.3f}" for mean in of_rate.values())] for name, of_rate in means.items()]
    return aligned([["learning rate", *next(iter(means.values()))], *rows], left=1)


def seen(means: Means, different: Means) -> list[str]:
    """What these runs showed, in plain sentences.

    Example:
        >>> means = {
        ...     "dropout(0.1)": {"0.0005": 0.53, "0.0014": 0.33},
        ...     "mixout(0.7)": {"0.0005": 0.54, "0.0014": 0.5},
        ...     "gradient_mask(0.7)": {"0.0005": 0.55, "0.0014": 0.51},
        ... }
        >>> for sentence in seen(means, {}):
        ...     print(sentence)
        At the learning rate 0.0005 all methods score alike, within 2.0 points.
        At 0.0014 dropout(0.1) loses 20.0 points, mixout(0.7) 4.0, gradient_mask(0.7) 4.0. \
The mask of mixout alone, gradient_mask(0.7), scores 1.0 points more than mixout(0.7) there.
        You could also just lower the learning rate: the best mean of all is 2.0 points above dropout(0.1) at 0.0005. \
These methods are insurance against a learning rate that is too high, not accuracy.
    """
    rates = list(means[BASELINE])
    best = max(rates, key=lambda rate: sum(row[rate] for row in means.values()))
    top = max(rates, key=float)
    at_best = [row[best] for row in means.values()]
    apart = 100 * (max(at_best) - min(at_best))
    alike = f"score alike, within {apart:.1f} points" if apart <= _ALIKE else f"lie up to {apart:.1f} points apart"
    first = f"At the learning rate {best} all methods {alike}."
    if best == top:
        return [first, f"No learning rate was too high here: the highest, {top}, is the best one."]
    losses = {name: 100 * (row[best] - row[top]) for name, row in means.items()}
    loss_text = ", ".join(f"{name} {_loss(points, named=not i)}" for i, (name, points) in enumerate(losses.items()))
    mask = 100 * (means[MASK][top] - means[MIXOUT][top])
    second = (
        f"At {top} {loss_text}. The mask of mixout alone, {MASK}, scores {abs(mask):.1f} points "
        f"{'more' if mask >= 0 else 'less'} than {MIXOUT} there."
    )
    # Not known of a method of which fewer than two runs have predictions.
    known = [(name, different[name][top]) for name in (BASELINE, MIXOUT) if top in different.get(name, ())]
    if known:
        disagree = ", ".join(f"{100 * share:.0f} % with {name}" for name, share in known)
        second += f" Share of the sentences that two restarts answer differently: {disagree}."
    lead = 100 * (max(max(row.values()) for row in means.values()) - means[BASELINE][best])
    third = f"the best mean of all is {lead:.1f} points above {BASELINE} at {best}."
    if lead <= _ALIKE:
        third = (
            f"You could also just lower the learning rate: {third} These methods are insurance against a learning "
            "rate that is too high, not accuracy."
        )
    else:
        third = f"Here a lower learning rate does not replace them: {third}"
    return [first, second, third]


def _loss(points: float, *, named: bool) -> str:
    if points < 0:
        return f"gains {-points:.1f}{' points' if named else ''}"
    return f"loses {points:.1f} points" if named else f"{points:.1f}"
