"""Several processes on one ledger: kill -9 loses nothing that is finished, and a job array shares the runs out."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixout.cli import main

pytest.importorskip("fcntl", reason="only POSIX forks")
pytestmark = pytest.mark.sweep

RESTARTS = 10
KILLS = 20
# Everything is imported once; each driver is a fork of this process, which a signal ends. It knows of the ledger only
# what lies on the disk.
SERVER = """
import hashlib, json, os, random, signal, sys, time
from pathlib import Path
import torch
import mixout.cli.study.runs, mixout.study.executors  # all that a driver needs
from mixout.cli import main

torch.set_num_threads(1)
file, folder, restarts, kills, seed = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6])

def driver(ledger, log):
    # Before the fork: a driver that is killed at once has a log too, an empty one.
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    child = os.fork()
    if child:
        os.close(handle)
        return child
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os._exit(main(["study", "run", file, "--restarts", str(restarts), "--ledger", str(ledger)]))

def state(ledger):
    records = (ledger / "runs").glob("*/record.json")
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in records}

def finished():
    return sum(1 for _ in (folder / "killed" / "runs").glob("*/record.json"))

began = time.perf_counter()
whole = os.waitpid(driver(folder / "whole", folder / "whole.log"), 0)[1]
each = (time.perf_counter() - began) / (2 * restarts)
draw, found = random.Random(seed), []
for number in range(kills):
    log = folder / f"{number}.log"
    child = driver(folder / "killed", log)
    # Also before the first line, and in the midst of whatever comes between two runs.
    left = 2 * restarts - finished()
    moment = time.perf_counter() + draw.uniform(0.0, 2 * left / (kills + 1 - number)) * each
    # The machine may have become faster since the whole study was timed: no kill waits until its share is used up.
    most = min(2 * restarts - 2, max(2 * restarts * (number + 1) // (kills + 1), 2 * restarts - left + 1))
    while time.perf_counter() < moment and finished() < most:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    found.append({"status": status, "log": log.read_text(), "state": state(folder / "killed")})
last = os.waitpid(driver(folder / "killed", folder / "last.log"), 0)[1]
print(json.dumps({"whole": whole, "kills": found, "last": last, "state": state(folder / "killed")}))
"""


def table(file: str, ledger: Path, output: Path) -> list[dict[str, str]]:
    """The exported table, without what a clock or the machine has a part in."""
    words = ["study", "export", file, "--restarts", str(RESTARTS), "--ledger", str(ledger), "--output", str(output)]
    assert main(words) == 0
    timed = ("seconds", "peak_memory")
    with output.open(newline="") as handle:
        return [{name: row[name] for name in row if name not in timed} for row in csv.DictReader(handle)]


def test_kill_9_loses_nothing(study_file, tmp_path, capsys):
    seed = int.from_bytes(os.urandom(2), "big")
    ended = subprocess.run(
        [sys.executable, "-c", SERVER, study_file, str(tmp_path), str(RESTARTS), str(KILLS), str(seed)],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["whole"], found["last"]) == (0, 0), (tmp_path / "last.log").read_text()
    assert len(found["kills"]) == KILLS

    before: dict[str, str] = {}
    said = 0
    for kill in found["kills"]:
        assert kill["status"] == 9, f"seed {seed}: the study was over too early: {kill['log']}"
        assert "error" not in kill["log"], f"seed {seed}"
        # What was there stays as it was, and what a driver said to be finished is there.
        assert before.items() <= kill["state"].items(), f"seed {seed}"
        said += sum(line.startswith("[") for line in kill["log"].splitlines())
        assert len(kill["state"]) >= said, f"seed {seed}"
        before = kill["state"]
    assert 0 < len(before) < 2 * RESTARTS, f"seed {seed}: the kills did not fall into the study"
    assert before.items() <= found["state"].items()
    assert len(found["state"]) == 2 * RESTARTS
    killed = table(study_file, tmp_path / "killed", tmp_path / "killed.csv")
    assert killed == table(study_file, tmp_path / "whole", tmp_path / "whole.csv")
    assert len(killed) == 2 * RESTARTS
    assert len({row["distance"] for row in killed}) == 2 * RESTARTS
    capsys.readouterr()
    assert main(["study", "status", study_file, "--ledger", str(tmp_path / "killed")]) == 0
    told = capsys.readouterr().out
    assert "damaged" not in told
    assert "cut off" not in told


ARRAY = """
import json, os, sys, torch
import mixout.cli.study.runs, mixout.study.executors
from mixout.cli import main

torch.set_num_threads(1)
children = []
for task in range(2):
    children.append(os.fork())
    if not children[-1]:
        os.environ |= {"SLURM_JOB_ID": str(7 + task), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}
        handle = os.open(f"{sys.argv[1]}.{task}", os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 1)
        os._exit(main(sys.argv[2:]))
print(json.dumps([os.waitpid(child, 0)[1] for child in children]))
"""


def test_the_jobs_of_an_array_make_each_run_once(study_file, tmp_path):
    words = ["study", "run", study_file, "--restarts", str(RESTARTS), "--ledger", str(tmp_path / "ledger")]
    ended = subprocess.run(
        [sys.executable, "-c", ARRAY, str(tmp_path / "job"), *words],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert json.loads(ended.stdout) == [0, 0], ended.stderr
    made = [int((tmp_path / f"job.{task}").read_text().split()[0]) for task in range(2)]
    assert sum(made) == 2 * RESTARTS
    assert min(made) > 0
    rows = table(study_file, tmp_path / "ledger", tmp_path / "array.csv")
    assert len({row["distance"] for row in rows}) == len(rows) == 2 * RESTARTS
