"""Where runs happen: one contract, whose members are this machine (``local``) and a Ray cluster (``ray``).

An executor is given jobs and hands back outcomes. It decides neither what is run nor what becomes of a failure, and
writes nothing but the folder of a job.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mixout.finetune.settings import Settings

Tell = Callable[[str, str], None]
TENSORBOARD = "TENSORBOARD_LOGGING_DIR"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt at one run."""

    id: str  # the run's identity
    settings: Settings  # what to run
    folder: Path  # where the run's files are to be in the end; may hold what an attempt left that was cut off
    again: bool = False  # start anew, whatever ``folder`` holds: an attempt has failed
    keep_model: bool = False  # leave the trained model in ``folder``, too
    environment: Mapping[str, str] = field(default_factory=dict)  # what loggers read there: names, tags, a folder


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    job: Job
    seconds: float | None = None  # from its start to its end; None where it did not end by itself
    error: str | None = None  # the traceback of what was raised; None where the finished run lies in the job's folder
    lost: bool = False  # the process or machine went away, which says nothing about the run


class Executor(ABC):
    """Runs jobs, up to ``slots`` at a time. A context: leaving it gives up what still runs."""

    slots = 1

    @abstractmethod
    def start(self, job: Job) -> None:
        """Take a job. At most ``slots`` are taken at a time; each comes back from :meth:`wait`."""

    @abstractmethod
    def wait(self, tell: Tell) -> Outcome:
        """The next job that ends; ``tell`` is called with the identity of a running job and a line on where it stands.

        Raises:
            MixoutError: the input is wrong: it would be wrong for the next attempt, too.
            WriteError: a disk is full.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027  in this process nothing runs between two calls
        """Give up what still runs."""
