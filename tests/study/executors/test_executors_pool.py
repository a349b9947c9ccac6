"""Worker processes on this machine: the table of one process, also where workers are killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from mixout.errors import InputError
from mixout.study.executors import Job, LocalExecutor, PoolExecutor
from mixout.study.ledger import Ledger
from mixout.study.runner import Tally, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Workers train with one thread, as the process of the tests does: the order of additions must not differ."""
    monkeypatch.setattr(os, "environ", os.environ | {"OMP_NUM_THREADS": "1"})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.sweep
def test_workers_make_the_table_of_one_process_and_a_killed_one_costs_an_attempt(declare, tmp_path, outcomes):
    planned = declare().runs()
    local, pool = Ledger(tmp_path / "local"), Ledger(tmp_path / "pool")
    run(planned, local, LocalExecutor(), report=lambda _: None)
    executor, lines = PoolExecutor(os.cpu_count() or 1), []
    killed: list[int] = []

    def report(line: str) -> None:
        lines.append(line)
        if not killed and line.startswith("["):
            victims = [worker for worker, _ in executor._busy.values()]
            if victims:
                killed.append(victims[0].process.pid)
                os.kill(victims[0].process.pid, signal.SIGKILL)

    assert run(planned, pool, executor, report=report) == Tally(ran=4, failed=0)
    assert outcomes(pool) == outcomes(local)
    if killed:
        assert sum("trying again: WorkerLost" in line for line in lines) == 1
    assert not list((tmp_path / "pool" / "work").iterdir())


@pytest.mark.sweep
def test_wrong_input_ends_the_study_and_its_workers(declare, tmp_path, tiny_task):
    [first, *_] = declare(restarts=1).runs()
    with PoolExecutor(1) as executor:
        job = Job(id="x", settings=first.settings, folder=tmp_path / "run")
        Path(tiny_task, "train.csv").exists()
        broken = type(first.settings)(**{**vars(first.settings), "model": str(tmp_path / "nowhere")})
        executor.start(type(job)(id="x", settings=broken, folder=job.folder))
        with pytest.raises(InputError, match="no such folder"):
            executor.wait(lambda *_: None)
        [worker] = executor._free
    assert not worker.process.is_alive()


def test_no_workers_are_refused():
    with pytest.raises(InputError, match="workers >= 1, got 0"):
        PoolExecutor(0)


PARENT = """
import sys, time
from mixout.study.executors import _Worker
if __name__ == "__main__":
    print(_Worker(0, 1).process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.sweep
def test_workers_end_with_their_parent(tmp_path):
    import subprocess
    import sys

    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(1800):  # a busy machine takes a minute to import what a worker needs
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return  # nobody waits for an orphan here
        time.sleep(0.1)
    pytest.fail("the worker still runs")


@pytest.mark.sweep
def test_a_worker_that_is_killed_while_it_is_idle_is_replaced(declare, tmp_path):
    first, second = declare(restarts=1).runs()
    with PoolExecutor(1) as executor:
        for one in (first, second):
            executor.start(Job(id=one.id, settings=one.settings, folder=tmp_path / one.id))
            assert executor.wait(lambda *_: None).error is None
            [worker] = executor._free
            worker.process.kill()
            worker.process.join()
