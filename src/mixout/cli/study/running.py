"""``mixout study run`` and ``retry``: what is missing, or what failed, is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mixout.cli.lines import Lines
from mixout.cli.study.declared import declared, known
from mixout.errors import InputError
from mixout.finetune.disk import WriteError
from mixout.study.analysis.sequential import Look, until_width
from mixout.study.executors import Executor
from mixout.study.executors.local import LocalExecutor
from mixout.study.grid import Planned, Study
from mixout.study.ledger import Ledger
from mixout.study.progress import Report
from mixout.study.runner import Tally
from mixout.study.runner import run as run_missing


def run(args: argparse.Namespace) -> int:
    """Run what is missing."""
    study, executor, ledger = declared(args), _executor(args), Ledger(args.ledger)
    done = known(args)
    if args.until_width is not None:
        if args.pilot:
            raise InputError("expected either --pilot or --until-width, got both; run the pilot first")
        if args.known:
            raise InputError("expected either --known or --until-width, got both: it looks at the ledger's runs alone")
        return guarded(lambda report: _ended(_until(study, args, ledger, executor, report), args), args.ledger)
    runs = [run for run in study.runs() if run.id not in done]
    if args.pilot:
        first: dict[object, Planned] = {}
        for one in runs:
            first.setdefault(one.cell, one)
        runs = list(first.values())
    return guarded(
        lambda report: _ended(run_missing(runs, ledger, executor, report=report, retries=args.retries), args),
        args.ledger,
    )


def retry(args: argparse.Namespace) -> int:
    """Run again what failed."""
    runs, executor, ledger = declared(args).runs(), _executor(args), Ledger(args.ledger)
    return guarded(
        lambda report: _ended(
            run_missing(runs, ledger, executor, report=report, retries=args.retries, again=True), args
        ),
        args.ledger,
    )


def guarded(work: Callable[[Report], int], place: str | Path) -> int:
    """Do it with lines of progress, and say what to do where it does not come to its end.

    Args:
        work: is given where lines go, and returns the exit status.
        place: where finished runs are kept.
    """
    try:
        with Lines() as lines:
            return work(lines)
    except KeyboardInterrupt:
        print(f"mixout: interrupted; finished runs are kept in {place}: call it again to continue", file=sys.stderr)
        return 130
    except WriteError as error:
        print(
            f"mixout: error: {error}; finished runs are kept: make room, then call it again to continue",
            file=sys.stderr,
        )
        return 1


def _ended(tally: Tally, args: argparse.Namespace) -> int:
    """Say what was done."""
    print(f"{tally.ran} runs in this call, {tally.failed} of them failed; ledger {args.ledger}")
    if tally.failed:
        print(f"why they failed: mixout study status {args.file} --ledger {args.ledger}", file=sys.stderr)
    return 1 if tally.failed else 0


def _until(study: Study, args: argparse.Namespace, ledger: Ledger, executor: Executor, report: Report) -> Tally:
    """Batches of as many restarts as the study has, until all differences are known well enough."""
    if not args.until_width > 0:
        raise InputError(f"expected a width > 0 in points, got {args.until_width}")
    if args.looks < 1:
        raise InputError(f"expected looks >= 1, got {args.looks}")
    if len(study.methods) < 2:
        raise InputError("expected two methods or more with --until-width, got one: there is no difference to know")
    # All at once: whatever is wrong with a later batch shows now.
    whole = replace(study, restarts=study.restarts * args.looks).runs()
    ran = failed = 0
    for look in range(1, args.looks + 1):
        batch = [run for run in whole if run.restart < study.restarts * look]
        tally = run_missing(batch, ledger, executor, report=report, retries=args.retries)
        ran, failed = ran + tally.ran, failed + tally.failed
        found = until_width(
            ledger.read().of(batch), args.until_width, look=look, looks=args.looks, baseline=study.baseline
        )
        for one in found:
            report(_said(one))
        if all(one.stop for one in found):
            break
    return Tally(ran=ran, failed=failed)


def _said(at: Look) -> str:
    where = "".join(f", {name} {value}" for name, value in at.factors.items())
    head = f"look {at.look} of {at.looks}: {at.method} against {at.baseline} on {at.task}{where}, {at.n} restarts"
    if at.low is None or at.high is None:
        return f"{head}: {at.difference:+.1f} points, no interval yet"
    needed = "" if at.reached or at.needed is None else f", probably {at.needed} restarts needed"
    reached = "narrow enough" if at.reached else "not narrow enough"
    return (
        f"{head}: {at.difference:+.1f} points, {100 * at.level:.1f} % interval {at.low:+.1f} to {at.high:+.1f}, "
        f"{reached}{needed}"
    )


def _executor(args: argparse.Namespace) -> Executor:
    several = args.workers not in (None, 1) or args.ray_address is not None
    if (args.executor or ("ray" if several else "local")) == "local":
        for name in ("ray_address", "cpus_per_run", "gpus_per_run"):
            if getattr(args, name) is not None:
                raise InputError(f"expected --{name.replace('_', '-')} only with --executor ray; add it")
        if args.workers not in (None, 1):
            raise InputError(f"expected one worker with --executor local, got {args.workers}; use --executor ray")
        return LocalExecutor()
    # Not before: who works locally does not need Ray.
    from mixout.study.executors.ray import RayExecutor

    return RayExecutor(address=args.ray_address, workers=args.workers, cpus=args.cpus_per_run, gpus=args.gpus_per_run)
