"""A study's runs in a ledger -> its report: results under the study's names, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.study.grid import Planned, Study
from mixout.study.ledger import Contents
from mixout.study.report import write_report

# Stated by the results themselves, or where things lie on one machine.
_NOT_SHARED = ("task", "method", "data_dir", "original", "report_to", "seed", "init_seed", "data_seed", "mask_seed")


def report_on(
    study: Study,
    planned: Sequence[Planned],
    contents: Contents,
    folder: str | Path,
    *,
    commands: Sequence[str],
    title: str | None = None,
    baseline: str | None = None,
) -> Path:
    """Write the report on a study, as far as it has been run.

    Args:
        study: gives the title and the baseline, unless these are given.
        planned: its runs.
        contents: of the ledger.
        folder: for the report.
        commands: lines that make the results again.
        title: of the page.
        baseline: label of a method.

    Returns:
        The page.

    Raises:
        InputError: no run of the study has ended, or the baseline is unknown.
        OSError: the folder cannot be written to.
    """
    entries = (contents.entries.get(run.id) for run in planned)
    records = [entry.record for entry in entries if entry is not None and entry.record is not None]
    return write_report(
        contents.of(planned),
        folder,
        title=title or study.name,
        baseline=baseline or study.baseline,
        commands=commands,
        environment=environment(records),
        settings=shared([run.settings.resolved() for run in planned]),
    )


def shared(settings: Sequence[Settings]) -> dict[str, object]:
    """The settings that all runs have in common.

    Example:
        >>> from mixout.finetune.settings import Settings
        >>> common = shared([Settings(epochs=1), Settings(epochs=2)])
        >>> "epochs" in common, common["batch_size"]
        (False, 32)
    """
    values = [asdict(one) for one in settings]
    return {
        name: value
        for name, value in values[0].items()
        if name not in _NOT_SHARED and all(other[name] == value for other in values)
    }


def environment(records: Sequence[Record]) -> dict[str, str]:
    """On what runs ran: versions, hardware, sources; several values where runs differ."""
    found: dict[str, dict[str, None]] = {}

    def note(values: Mapping[str, object]) -> None:
        for name, value in values.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None

    for record in records:
        note({**record.source, "gradient": record.gradient, **record.versions, **record.hardware})
    return {name: "; ".join(values) for name, values in found.items()}
