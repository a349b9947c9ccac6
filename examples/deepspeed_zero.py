"""Mixout under DeepSpeed's ZeRO-1 and ZeRO-2: apply_, then deepspeed.initialize.

    torchrun --nproc_per_node 2 examples/deepspeed_zero.py 2    # ZeRO-2, two processes: NCCL where there are GPUs
    python examples/deepspeed_zero.py                           # ZeRO-1, one process: the same numbers

The optimizer's state is split, with ZeRO-2 the gradients too; weights and anchor are whole on every rank. On a CPU
DeepSpeed begins by compiling a part of itself, for a minute, with g++ and ninja.
"""

from __future__ import annotations

import os
import sys

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

import mixout

STEPS, ROWS = 20, 64


def network() -> nn.Module:
    """The "pretrained" model: equal on all ranks, since each anchors at its own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1))


def rows(step: int) -> Tensor:
    """The examples of all ranks."""
    return torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(step))


def train(stage: int) -> nn.Module:
    """Train with ZeRO's ``stage``; each rank has its part of the rows."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model = mixout.apply_(network(), mixout.Mixout(p=0.9), where="0|2", seed=1)  # the last layer is new: not mixed
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, eps=1e-4, weight_decay=0.0)
    # Without a word about clipping DeepSpeed clips at 1.
    config = {"train_batch_size": ROWS, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True}
    config["zero_optimization"] = {"stage": stage}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for step in range(STEPS):
        x = rows(step).chunk(world)[rank].to(engine.device)
        engine.backward((engine(x).squeeze(1) - x[:, 0]).pow(2).mean())
        engine.step()
    return model


if __name__ == "__main__":
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", **alone)
    model = train(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    if dist.get_rank() == 0:
        print(f"after {STEPS} steps: distance to the anchor {mixout.distance(model).total:.5f}")
    dist.barrier()
    dist.destroy_process_group()
