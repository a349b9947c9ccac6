"""``mixout study run`` and ``retry``: run what is missing, or what failed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mixout._names import count
from mixout.cli.lines import Lines
from mixout.cli.study.declared import asked, command, declared, known
from mixout.errors import InputError
from mixout.finetune.record import WriteError
from mixout.study.analysis.compare import Comparison, choose_baseline, compare
from mixout.study.analysis.restarts import reached
from mixout.study.executors import Executor, LocalExecutor, PoolExecutor
from mixout.study.grid import Study, wanted
from mixout.study.identity import Planned
from mixout.study.ledger import Ledger
from mixout.study.progress import Report
from mixout.study.runner import Tally, missing
from mixout.study.runner import run as run_missing


def run(args: argparse.Namespace) -> int:
    """Run what is missing."""
    study, executor, ledger = declared(args), _executor(args), Ledger(args.ledger)
    if args.until_width is not None:
        if args.pilot:
            raise InputError("expected either --pilot or --until-width, got both; run the pilot first")
        if study.rate is not None:
            raise InputError(
                "expected no --until-width in a study with rate = 'best', whose first restarts are its search"
            )
        if args.known:
            raise InputError("expected either --known or --until-width, got both: it looks at the ledger's runs alone")
        return guarded(lambda report: _ended(_until(study, args, ledger, executor, report), args), args.ledger)
    if study.rate is not None and args.known:
        raise InputError("expected no --known in a study with rate = 'best', which looks at the ledger's runs alone")
    planned = study.runs()
    done = known(args, planned)

    def work(report: Report) -> int:
        tally, runs = Tally(ran=0, failed=0), wanted(study, planned, ledger.read())
        while True:
            batch = [run for run in runs if run.id not in done]
            if args.pilot:
                batch = list({run.key: run for run in reversed(batch)}.values())[::-1]
            tally += run_missing(batch, ledger, executor, report=report, retries=args.retries, keep=args.keep)
            next_runs = wanted(study, planned, ledger.read())
            if args.pilot or len(next_runs) == len(runs):
                return _ended(tally, args, batch)
            runs = next_runs  # the search has ended

    return guarded(work, args.ledger)


def retry(args: argparse.Namespace) -> int:
    """Run again what failed."""
    executor, ledger = _executor(args), Ledger(args.ledger)
    runs = asked(args, ledger.read())[1]
    return guarded(
        lambda report: _ended(
            run_missing(runs, ledger, executor, report=report, retries=args.retries, keep=args.keep, again=True), args
        ),
        args.ledger,
    )


def guarded(work: Callable[[Report], int], place: str | Path) -> int:
    """Do the work with lines of progress. If it is interrupted or a disk is full, say how to continue."""
    try:
        with Lines() as lines:
            return work(lines)
    except KeyboardInterrupt:
        print(f"mixout: interrupted; finished runs are kept in {place}: call it again to continue", file=sys.stderr)
        return 130
    except WriteError as error:
        kept = "finished runs are kept: make room, then call it again to continue"
        print(f"mixout: error: {error}; {kept}", file=sys.stderr)
        return 1


def _ended(tally: Tally, args: argparse.Namespace, runs: Sequence[Planned] = ()) -> int:
    """Print what was done; 1 if a run of the study has failed, now or before."""
    print(f"{count(tally.ran, 'run')} in this call, {tally.failed} of them failed; ledger {args.ledger}")
    if tally.elsewhere:
        print(f"{count(tally.elsewhere, 'run')} left to another process; call it again when that has ended")
    failed = max(tally.failed, len(missing(runs, Ledger(args.ledger).read(), again=True)))
    if failed:
        print(f"{failed} failed; why: {command('status', args)}; again: {command('retry', args)}", file=sys.stderr)
    return 1 if failed else 0


def _until(study: Study, args: argparse.Namespace, ledger: Ledger, executor: Executor, report: Report) -> Tally:
    """Run batches of as many restarts as the study has, until all intervals of differences are narrow enough."""
    if not args.until_width > 0:
        raise InputError(f"expected a width > 0 in points, got {args.until_width}")
    if args.looks < 1:
        raise InputError(f"expected looks >= 1, got {args.looks}")
    if len(study.methods) < 2:
        raise InputError("expected two methods or more with --until-width, got one: there is no difference to know")
    # All batches at once, so that errors in a later one are found now. Each run stores the planned number of looks.
    all_runs = [replace(run, looks=args.looks) for run in replace(study, restarts=study.restarts * args.looks).runs()]
    tally = Tally(ran=0, failed=0)
    for look in range(1, args.looks + 1):
        batch = [run for run in all_runs if run.restart < study.restarts * look]
        tally += run_missing(batch, ledger, executor, report=report, retries=args.retries, keep=args.keep)
        runs = ledger.read().of(batch)
        comparisons = compare(runs, study.baseline, looks=args.looks)
        for c in comparisons:
            report(_said(c, look, reached(c, args.until_width)))
        baseline = choose_baseline([run.method for run in runs], study.baseline)
        uncompared = {run.key for run in runs if run.method != baseline} - {c.key for c in comparisons}
        for key in sorted(uncompared):
            report(f"look {look} of {args.looks}: {key} was not compared, for want of scores")
        if not uncompared and all(reached(c, args.until_width) for c in comparisons):
            break
    return tally


def _said(c: Comparison, look: int, enough: bool | None) -> str:
    restarts = count(min(c.n, c.n_baseline), "restart")
    head = f"look {look} of {c.looks}: {c.label} against {c.baseline} on {c.task}, {restarts}"
    failed = f", {c.failed} and {c.baseline_failed} failed; of the others" if c.some_failed else ""
    if c.level_difference is None or c.low is None or c.high is None:
        return f"{head}: {c.difference * c.points:+.1f} points{failed}, no interval yet"
    ends = f"{c.low * c.points:+.1f} to {c.high * c.points:+.1f}"
    verdict = "too few restarts to believe it" if enough is None else "narrow enough" if enough else "not narrow enough"
    points = f"{c.level_difference * c.points:+.1f} points"
    return f"{head}{failed}: {points}, {100 * c.confidence:.1f} % interval {ends}, {verdict}"


def _executor(args: argparse.Namespace) -> Executor:
    # Imported here: without --ray-address Ray need not be installed.
    if args.ray_address is not None:
        from mixout.study.ray import RayExecutor

        return RayExecutor(args.ray_address, workers=args.workers, cpus=args.cpus_per_run, gpus=args.gpus_per_run)
    for name in ("cpus_per_run", "gpus_per_run"):
        if getattr(args, name) is not None:
            raise InputError(f"expected --{name.replace('_', '-')} only with --ray-address; add it")
    return LocalExecutor() if args.workers in (None, 1) else PoolExecutor(args.workers)
