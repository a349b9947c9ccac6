"""Runs on Ray: several workers on one machine, or a cluster. The only file that imports Ray.

A worker returns the files of its run as bytes, and the driver writes them: the machines need no shared disk. They need
mixout, and the data and models under the paths that the driver uses, or from the hub; a worker whose files have other
content refuses the run. Ray's own retries are off: the runner counts attempts, whatever ended them.

A cluster that is started here listens on 127.0.0.1 only, without dashboard and usage statistics.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from mixout.errors import InputError, MixoutError
from mixout.finetune.cache import Cache
from mixout.finetune.disk import WriteError, writing
from mixout.finetune.environment import NOTE
from mixout.finetune.extras import needs
from mixout.finetune.record import RECORD_NAME, write_atomically
from mixout.study.executors import Executor, Job, Outcome, Tell
from mixout.study.executors.local import attempt
from mixout.study.identity import Inputs

_SECONDS_BETWEEN_LOOKS = 1.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RayExecutor(Executor):
    """One task a run.

    Args:
        address: of a running cluster, ``"auto"`` for the one that runs on this machine; None starts one here, which
            ends with the study.
        workers: runs at a time; None for as many as the cluster has room for. Needed where one is started.
        cpus: cores for each run; None for an equal share of this machine, and 1 on a cluster.
        gpus: GPUs for each run, also a fraction; None for an equal share of this machine, and 1 on a cluster that has
            GPUs.

    Raises:
        InputError: a number that cannot be.
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        workers: int | None = None,
        cpus: float | None = None,
        gpus: float | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"expected workers >= 1, got {workers}")
        if address is None and workers is None:
            raise InputError("expected a number of workers, or the address of a Ray cluster, got neither")
        for name, share in (("cpus", cpus), ("gpus", gpus)):
            if share is not None and not 0 <= share < float("inf"):
                raise InputError(f"expected {name} per run >= 0, got {share}")
        self._address = address
        self._workers = workers
        self._shares = (cpus, gpus)
        # More than the cluster has room for: Ray queues them, and uses nodes that come later.
        self.slots = workers or 256
        self._ray = _import_ray(address)
        self._jobs: dict[Any, Job] = {}
        self._submit: Callable[[Job], Any]  # within the context
        self._board: Any = None
        self._told: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._address is None:
            self._start_here()
        else:
            self._connect()
        return self

    def start(self, job: Job) -> None:
        """Submit a job."""
        if job.keep_model:
            raise InputError(
                "expected no models to keep with --executor ray, whose workers share no disk; leave out --keep"
            )
        self._jobs[self._submit(job)] = job

    def wait(self, tell: Tell) -> Outcome:
        """The next job that ends; where the others stand is told while there is none."""
        while True:
            ready, _ = self._ray.wait(list(self._jobs), timeout=_SECONDS_BETWEEN_LOOKS)
            self._look(tell)
            if ready:
                return self._outcome(ready[0])

    def __exit__(self, *_: object) -> None:
        """Cancel what still runs, and leave the cluster or end it."""
        for reference in self._jobs:
            self._ray.cancel(reference, force=True)
        self._jobs.clear()
        self._ray.shutdown()

    def _start_here(self) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self._workers or 1
        cpus, gpus = self._shares
        cpus = max(1, cores // workers) if cpus is None else cpus
        self._ray.init("local", num_cpus=max(cores, int(cpus * workers)), _node_ip_address="127.0.0.1", **_QUIET)
        found = self._ray.cluster_resources().get("GPU", 0.0)
        # Ray counts in steps of 1/10000; rounded up, the last worker would not fit.
        self._prepare(cpus, min(1.0, int(10_000 * found / workers) / 10_000) if gpus is None else gpus)

    def _connect(self) -> None:
        try:
            self._ray.init(address=self._address, **_QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise InputError(
                f"expected the address of a running Ray cluster, got {self._address!r}: {first}; start one with "
                f"'ray start --head', or leave the address out"
            ) from error
        cpus, gpus = self._shares
        found = self._ray.cluster_resources().get("GPU", 0.0)
        self._prepare(1 if cpus is None else cpus, (1.0 if found else 0.0) if gpus is None else gpus)

    def _prepare(self, cpus: float, gpus: float) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            self._ray.shutdown()
            raise InputError(f"expected a machine with {cpus:g} cores and {gpus:g} GPUs for each run, got none")
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            node_id=self._ray.get_runtime_context().get_node_id(), soft=False
        )
        # On the driver's machine: without that the study ends in any case.
        self._board = self._ray.remote(num_cpus=0, max_restarts=-1)(_Board).options(scheduling_strategy=here).remote()
        remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_attempt)
        self._submit = lambda job: remote.remote(job, self._board)

    def _look(self, tell: Tell) -> None:
        try:
            lines = self._ray.get(self._board.lines.remote())
        except self._ray.exceptions.RayActorError:
            # It starts again, without what it knew: lines of progress, which come anew.
            return
        for id, line in lines.items():
            if self._told.get(id) != line:
                self._told[id] = line
                tell(id, line)

    def _outcome(self, reference: Any) -> Outcome:  # noqa: ANN401  Ray's reference
        job = self._jobs.pop(reference)
        self._told.pop(job.id, None)
        outcome: Outcome | MixoutError | WriteError
        try:
            outcome, files = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            # Raised outside of the run, such as by a worker without mixout.
            return Outcome(job=job, error=str(error))
        except self._ray.exceptions.RayError as error:
            # One line last: it is what people see of it.
            text = " ".join(str(error).split())
            return Outcome(job=job, error=f"{type(error).__name__}: {text}", lost=True)
        if isinstance(outcome, (MixoutError, WriteError)):
            raise outcome
        if outcome.error is None:
            _write(job.folder, files)
        return replace(outcome, job=job)


