"""Ray for real: machines as processes on this one. Machines and workers are killed, and the table is the same."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixout.errors import InputError
from mixout.study import runner
from mixout.study.executors import Job, LocalExecutor
from mixout.study.ledger import Ledger
from mixout.study.ray import RayExecutor
from mixout.study.runner import Tally, run

if not Path("/proc").is_dir():
    pytest.skip("processes are found through /proc", allow_module_level=True)
# Read when Ray is imported: loopback addresses only, see mixout.study.ray. Workers inherit the rest.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
pytest.importorskip("ray")

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.usefixtures("one_thread"),
    # Ray leaves pipes and log files of the processes that it ends to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    # What Ray will do with GPUs in a later version.
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for runs, where the driver is, and two machines with a core each."""
    from ray.cluster_utils import Cluster

    small = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}
    with pytest.MonkeyPatch.context() as patch:
        # Whoever trains on one core uses one thread, and so do we: the order of additions must not differ.
        patch.setenv("OMP_NUM_THREADS", "1")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
        machines = [made.add_node(num_cpus=1, **small) for _ in range(2)]
        made.machines = machines
        yield made
        made.shutdown()


def workers() -> list[int]:
    """Processes of these tests that are at work on a run: Ray names them after what they do.

    Other studies on this machine have such processes too, which are not to be killed.
    """
    found = []
    for pid in children(os.getpid()):
        try:
            if Path("/proc", str(pid), "cmdline").read_bytes().startswith(b"ray::_attempt"):
                found.append(pid)
        except OSError:  # it has ended meanwhile
            continue
    return found


def children(of: int) -> set[int]:
    """All processes that descend from this one."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, before = {of}, set[int]()
    while found != before:
        before = set(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found - {of}


def stopped_in_the_middle(machines: list[Any]) -> tuple[Any, int]:
    """A machine with a run on it, which is halted, so that it does not end before the machine does."""
    for _ in range(600):
        for machine in machines:
            [raylet] = machine.all_processes["raylet"]
            for worker in children(raylet.process.pid) & set(workers()):
                os.kill(worker, signal.SIGSTOP)
                if worker in workers():
                    return machine, worker
                os.kill(worker, signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("no machine is at work")


def test_a_machine_goes_away_in_the_middle(cluster, declare, tmp_path, outcomes):
    planned = declare(restarts=2, settings={"epochs": 20, "evaluate": "end"}).runs()
    lines: list[str] = []

    def kill_one(line: str) -> None:
        lines.append(line)
        if line.startswith("[1/4]"):
            machine, worker = stopped_in_the_middle(cluster.machines)
            cluster.machines.remove(machine)
            cluster.remove_node(machine, allow_graceful=False)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    ledger = Ledger(tmp_path / "ray")
    assert run(planned, ledger, RayExecutor(cluster.address), report=kill_one) == Tally(ran=4, failed=0)
    assert len(cluster.machines) == 1
    assert any("attempt 1 failed, trying again: " in line for line in lines), lines
    assert sorted(line[:5] for line in lines if line.startswith("[")) == [f"[{k}/4]" for k in range(1, 5)]
    here = Ledger(tmp_path / "local")
    run(planned, here, LocalExecutor(), report=lambda _: None)
    assert outcomes(ledger) == outcomes(here)
    contents = ledger.read()
    assert (contents.leftovers, contents.damaged, contents.conflicts) == ([], {}, {})


def test_a_run_that_kills_its_worker_is_recorded_and_the_study_goes_on(cluster, declare, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LOSSES", 1)
    deadly, _ = declare(restarts=1, settings={"epochs": 400, "evaluate": "end"}).runs()
    _, harmless = declare(restarts=1).runs()
    ledger = Ledger(tmp_path)

    def kill_both_attempts() -> None:
        killed: set[int] = set()
        while len(killed) < 2:
            for worker in set(workers()) - killed:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
            time.sleep(0.1)

    killer = threading.Thread(target=kill_both_attempts)
    killer.start()
    executor = RayExecutor(cluster.address, workers=1)
    assert run([deadly, harmless], ledger, executor, report=lambda _: None) == Tally(ran=2, failed=1)
    killer.join()
    entry = ledger.read().entries[deadly.id]
    assert (entry.record, entry.attempts) == (None, 2)
    assert entry.run.error is not None
    assert entry.run.error.startswith("WorkerCrashedError: ")
    assert ledger.read().entries[harmless.id].run.status == "finished"


def test_a_machine_with_other_data_is_refused(cluster, declare, tmp_path):
    planned = declare(restarts=1).runs()[:1]
    with RayExecutor(cluster.address) as executor:
        executor.start(Job(id="0" * 64, settings=planned[0].settings, folder=tmp_path / "run"))
        with pytest.raises(InputError, match=r"on .*: expected data, weights and mixout as they are"):
            executor.wait(lambda *_: None)
    assert not (tmp_path / "run").exists()


def test_no_room_is_said(cluster, declare):
    with (
        pytest.raises(InputError, match="a machine with 99 cores and 0 GPUs"),
        RayExecutor(cluster.address, cpus=99),
    ):
        pass


Build = Callable[[], RayExecutor]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: RayExecutor("auto", workers=0), "workers >= 1, got 0"),
        (lambda: RayExecutor("auto", gpus=-1), "gpus per run >= 0"),
        (lambda: RayExecutor("auto", cpus=float("nan")), "cpus per run >= 0"),
    ],
)
def test_numbers_that_cannot_be(build: Build, said):
    with pytest.raises(InputError, match=said):
        build()
