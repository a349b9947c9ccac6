"""The folder of one run: whether it may be used, what it holds, and from where the run can go on.

::

    out/
      checkpoints/          while the run lasts
        run.json            what is being run, and on what
        checkpoint-120/     the trainer's own; complete once it holds the file "complete", which is written last
      model.safetensors, config.json, tokenizer.json, ...    written at the end
      README.md             the model card
      record.json           written last: now the run is finished

It neither trains nor loads models.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mixout.errors import InputError
from mixout.finetune import environment
from mixout.finetune.record import RECORD_NAME, write_atomically
from mixout.finetune.settings import AUTO, FORMER, UNSEEN, Settings

CHECKPOINTS = "checkpoints"
_COMPLETE = "complete"
_RUN = "run.json"
# The weights of the best evaluation so far, if they are asked for.
BEST = "best.safetensors"
# What a method measured before it trained, beside the checkpoints and in the end beside the model.
FISHER = "fisher.safetensors"
# Checkpoints kept: the newest two, so that a complete one is left when the newest is cut off in the middle.
KEPT = 2


def unfinished(folder: Path) -> bool:
    """Whether ``folder`` holds a run that was begun and not finished."""
    return (folder / CHECKPOINTS / _RUN).is_file()


def is_finished(folder: Path) -> bool:
    """Whether ``folder`` holds a finished run."""
    return (folder / RECORD_NAME).exists()


def elsewhere(folder: Path) -> str:
    """What to do where a folder is given as a model and holds none; empty where that cannot be told."""
    if unfinished(folder):
        return f"finish its run: {shlex.join(['mixout', 'finetune', '--resume', str(folder)])}"
    return f"name {str(folder / 'model')!r}" if (folder / "model" / "config.json").is_file() else ""


def settle(folder: Path) -> None:
    """Remove what the end of a finished run has left behind if it was cut off."""
    if is_finished(folder) and unfinished(folder) and environment.leads():
        finish(folder)


def begun(folder: Path) -> Settings:
    """The settings of the unfinished run in ``folder``; InputError where there is none, or only its end was cut off."""
    settle(folder)
    if is_finished(folder) or not unfinished(folder):
        done = f"a finished one; answers for new rows: {shlex.join(['mixout', 'predict', str(folder)])} FILE"
        got = done if is_finished(folder) else "none; leave out --resume"
        raise InputError(f"expected an unfinished run in {str(folder)!r} to resume, got {got}")
    return Settings.from_json(json.dumps(_plan(folder)["settings"]))


def check(folder: Path, settings: Settings, *, resume: bool) -> Settings:
    """Refuse, by an InputError, a folder that this run must not or cannot use. Nothing is written.

    Returns the settings; if a run is resumed, its own choices fill in what ``settings`` leave open.
    """
    existing, problem, remedy = _existing(folder), "", "choose another one"
    if folder.is_file():
        problem = "which is a file"
    elif is_finished(folder):
        problem = "which holds a finished run"
    elif unfinished(folder) and not resume:
        problem, remedy = "which holds an unfinished run", "continue it with --resume, or choose another one"
    elif folder.exists() and not resume and not _is_empty(folder):
        problem = "which holds other files"
    elif not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        problem = f"with no permission for {existing}"
    if problem:
        raise InputError(
            f"expected a new or empty output-dir that can be written to, got {str(folder)!r}, {problem}; {remedy}"
        )
    if not resume:
        return settings
    earlier, was_sharded = begun(folder), bool(_plan(folder).get("fsdp2"))
    if was_sharded != environment.fsdp2():
        began, got = ("with FSDP2", "without") if was_sharded else ("without", "with FSDP2")
        raise InputError(
            f"expected a launch like that of the unfinished run in {str(folder)!r}, which began {began}, got a launch "
            f"{got}; start it as it began"
        )
    left_open = [name for name in (*FORMER, "method") if getattr(settings, name) in (None, AUTO)]
    settings = replace(settings, **{name: getattr(earlier, name) for name in left_open})
    old, new = asdict(earlier), asdict(settings)
    changed = [
        f"{name} (was {old[name]!r}, got {new[name]!r})"
        for name in new
        if name not in UNSEEN and new[name] != old[name]
    ]
    if changed:
        raise InputError(
            f"expected the settings of the unfinished run in {str(folder)!r}, got other values for: "
            f"{', '.join(changed)}; repeat the settings that it began with, or choose another output-dir"
        )
    return settings


def check_space(folder: Path, *, weights: int, settings: Settings, keep_model: bool = True) -> None:
    """Refuse to start a run whose files will not fit on the disk, by an InputError."""
    # Adam keeps two numbers for each weight. A new checkpoint is written before the oldest is removed.
    per_weight = 1 if settings.optimizer == "sgd" else 3
    checkpoints = 0 if settings.save == "no" else per_weight * (KEPT + 1)
    copies = keep_model + settings.keep_best + checkpoints
    needed = weights * copies + (16 << 20)
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed:
        advice = ", or do without checkpoints: --save no (in a study --set save=no)" if checkpoints else ""
        raise InputError(
            f"expected {needed / 1e6:,.0f} MB of free disk for {str(folder)!r}, got {free / 1e6:,.0f} MB; make room, "
            f"or choose another --output-dir (in a study --ledger){advice}"
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuse, by an InputError, a folder in which another process of this machine trains now."""
    if not environment.leads():
        yield
        return
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    lock = FileLock(Path(tempfile.gettempdir()) / f"mixout-{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"expected {str(folder)!r} for this run alone, got another process that trains in it; wait until it has "
            "ended, or choose another output-dir"
        ) from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def begin(
    folder: Path, settings: Settings, chosen: dict[str, str], fingerprints: Mapping[str, str | None], *, resume: bool
) -> tuple[Path | None, dict[str, str]]:
    """Take the folder for this run: the checkpoint to go on from, or None; and what was chosen when the run began.

    InputError where data or pretrained weights are not those that the run began with, or the folder cannot be made, or
    another run has taken it since :func:`check`.
    """
    if not resume and environment.leads():
        check(folder, settings, resume=False)
    if unfinished(folder):
        earlier = _plan(folder)
        recorded = earlier["fingerprints"]
        changed = [name for name in fingerprints if fingerprints[name] != recorded.get(name)]
        if changed:
            raise InputError(
                f"expected the run in {str(folder)!r} to go on with what it began with, got other content for: "
                f"{', '.join(changed)}; restore it, or start again in another output-dir"
            )
        return _last_complete(folder / CHECKPOINTS), earlier.get("chosen", {})
    with making(folder):
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        values = {"settings": asdict(settings), "chosen": chosen, "fingerprints": dict(fingerprints)}
        plan = json.dumps(values | {"fsdp2": environment.fsdp2()}, indent=1)
        write_atomically(folder / CHECKPOINTS / _RUN, plan)
    return None, chosen


