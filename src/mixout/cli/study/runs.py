"""``mixout study run`` and ``retry``; and the study that a command line describes: a file, with changes by options."""

from __future__ import annotations

import argparse
import shlex
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from mixout._names import count
from mixout.cli.lines import Lines
from mixout.errors import InputError
from mixout.finetune.record import WriteError
from mixout.finetune.settings import Settings
from mixout.study.analysis.compare import Comparison, choose_baseline, compare
from mixout.study.analysis.restarts import reached
from mixout.study.declaration import read
from mixout.study.executors import Executor, LocalExecutor, PoolExecutor
from mixout.study.grid import Study, wanted, with_all_restarts
from mixout.study.identity import Inputs, Planned
from mixout.study.ledger import Contents, Ledger
from mixout.study.runner import Report, Tally, missing
from mixout.study.runner import run as run_missing

_TEXTS = [item.name for item in fields(Settings) if item.type in ("str", "str | None")]


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
        return guarded(lambda report: _ended(_until(study, args, ledger, executor, report), args), args.ledger)
    planned = study.runs()

    def work(report: Report) -> int:
        tally, runs = Tally(ran=0, failed=0), wanted(study, planned, ledger.read())
        while True:
            batch = list({run.key: run for run in reversed(runs)}.values())[::-1] if args.pilot else runs
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
    longest = replace(study, restarts=study.restarts * args.looks)
    all_runs = [replace(run, looks=args.looks) for run in longest.runs()]
    tally = Tally(ran=0, failed=0)
    for look in range(1, args.looks + 1):
        batch = [run for run in all_runs if run.restart < study.restarts * look]
        tally += run_missing(batch, ledger, executor, report=report, retries=args.retries, keep=args.keep)
        for _, entry in ledger.read().pairs(batch):
            if entry.run.looks < args.looks:
                ledger.count_looks(entry, args.looks)
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


def declared(args: argparse.Namespace) -> Study:
    """The study of ``FILE``, ``--restarts`` and ``--set``; InputError if it is not valid."""
    study = read(args.file)
    if args.restarts is not None:
        study = replace(study, restarts=args.restarts)
    return study.with_settings(dict(map(_setting, args.set)))


def asked(args: argparse.Namespace, contents: Contents) -> tuple[Study, list[Planned]]:
    """The study, with all restarts that the ledger holds unless ``--restarts`` is given, and its runs."""
    study, inputs = declared(args), Inputs()
    try:
        if args.restarts is None:
            study = with_all_restarts(study, contents, inputs)
        return study, study.runs(inputs)
    except InputError as error:
        absent = "no such" in str(error) or "exists" in str(error)
        if args.step not in ("retry", "prune") and contents.entries and absent:
            raise InputError(
                f"{error}. Without data and model: leave FILE out, for all that the ledger holds"
            ) from error
        raise


def check_no_file(args: argparse.Namespace) -> str | None:
    """Refuse options that change a study if no study is named; the metric that ``--set metric=NAME`` asks for."""
    changes = dict(map(_setting, args.set))
    metric = changes.pop("metric", None) if args.step in ("report", "export") else None
    if args.restarts is not None or changes:
        raise InputError(
            "expected --restarts and --set only with a study file, got none; name the FILE (a report without one takes "
            "--set metric=NAME alone)"
        )
    return None if metric is None else str(metric)


def options_of(args: argparse.Namespace, restarts: int | None) -> list[str]:
    """The options that name a study's ledger and runs."""
    restart_options = [] if restarts is None else ["--restarts", str(restarts)]
    return [*restart_options, "--ledger", args.ledger, *(["--set", *args.set] if args.set else [])]


def command(step: str, args: argparse.Namespace) -> str:
    """The command to call next, on the same study and ledger."""
    return shlex.join(["mixout", "study", step, args.file or "FILE", *options_of(args, args.restarts)])


def no_runs(args: argparse.Namespace) -> str:
    """That a ledger holds no runs, and if so that it does not exist."""
    return f"no runs in {args.ledger}" + ("" if Path(args.ledger).is_dir() else ", which does not exist")


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"expected --set NAME=VALUE, got {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # Text without quotation marks, which a shell would remove anyway.
        return name, value
    # A folder or file may have the name of a number or a date.
    return name, parsed if isinstance(parsed, str) or name not in _TEXTS else value
