"""Where runs are executed: one interface, for this process, for worker processes, and for :mod:`mixout.study.ray`.

An executor takes jobs and returns outcomes. It does not decide what is run or how a failure is handled, and writes
only to the folder of a job.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast

import torch

from mixout.errors import InputError, MixoutError
from mixout.finetune.cache import Cache
from mixout.finetune.folder import unfinished
from mixout.finetune.record import WriteError, writing
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

Tell = Callable[[str, str], None]
TENSORBOARD = "TENSORBOARD_LOGGING_DIR"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt at one run."""

    id: str  # the run's identity
    settings: Settings  # what to run
    folder: Path  # where the run's files go; may hold files of an interrupted attempt
    again: bool = False  # start from the beginning, whatever ``folder`` holds: an attempt has failed
    keep_model: bool = False  # leave the trained model in ``folder``, too
    environment: Mapping[str, str] = field(default_factory=dict)  # variables for loggers: names, tags, a folder


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    job: Job
    seconds: float | None = None  # from its start to its end; None if it did not end by itself
    error: str | None = None  # the traceback of the exception; None if the finished run is in the job's folder
    lost: bool = False  # the process or machine was lost, which says nothing about the run


class Executor(contextlib.AbstractContextManager["Executor"], ABC):
    """Runs jobs, up to ``slots`` at a time. A context manager: leaving it stops the jobs that still run."""

    slots = 1

    @property
    def at_once(self) -> int:
        """How many jobs are worked on at a time, if there are enough: of those taken, some may wait."""
        return self.slots

    @abstractmethod
    def start(self, job: Job) -> None:
        """Take a job. At most ``slots`` are taken at a time; each comes back from :meth:`wait`."""

    @abstractmethod
    def wait(self, tell: Tell) -> Outcome:
        """The next job that ends; ``tell`` is called with the identity of a running job and a line on its progress.

        Raises:
            MixoutError: the input is wrong: it would be wrong for the next attempt, too.
            WriteError: a disk is full.
        """

    def __exit__(self, *_: object) -> None:
        """Stop the jobs that still run."""


class LocalExecutor(Executor):
    """This process, one run after the other.

    An interrupted run continues from its last checkpoint if its settings save checkpoints; otherwise it starts from
    the beginning. Weights and tokens are read once for the runs of a task.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        self._jobs: deque[Job] = deque()
        self._cache = cache or Cache()

    def start(self, job: Job) -> None:
        """Take a job; it runs in :meth:`wait`."""
        self._jobs.append(job)

    def wait(self, tell: Tell) -> Outcome:
        """Run the job."""
        return attempt(self._jobs.popleft(), self._cache, tell)


class PoolExecutor(Executor):
    """Worker processes on this machine, which share its cores and its GPUs.

    A worker that dies costs its own run an attempt and is replaced. Workers end with this process, however it ends.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise InputError(f"expected workers >= 1, got {workers}")
        self.slots = workers
        self._free: deque[int | _Worker] = deque(range(workers))  # idle workers, and numbers of workers not started
        self._busy: dict[Connection, tuple[_Worker, Job]] = {}

    def start(self, job: Job) -> None:
        """Give a job to a worker."""
        slot = self._free.popleft()
        worker = slot if isinstance(slot, _Worker) else _Worker(slot, self.slots)
        try:
            worker.pipe.send(job)
        except (BrokenPipeError, ConnectionResetError):  # it was killed while it had no job
            worker.process.join()
            worker.pipe.close()
            worker = _Worker(worker.place, self.slots)
            worker.pipe.send(job)
        self._busy[worker.pipe] = worker, job

    def wait(self, tell: Tell) -> Outcome:
        """The next job that ends; until then the progress of the others is reported."""
        while True:
            for pipe in wait(list(self._busy)):
                worker, job = self._busy[cast("Connection", pipe)]
                try:
                    message = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    worker.pipe.close()
                    del self._busy[worker.pipe]
                    self._free.append(worker.place)
                    error = f"WorkerLost: the process of the run ended with status {worker.process.exitcode}"
                    return Outcome(job=job, error=error, lost=True)
                if isinstance(message, str):
                    tell(job.id, message)
                    continue
                del self._busy[worker.pipe]
                self._free.append(worker)
                if isinstance(message, BaseException):
                    raise message
                return cast("Outcome", message)

    def __exit__(self, *_: object) -> None:
        """End the workers, and what they run."""
        idle = (worker for worker in self._free if isinstance(worker, _Worker))
        for worker in (*idle, *(worker for worker, _ in self._busy.values())):
            worker.process.terminate()
            worker.process.join()
            worker.pipe.close()
        self._busy.clear()
        self._free = deque(range(self.slots))


class _Worker:
    """A process with the pipe to it."""

    def __init__(self, place: int, workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # neither CUDA nor threads survive a fork
        self.place = place
        self.pipe, child_pipe = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(child_pipe, place, workers), daemon=True)
        self.process.start()
        child_pipe.close()


def _serve(pipe: Connection, number: int, workers: int) -> None:
    """Worker number ``number``: takes jobs until the pipe is closed."""
    # An interrupt reaches the whole group; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // workers))
    if torch.cuda.is_available() and torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
    cache = Cache()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job: Job = pipe.recv()
            try:
                pipe.send(attempt(job, cache, lambda _, line: pipe.send(line)))
            except (MixoutError, WriteError) as error:
                pipe.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def attempt(job: Job, cache: Cache, tell: Tell) -> Outcome:
    """One attempt at a run, in this process.

    Raises:
        MixoutError: the input is wrong.
        WriteError: a disk is full.
    """
    began, error = time.perf_counter(), None
    try:
        with _named(job):
            _run(job, cache, tell)
    except (MixoutError, WriteError):
        raise
    except Exception:  # whatever a run may raise: the study goes on, and the traceback is recorded
        error = traceback.format_exc()
    return Outcome(job=job, seconds=time.perf_counter() - began, error=error)


@contextlib.contextmanager
def _named(job: Job) -> Iterator[None]:
    """Set the names that loggers give the run; variables that the user has set are kept."""
    variables = {name: value for name, value in job.environment.items() if name not in os.environ}
    os.environ.update(variables)
    outer_run = _open_wandb_run()
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        # transformers continues a W&B run that is open, so the next run would be logged into this one. A run that was
        # open before belongs to the caller.
        if (opened := _open_wandb_run()) is not None and opened is not outer_run:
            sys.modules["wandb"].finish()
            sys.modules["wandb"].teardown()  # otherwise it uses the names that it has read for the next run, too


def _open_wandb_run() -> object:
    return getattr(sys.modules.get("wandb"), "run", None)


def _run(job: Job, cache: Cache, tell: Tell) -> None:
    report = partial(tell, job.id)
    train = partial(finetune, job.settings, job.folder, keep_model=job.keep_model, report=report, cache=cache)
    if unfinished(job.folder) and job.settings.save != "no" and not job.again:
        try:
            train(resume=True)
        except InputError as error:
            # For example, paths have moved since. Started from the beginning it is the same run.
            report(f"cannot go on where the run was cut off, so it starts anew: {error}")
        else:
            return
    with writing(job.folder):
        if job.folder.exists():
            shutil.rmtree(job.folder)
    train()
