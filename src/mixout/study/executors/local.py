"""Runs in this process, one after the other."""

from __future__ import annotations

import shutil
import time
from types import TracebackType

from mixout.errors import InputError, MixoutError
from mixout.finetune.cache import Cache
from mixout.finetune.disk import WriteError, writing
from mixout.finetune.folder import unfinished
from mixout.finetune.train import finetune
from mixout.study.executors import Executor, Job, Outcome, Tell, trace_of


class LocalExecutor(Executor):
    """One process, sequential.

    A run that was cut off goes on from its last checkpoint where its settings make checkpoints; otherwise it starts
    anew. Weights and tokens are read once for all runs.
    """

    slots = 1

    def __init__(self) -> None:
        self._job: Job | None = None
        self._cache = Cache()

    def start(self, job: Job) -> None:
        """Take a job; it runs in :meth:`wait`."""
        if self._job is not None:
            raise RuntimeError("expected no job while another one is waiting, got one; call wait() first")
        self._job = job

    def wait(self, tell: Tell) -> Outcome:
        """Run the job."""
        if self._job is None:
            raise RuntimeError("expected a job to wait for, got none; call start() first")
        job, self._job = self._job, None
        began = time.perf_counter()
        try:
            _run(job, self._cache, tell)
        except (MixoutError, WriteError):
            raise
        # Whatever a run may raise: the study goes on, and the traceback is recorded.
        except Exception as error:
            return Outcome(job=job, seconds=time.perf_counter() - began, error=trace_of(error))
        return Outcome(job=job, seconds=time.perf_counter() - began)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing runs between two calls."""


def _run(job: Job, cache: Cache, tell: Tell) -> None:
    def report(line: str) -> None:
        tell(job.id, line)

    resume = unfinished(job.folder) and job.settings.save != "no" and not job.again
    if resume:
        try:
            finetune(job.settings, job.folder, resume=True, keep_model=False, report=report, cache=cache)
        except InputError as error:
            # Such as paths that have moved since. From the start it is the same run.
            report(f"cannot go on where the run was cut off, so it starts anew: {error}")
        else:
            return
    with writing(job.folder):
        if job.folder.exists():
            shutil.rmtree(job.folder)
    finetune(job.settings, job.folder, keep_model=False, report=report, cache=cache)
