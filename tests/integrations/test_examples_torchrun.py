"""The examples for several devices under torchrun, two processes on a CPU, print the numbers of one plain process."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mixout
from mixout.layers import Mixed
from mixout.record import subject

pytestmark = [pytest.mark.sweep, pytest.mark.usefixtures("one_thread")]
EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTED = re.compile(r"step (\d+): loss ([\d.]+), distance ([\d.]+)")


def torchrun(name):
    """(step, loss, distance) of each line."""
    sources = str(Path(mixout.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": sources}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("run_example.py")), str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return numbers(done.stdout)


def numbers(text):
    return [tuple(map(float, line)) for line in PRINTED.findall(text)]


def alone(model, where, world=2):
    """The loop of ddp.py and fsdp2.py with the examples of all ranks; the loss is that of rank 0's."""
    run = int(torch.empty((), dtype=torch.int64).random_())  # what rank 0 draws, and publishes
    mixout.apply_(model, mixout.Mixout(0.9), where=where)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Mixed)}
    anchors = {name: layer._mixed.anchors for name, layer in layers.items()}
    seed = mixout.seeds.digest_bits(f"{run}/{subject('mixout(0.9)', anchors)}") >> 1
    mixout.apply_(mixout.remove_(model), mixout.Mixout(0.9), where=where, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    ranks = [torch.Generator().manual_seed(rank) for rank in range(world)]
    found = []
    for step in range(20):
        x = torch.cat([torch.randn(64, 16, generator=examples) for examples in ranks])
        losses = (model(x).squeeze(1) - x[:, 0]).pow(2)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            found.append((step + 1, losses[:64].mean().item(), mixout.distance(model).total))
    return found


def dense():
    return nn.Sequential(nn.Linear(16, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1)), "0|2"


def blocks():
    parts = [nn.Sequential(nn.Linear(16, 63), nn.Tanh(), nn.Linear(63, 16)) for _ in range(2)]
    return nn.Sequential(*parts, nn.Linear(16, 1)), r"\."


def assert_same(split, whole, digits):
    assert [step for step, _, _ in whole] == [10, 20]
    assert whole[1][2] > whole[0][2] > 0.1
    for one, other in zip(split, whole, strict=True):
        assert one == pytest.approx(other, abs=2 * 10**-digits)  # the last digit that is printed


@pytest.mark.parametrize(("name", "made"), [("ddp", dense), ("fsdp2", blocks)])
def test_two_ranks_with_examples_of_their_own(name, made):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = alone(*made())
    assert_same(torchrun(name), whole, digits=3)


def test_two_ranks_with_a_part_of_each_layer(capsys):
    example = runpy.run_path(str(EXAMPLES / "tensor_parallel.py"))
    with torch.random.fork_rng():
        example["train"](example["network"](), torch.device("cpu"))
    assert_same(torchrun("tensor_parallel"), numbers(capsys.readouterr().out), digits=5)
