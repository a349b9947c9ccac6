"""A prepared model against a loop without Accelerate, and what save_state brings back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mixout

pytestmark = [pytest.mark.sweep, pytest.mark.usefixtures("one_thread", "fresh_accelerate")]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    return mixout.apply_(model, mixout.Mixout(0.5))


def batches() -> TensorDataset:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.sum(dim=1, keepdim=True))


def loop(accelerator: Accelerator, model: nn.Module, optimizer, data, *, save: Path | None = None) -> None:
    torch.manual_seed(7)
    for epoch in range(2):
        if epoch == 1 and save is not None:
            accelerator.save_state(str(save))
        again(accelerator, model, optimizer, data)


def again(accelerator, model, optimizer, data) -> None:
    for x, y in data:
        with accelerator.accumulate(model):
            accelerator.backward((model(x) - y).square().mean())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()


def prepared(precision: str) -> tuple[Accelerator, nn.Module, torch.optim.Optimizer, DataLoader]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return accelerator, *accelerator.prepare(model, optimizer, DataLoader(batches(), batch_size=4))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_prepared_model_is_trained_as_one_that_is_not(precision):
    accelerator, model, optimizer, data = prepared(precision)
    loop(accelerator, model, optimizer, data)

    oracle = network()
    adam = torch.optim.AdamW(oracle.parameters(), lr=0.05)
    torch.manual_seed(7)
    for _ in range(2):
        # An iterator over batches takes a number from the stream that masks come from.
        for number, (x, y) in enumerate(DataLoader(batches(), batch_size=4)):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found = oracle(x)
            ((found.float() - y).square().mean() / 2).backward()
            if number % 2:
                nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
                adam.step()
                adam.zero_grad()
    for ours, theirs in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert mixout.distance(model).total == pytest.approx(mixout.distance(oracle).total, abs=1e-5)
    plain = mixout.remove_(accelerator.unwrap_model(model))
    assert type(plain[0]) is nn.Linear


def test_save_state_goes_on_bit_for_bit(tmp_path):
    whole = prepared("no")
    loop(*whole, save=tmp_path / "state")
    accelerator, model, optimizer, data = prepared("no")
    accelerator.load_state(str(tmp_path / "state"))
    again(accelerator, model, optimizer, data)
    assert all(a.equal(b) for a, b in zip(model.parameters(), whole[1].parameters(), strict=True))


def test_accelerate_launch_of_the_example_on_two_processes():
    """Both end with the same weights, though each saw its own half of the data and drew a mask in each of 12 passes."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "--num_machines", "1"]  # port 0: a free one
    launch += [str(Path(__file__).with_name("run_example.py"))]
    example = Path(__file__).parents[2] / "examples" / "accelerate_loop.py"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(mixout.__file__).parents[1]),
        "HF_HOME": os.devnull,  # where a user's own configuration of accelerate would be
    }
    done = subprocess.run(
        [*launch, str(example)], capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Not by lines: what two processes print may stand in one.
    printed = r"process (\d): sum (\S+), masks (\{.*?\}), distance to the anchor (\d\.\d{3})"
    found = {rank: what for rank, *what in re.findall(printed, done.stdout)}
    assert found.keys() == {"0", "1"}
    assert found["0"] == found["1"]
    _, masks, distance = found["0"]
    assert masks == "{'0': 12, '2': 12}"  # 64 examples, 8 in a batch, 3 epochs, 2 processes
    assert float(distance) > 0.1
    assert done.stdout.count("mixout(0.7): 2 layers mixed") == 1
