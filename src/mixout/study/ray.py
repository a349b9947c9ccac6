"""Runs on a Ray cluster. The only file that imports Ray.

A worker returns the files of its run as bytes, and the driver writes them: the machines need no shared disk. They need
mixout, and the data and models under the paths that the driver uses, or from the hub; a worker whose files have other
content refuses the run. Ray's own retries are off: the runner counts attempts, whatever ended them.
"""

from __future__ import annotations

import os
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from mixout.errors import InputError, MixoutError, needs
from mixout.finetune.cache import Cache
from mixout.finetune.environment import NOTE
from mixout.finetune.record import RECORD_NAME, WriteError, write_atomically, writing
from mixout.study.executors import TENSORBOARD, Executor, Job, Outcome, Tell, attempt
from mixout.study.identity import Inputs


class RayExecutor(Executor):
    """Runs each job as one Ray task.

    Args:
        address: of a running cluster, ``"auto"`` for the one that runs on this machine.
        workers: runs at a time; None for as many as the cluster has room for.
        cpus: cores for each run.
        gpus: GPUs for each run, also a fraction; None for 1 on a cluster that has GPUs.

    Raises:
        InputError: a number is out of range.
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self, address: str, *, workers: int | None = None, cpus: float | None = None, gpus: float | None = None
    ) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"expected workers >= 1, got {workers}")
        for name, share in (("cpus", cpus), ("gpus", gpus)):
            if share is not None and not 0 <= share < float("inf"):
                raise InputError(f"expected {name} per run >= 0, got {share}")
        self._address = address
        self._shares = (1.0 if cpus is None else cpus, gpus)
        # More than the cluster has room for: Ray queues them, and uses nodes that come later.
        self.slots = workers or 256
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray reads this when it is imported
        with needs("ray", "a Ray cluster"):
            import ray
        self._ray: Any = ray  # it has no types that mypy could use
        self._jobs: dict[Any, Job] = {}
        self._remote: Any  # set by __enter__

    def __enter__(self) -> Self:
        try:
            self._ray.init(address=self._address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"expected the address of a running Ray cluster, got {self._address!r}: {reason}; start one with "
                f"'ray start --head', or leave the address out"
            ) from error
        cpus, gpus = self._shares
        gpus = float("GPU" in self._ray.cluster_resources()) if gpus is None else gpus
        self._shares = (cpus, gpus)
        if not self._room():
            self._ray.shutdown()
            raise InputError(f"expected a machine with {cpus:g} cores and {gpus:g} GPUs for each run, got none")
        self._remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_attempt)
        return self

    def _room(self) -> int:
        """How many runs the machines that are there now have room for."""
        shares = [(name, share) for name, share in zip(("CPU", "GPU"), self._shares, strict=True) if share]
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(int(min((node.get(n, 0) / share for n, share in shares), default=self.slots)) for node in nodes)

    @property
    def at_once(self) -> int:
        """How many jobs are worked on at a time; the others wait for room."""
        return max(1, min(self.slots, self._room()))

    def start(self, job: Job) -> None:
        """Submit a job."""
        if job.keep_model:
            raise InputError(
                "expected no models to keep with --ray-address, whose workers share no disk; leave out --keep"
            )
        self._jobs[self._remote.remote(job)] = job

    def wait(self, tell: Tell) -> Outcome:
        """The next job that ends. Its notes arrive together with it; its progress meanwhile is not reported."""
        [ready], _ = self._ray.wait(list(self._jobs))
        job = self._jobs.pop(ready)
        outcome: Outcome | MixoutError | WriteError
        try:
            outcome, files, notes = self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as error:
            # Raised outside of the run, such as by a worker without mixout.
            return Outcome(job=job, error=str(error))
        except self._ray.exceptions.RayError as error:
            # As one line: the first alone would not say what was lost.
            text = " ".join(str(error).split())
            return Outcome(job=job, error=f"{type(error).__name__}: {text}", lost=True)
        for note in notes:
            tell(job.id, note)
        if isinstance(outcome, (MixoutError, WriteError)):
            raise outcome
        if outcome.error is None:
            _write(job.folder, files)
        return replace(outcome, job=job)

    def __exit__(self, *_: object) -> None:
        """Cancel what still runs, and leave the cluster."""
        for reference in self._jobs:
            self._ray.cancel(reference, force=True)
        self._jobs.clear()
        self._ray.shutdown()


def _attempt(job: Job) -> tuple[Outcome | MixoutError | WriteError, dict[str, bytes], list[str]]:
    """One attempt, in a worker: how it ended, or what ends the study; its files; and notes on the machine."""
    lines: list[str] = []
    try:
        if _inputs.identity(job.settings) != job.id:
            raise InputError(
                "expected data, weights and mixout as they are where the study was started, got others; copy them there"
            )
        with tempfile.TemporaryDirectory() as folder:
            # TensorBoard's events come back with the run's files: the driver's folder may not exist on this machine.
            names = {name: value for name, value in job.environment.items() if name != TENSORBOARD}
            local_job = replace(job, folder=Path(folder) / "run", environment=names)
            outcome = attempt(local_job, _cache, lambda _, line: lines.append(line))
            paths = (path for path in sorted(local_job.folder.rglob("*")) if path.is_file())
            files = {path.relative_to(local_job.folder).as_posix(): path.read_bytes() for path in paths}
    except (MixoutError, WriteError) as error:
        return type(error)(f"on {socket.gethostname()}: {error}"), {}, []
    return outcome, {} if outcome.error else files, [line for line in lines if line.startswith(NOTE)]


# A worker serves many runs: data and weights are read once in each.
_inputs = Inputs()
_cache = Cache()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files of a run, its record last: the record marks the run as finished."""
    with writing(folder):
        for name, content in files.items():
            if name != RECORD_NAME:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECORD_NAME, files[RECORD_NAME])