_QUIET: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


class _Board:
    """An actor: the last line of every run, and every note, which the next line of its run would hide."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def put(self, id: str, line: str | None) -> None:
        """A run stands here; None: it has ended."""
        if line is None:
            self._lines.pop(id, None)
        elif line.startswith(NOTE):
            self._lines[line] = line
        else:
            self._lines[id] = line

    def lines(self) -> dict[str, str]:
        """Where the runs stand."""
        return self._lines


def _attempt(job: Job, board: Any) -> tuple[Outcome | MixoutError | WriteError, dict[str, bytes]]:  # noqa: ANN401
    """One attempt, in a worker: how it ended, or what ends the study; and the files of the run.

    ``board`` is Ray's handle of an actor.
    """
    try:
        if _inputs.identity(job.settings) != job.id:
            raise InputError(
                "expected data, weights and mixout as they are where the study was started, got others; "
                "copy them there (the embedded task follows the installed libraries)"
            )
        with tempfile.TemporaryDirectory() as folder:
            here = replace(job, folder=Path(folder) / "run")
            outcome = attempt(here, _cache, lambda id, line: board.put.remote(id, line))
            found = (path for path in sorted(here.folder.rglob("*")) if path.is_file())
            files = {path.relative_to(here.folder).as_posix(): path.read_bytes() for path in found}
    except (MixoutError, WriteError) as error:
        return type(error)(f"on {socket.gethostname()}: {error}"), {}
    finally:
        board.put.remote(job.id, None)
    return outcome, {} if outcome.error else files


# A worker serves many runs: data and weights are read once in each.
_inputs = Inputs()
_cache = Cache()


def _write(place: Path, files: dict[str, bytes]) -> None:
    """The files of a run, its record last: that makes it a finished one."""
    with writing(place):
        for name, content in files.items():
            if name != RECORD_NAME:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / RECORD_NAME, files[RECORD_NAME].decode("utf-8"))


def _import_ray(address: str | None) -> Any:  # noqa: ANN401  the module has no types that mypy could use
    """Ray, told before it is imported what it reads only then."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None or address.rpartition(":")[0] in _LOOPBACK:
        # "Ray clusters on other systems than Linux", which are off; off means loopback addresses. Otherwise Ray
        # replaces 127.0.0.1 by the machine's address, whatever it is told, and listens on all of them.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with needs("ray", "more than one worker"):
        import ray
        import ray.util.scheduling_strategies
    return ray