def _plan(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / CHECKPOINTS / _RUN).read_text("utf-8"))
    return values


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Turn a failure of the file system in the body, before training, into an InputError about the folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"expected an output-dir that can be written to, got {str(folder)!r}: {error}") from error


def complete(checkpoint: Path) -> None:
    """Mark a checkpoint as complete, after all its other files are written."""
    write_atomically(checkpoint / _COMPLETE, "")


def finish(folder: Path) -> None:
    """Remove the checkpoints of a run whose record is written; what loggers left beside them is kept."""
    checkpoints = folder / CHECKPOINTS
    for entry in checkpoints.iterdir():
        if entry.name.startswith("checkpoint-"):
            shutil.rmtree(entry)
        elif entry.name == BEST:
            entry.unlink()
        elif entry.name != _RUN:
            shutil.move(entry, folder / entry.name)
    (checkpoints / _RUN).unlink()
    checkpoints.rmdir()


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _is_empty(folder: Path) -> bool:
    """Whether a run may begin here: the folder is empty, or a run ended in it before it wrote anything."""
    entries = list(folder.iterdir())
    if entries == [folder / CHECKPOINTS] and entries[0].is_dir():
        entries = [entry for entry in entries[0].iterdir() if not entry.name.startswith(f".{_RUN}.")]
    return not entries


def _last_complete(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint; one that was cut off while being written is removed."""
    by_step = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for checkpoint in by_step:
        if not (checkpoint / _COMPLETE).is_file():
            shutil.rmtree(checkpoint)
    return next((path for path in reversed(by_step) if path.exists()), None)
