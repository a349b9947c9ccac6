"""Several methods, several restarts: run what is missing, one run after the other.

Restart k uses the same seeds for every method, so differences are paired. Methods take turns within a restart: after
each one there is a fair table, and whatever slows the machine down slows all methods. A finished run is its
``record.json`` and is never repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mixout.errors import InputError
from mixout.finetune.folder import unfinished
from mixout.finetune.record import RECORD_NAME, Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

_SECONDS_BETWEEN_LINES = 5.0


def run(
    base: Settings,
    methods: Sequence[str],
    restarts: int,
    folder: Path,
    *,
    report: Callable[[str], None],
) -> list[Record]:
    """Fine-tune ``base`` with each method and with seeds 0 to ``restarts - 1``.

    Args:
        base: settings that all runs share; its method and seed are replaced.
        methods: texts such as ``"mixout(0.9)"``.
        restarts: number of runs of each method, at least 1.
        folder: holds one folder a run.
        report: called with one line of progress after each run, and with one every few seconds within it.

    Returns:
        One record a run, restart by restart.

    Raises:
        InputError: the settings cannot be used, or a run in ``folder`` has other settings.
        WriteError: a run's files could not be written; call it again to continue.
    """
    if restarts < 1:
        raise InputError(f"expected restarts >= 1, got {restarts}")
    # All settings are built, and so checked, before anything runs.
    grid = [replace(base, method=method, seed=seed) for seed in range(restarts) for method in methods]
    records: list[Record] = []
    began, ran = time.perf_counter(), 0
    for number, settings in enumerate(grid, start=1):
        place = folder / f"{settings.method}-{settings.seed}"
        record = _finished(place, settings)
        if record is None:
            record = finetune(
                settings, place, resume=unfinished(place), keep_model=False, report=_within(settings, report)
            )
            ran += 1
        records.append(record)
        left = (time.perf_counter() - began) / ran * (len(grid) - number) if ran else 0.0
        report(
            f"[{number}/{len(grid)}] {settings.method}, restart {settings.seed}: {record.metric} {record.score:.3f} "
            f"({record.seconds:.0f} s of training), about {left:.0f} s left"
        )
    return records


def _within(settings: Settings, report: Callable[[str], None]) -> Callable[[str], None]:
    """Pass on where a run stands, but not every line: short runs say nothing, long ones show that they are alive."""
    told = time.perf_counter()

    def passing(line: str) -> None:
        nonlocal told
        now = time.perf_counter()
        if line.lstrip().startswith("step ") and now - told >= _SECONDS_BETWEEN_LINES:
            told = now
            report(f"  {settings.method}, restart {settings.seed}: {line.strip()}")

    return passing


def _finished(place: Path, settings: Settings) -> Record | None:
    if not (place / RECORD_NAME).is_file():
        return None
    record = Record.read(place)
    if record.digest != settings.digest():
        raise InputError(f"expected {place} to hold a run with these settings, got another; choose another folder")
    return record
