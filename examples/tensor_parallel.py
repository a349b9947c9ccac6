"""Mixout under tensor parallelism: a mask entry belongs to a global input neuron, on whichever rank its weights lie.

    torchrun --nproc_per_node 2 examples/tensor_parallel.py    # two processes: NCCL where there are GPUs, else gloo
    python examples/tensor_parallel.py                         # one process: the same numbers

First parallelize_module, then apply_. Every rank sees the same examples; weights and anchors are split.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import mixout

STEPS = 20


def network() -> nn.Module:
    """The "pretrained" model: equal on all ranks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1))


def train(model: nn.Module, device: torch.device) -> None:
    """Mix the two split layers and train; say how it went on rank 0."""
    mixout.apply_(model, mixout.Mixout(p=0.9), where="0|2", seed=1)  # the last layer is new: not mixed
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    examples = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        x = torch.randn(64, 16, generator=examples).to(device)
        loss = (model(x).squeeze(1) - x[:, 0]).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        distance = mixout.distance(model).total  # gathers: called on every rank
        if int(os.environ.get("RANK", 0)) == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {loss.item():.5f}, distance {distance:.5f}")


def main() -> None:
    """Split the first layer over its outputs and the next over its inputs, which are the first one's outputs."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpu else torch.device("cpu")
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if gpu else "gloo", **alone)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model = parallelize_module(network().to(device), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    train(model, device)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
