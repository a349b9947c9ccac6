"""Short trainings of a tiny model, in one process or sharded over several: what test_layers_sharded.py compares.

As a script: ``python sharded_runs.py WORLD FOLDER`` runs all of them in WORLD processes, which leave what they found in
FOLDER/RANK.pt. It is imported where the same runs are made in one process.
"""

import contextlib
import functools
import itertools
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

import mixout
from mixout import AnchorDecay, Dropconnect, GradientMask, Mixconnect, Mixout

STEPS, ROWS = 3, 8


class Block(nn.Module):
    """Two linears; with ``recompute`` under activation checkpointing."""

    def __init__(self, width, inner):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.recompute = False

    def inside(self, x):
        return x + self.down(self.up(x).tanh())

    def forward(self, x):
        return checkpoint(self.inside, x, use_reentrant=False) if self.recompute else self.inside(x)


class Net(nn.Module):
    """16 rows are shared evenly by two or four ranks; 7 and 5 are not, and of 5 the last of four ranks has none."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Block(7, 16), Block(7, 5), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


def net(**change):
    torch.manual_seed(0)
    model = Net()
    for block in (model.first, model.second):
        block.recompute = change.get("recompute", False)
    if change.get("frozen"):
        model.first.up.requires_grad_(False)
    return model


def shard(model, mesh, *, over="blocks", **options):
    """fully_shard on the parts named by ``over``, then on the root."""
    parts = {
        "blocks": [model.first, model.second],
        "layers": [model.first.up, model.first.down, model.second.up, model.second.down],
        "group": [[model.first, model.second]],
        "root": [],
    }[over]
    for part in parts:
        fully_shard(part, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def batch(step, micro):
    return torch.randn(ROWS, 7, generator=torch.Generator().manual_seed(10 * step + micro))


def own_rows(x, mesh):
    return x if mesh is None else x.chunk(mesh.size())[mesh.get_rank()]


def train(model, mesh, steps=range(STEPS), optimizer=None, *, evaluate=False, autocast=None, loss_dtype=torch.float32):
    """Two micro-batches a step, AdamW-free so that a wrong factor shows; gives the loss of each step."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.3)
    sync = getattr(model, "set_requires_gradient_sync", lambda _: None)
    for step in steps:
        model.train()
        for micro in range(2):
            sync(micro == 1)
            with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
                out = model(own_rows(batch(step, micro), mesh))
            (out.to(loss_dtype).square().sum(1).mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        if evaluate:
            scores(model)
    return model


@torch.no_grad()
def scores(model):
    model.eval()
    return model(batch(99, 0)).double()


def weights(model):
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in model.state_dict().items()
    }
