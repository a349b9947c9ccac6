"""Mixout under DistributedDataParallel.

    torchrun --nproc_per_node 2 examples/ddp.py    # two processes: NCCL where there are GPUs, else gloo
    python examples/ddp.py                         # one process: the same loop

All ranks draw the same masks, so the result is that of one process with the examples of all ranks.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mixout

STEPS = 20


def main() -> None:
    """Train a small network; every rank has its own examples."""
    several = "RANK" in os.environ
    gpu = torch.cuda.is_available()
    if several:
        dist.init_process_group("nccl" if gpu else "gloo")
    rank, local = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK"))
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)

    torch.manual_seed(0)  # the "pretrained" weights: equal on all ranks, since each anchors at its own
    model = nn.Sequential(nn.Linear(16, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1)).to(device)
    mixout.apply_(model, mixout.Mixout(p=0.9), where="0|2")  # the last layer is new: not mixed
    ddp = DistributedDataParallel(model) if several else model
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=3e-3, weight_decay=0.0)

    examples = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        x = torch.randn(64, 16, generator=examples).to(device)
        loss = (ddp(x).squeeze(1) - x[:, 0]).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, distance {mixout.distance(model).total:.3f}")
    if several:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
