"""Mixout under FSDP2: weights and anchors are sharded, and nothing is sent that FSDP2 alone would not send.

    torchrun --nproc_per_node 2 examples/fsdp2.py    # two processes: NCCL where there are GPUs, else gloo
    python examples/fsdp2.py                         # one process: the same loop

First fully_shard, then apply_; all ranks draw the same masks, which belong to the whole weight.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import mixout

STEPS = 20


def main() -> None:
    """Train a small network; every rank has its own examples."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if gpu else "gloo", **alone)
    mesh = init_device_mesh("cuda" if gpu else "cpu", (dist.get_world_size(),))

    torch.manual_seed(0)  # the "pretrained" weights
    blocks = [nn.Sequential(nn.Linear(16, 63), nn.Tanh(), nn.Linear(63, 16)) for _ in range(2)]
    model = nn.Sequential(*blocks, nn.Linear(16, 1))
    for part in [*blocks, model]:
        fully_shard(part, mesh=mesh)
    mixout.apply_(model, mixout.Mixout(p=0.9), where=r"\.")  # the last layer is new: not mixed
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

    examples = torch.Generator().manual_seed(dist.get_rank())
    for step in range(STEPS):
        x = torch.randn(64, 16, generator=examples).to(mesh.device_type)
        loss = (model(x).squeeze(1) - x[:, 0]).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        distance = mixout.distance(model).total  # of the shards of all ranks: called on every rank
        if dist.get_rank() == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, distance {distance:.3f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
