"""examples/tensor_parallel.py under torchrun with two ranks prints the numbers of one process without any split."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mixout

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = Path(__file__).parents[2] / "examples" / "tensor_parallel.py"


def numbers(text):
    """(step, loss, distance) of each line."""
    found = re.findall(r"step (\d+): loss ([\d.]+), distance ([\d.]+)", text)
    return [(int(step), float(loss), float(distance)) for step, loss, distance in found]


def test_two_ranks_print_what_one_process_prints(capsys):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    sources = str(Path(mixout.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": sources}
    done = subprocess.run(
        [*torchrun, str(EXAMPLE)], capture_output=True, text=True, timeout=180, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    example = runpy.run_path(str(EXAMPLE))
    with torch.random.fork_rng():
        example["train"](example["network"](), torch.device("cpu"))
    alone = numbers(capsys.readouterr().out)
    assert [step for step, _, _ in alone] == [10, 20]
    assert alone[1][2] > alone[0][2] > 0.1
    for split, whole in zip(numbers(done.stdout), alone, strict=True):
        assert split == pytest.approx(whole, abs=2e-5)  # the last digit that is printed
