"""The result of one run as a value, ``record.json``: written once, whole, as the last act of the run.

A folder that holds it is a finished run; nothing else decides that. It knows nothing of models and does not import
transformers, only torch, which comes with the package: an analysis of thousands of records starts fast.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from mixout.errors import InputError
from mixout.finetune.settings import Settings

RECORD_NAME = "record.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The dev set's loss and scores after ``step`` optimizer steps."""

    step: int
    epoch: float
    loss: float
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The training loss, averaged over the steps since the entry before it, and the last step's gradient and rate."""

    step: int
    epoch: float
    loss: float
    gradient_norm: float | None
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one run did."""

    status: str  # "finished", or "diverged" where a loss was not finite or got out of hand
    settings: Settings  # resolved, with every seed
    digest: str  # of the settings, see :meth:`Settings.digest`
    metric: str  # name of the score by which runs are compared
    score: float  # its value at the end, on the dev set
    scores: dict[str, float]  # all of the task's scores, at the end
    chance: float  # what a constant answer scores on the dev set
    evaluations: tuple[Evaluation, ...]  # by step; of a language model from step 0, before training
    training: tuple[Progress, ...]  # the course of the training loss
    # For the dev set, in its order: numbers of classes, or values; 1 or 0 for each of several labels; the
    # numbers of words' tags; for a language model each document's mean log-likelihood.
    predictions: tuple[Any, ...]
    labels: tuple[str, ...] | None  # names of the classes; None for a regression or a language model
    train_size: int  # rows or documents
    dev_size: int  # rows or documents
    steps: int  # of the optimizer
    parameters: int  # of the model
    new_parameters: tuple[str, ...]  # names of those without pretrained weights
    distance: float  # ||w - w_pre|| over every parameter that has pretrained weights, mixed or not
    distance_by_layer: dict[str, float]  # the same distance for each module
    coverage: dict[str, Any]  # of the method: counts of layers, shares of parameters and FLOPs
    gradient: str | None  # convention of the mixing method, "exact" or "paper"; None without mixing
    seconds: float  # of training, without evaluations, loading, and what an interruption lost
    evaluation_seconds: float  # spent in evaluations
    # Bytes at the run's peak, host and device; None where it cannot be measured. Where the earlier peak cannot be
    # reset (other than Linux), host is the peak of the whole process.
    peak_memory: dict[str, int | None]
    source: dict[str, str]  # where model and data came from, in words
    fingerprints: dict[str, str | None]  # sha256 of anchor, train, dev, weights and original text
    versions: dict[str, str]  # of mixout, Python and the libraries
    hardware: dict[str, Any]  # processor, cores, accelerator, operating system; number of processes if several
    finished_at: str  # UTC, ISO 8601
    chosen: dict[str, str] = field(default_factory=dict)  # settings that were left open: value and reason, in words
    interpolated: tuple[dict[str, float], ...] = ()  # for each t of --interpolate: t, and the scores at u + t (w - u)
    verdict: str = ""  # of a failed run: what happened, and what to try
    standard_errors: dict[str, float] = field(default_factory=dict)  # of scores, by the choice of dev rows or documents
    pairs: bool | None = None  # whether texts come in pairs; None in earlier records

    @property
    def nested(self) -> bool:
        """Whether each prediction is a tuple: of several labels a row, or a tag for each word."""
        return isinstance(next(iter(self.predictions), None), tuple)

    @property
    def fitted(self) -> bool:
        """Whether the dev rows are those that the model was trained on: its scores there are no result."""
        return self.fingerprints["train"] == self.fingerprints["dev"]

    @property
    def told_errors(self) -> dict[str, float]:
        """The standard errors that say something: one of 0, where all answers are right, would read as certainty."""
        return {name: error for name, error in self.standard_errors.items() if round(error, 4) > 0}

    def to_json(self) -> str:
        """One JSON object, one line a field; numbers that are not finite become the strings 'nan', 'inf' and '-inf'."""
        values = {"format": _FORMAT, **asdict(self)}
        lines = [f'"{name}": {json.dumps(_portable(value), allow_nan=False)}' for name, value in values.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record that :meth:`to_json` wrote; InputError for any other text."""
        try:
            values = cast("dict[str, Any]", _exact(json.loads(text)))
            if values.pop("format") != _FORMAT:
                raise InputError(
                    f"expected a record of format {_FORMAT}, got another; read it with the mixout of its time"
                )
            values["settings"] = Settings.from_json(json.dumps(values["settings"]))
            values["evaluations"] = tuple(Evaluation(**item) for item in values["evaluations"])
            values["training"] = tuple(Progress(**item) for item in values["training"])
            for name in ("predictions", "labels", "new_parameters", "interpolated"):
                if values.get(name) is not None:
                    values[name] = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in values[name])
            return cls(**values)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(f"expected a record as mixout writes it, got something else: {error!r}") from error

    def write(self, folder: Path) -> None:
        """Write ``record.json`` into ``folder``, atomically."""
        write_atomically(folder / RECORD_NAME, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read ``record.json`` from ``folder``; InputError as of :meth:`from_json`."""
        path = folder / RECORD_NAME
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (InputError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: {error}; restore the file, or train again") from error


# How Rust (safetensors, tokenizers) spells an error of the system, and what torch.save says.
_RUST = re.compile(r"\(os error \d+\)")
_TORCH = re.compile(r"inline_container|PytorchStreamWriter|iostream error|cannot be opened")


class WriteError(OSError):
    """A file of a run could not be written: the disk is full, or the file system went away."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn every failure to write in the body into a :class:`WriteError` that names ``folder``.

    Python, safetensors, tokenizers and torch each have an exception of their own for a full disk.

    Raises:
        WriteError: a file could not be written; other errors pass through.

    Example:
        >>> with writing(Path("out")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ...
        mixout.finetune.record.WriteError: could not write to out: [Errno 28] No space left on device
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            # Loggers without a network raise an OSError too, but not one of the system.
            is_write_error = error.errno is not None
        else:
            is_write_error = bool((_TORCH if isinstance(error, RuntimeError) else _RUST).search(str(error)))
        if not is_write_error:
            raise
        raise WriteError(f"could not write to {folder}: {' '.join(str(error).split())}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it exists whole or not at all, also when the machine stops in between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut; only POSIX can do this."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# JSON has no NaN. Strings tell nan from inf, which null would not, and every reader accepts them.
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _portable(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(item) for item in value]
    return value


def _exact(value: object, key: str = "") -> object:
    # Names are never numbers: a class may well be called 'inf'.
    if isinstance(value, str) and value in _NOT_FINITE and key not in ("labels", "settings", "new_parameters"):
        return _NOT_FINITE[value]
    if isinstance(value, dict):
        return {name: _exact(item, key if key == "settings" else name) for name, item in value.items()}
    if isinstance(value, list):
        return [_exact(item, key) for item in value]
    return value
