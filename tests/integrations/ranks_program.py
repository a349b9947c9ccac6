"""Training on several ranks, each a process: ``python ranks_program.py FOLDER WORLD``; every rank writes its results.

torch is imported once and the ranks are forked from that. They leave through os._exit: gloo sometimes aborts while the
interpreter shuts down, after everything is done.
"""

import os
import socket
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import mixout
from mixout.integrations.ddp import check_ranks

STEPS, ROWS = 3, 3
TWICE = (2, 2, 2)
STATIC = (1, 2, 2)  # DDP cannot record a static graph under no_sync


class Net(nn.Module):
    """A branch that is not used, a layer that may be checkpointed, and one that is not mixed."""

    def __init__(self, checkpointed=False, transposed=False):
        super().__init__()
        self.first, self.middle, self.unused = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(6, 6)
        if transposed:
            self.middle = Conv1D(16, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)
        self.checkpointed = checkpointed

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = checkpoint(self.middle, x, use_reentrant=False) if self.checkpointed else self.middle(x)
        return self.head(self.norm(torch.tanh(x)))


def net(p=0.5, *, checkpointed=False, transposed=False, used=True, **options):
    """Weights that are the same everywhere, and have left the anchor."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = Net(checkpointed, transposed).double()
    if used:
        del model.unused
    mixout.apply_(model, mixout.Mixout(p), where="first|middle|unused", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    torch.set_rng_state(state)
    return model


def batch(step, part, rank):
    generator = torch.Generator().manual_seed(1000 * step + 100 * part + rank)
    return torch.randn(ROWS, 6, generator=generator, dtype=torch.float64)


def train(model, inputs, parts=(1,) * STEPS, *, steps=range(STEPS), sync="no_sync", order="zero_first", ps=None):
    """``inputs(step, part)`` -> x; ``parts``: micro-batches of each step. Adam remembers a wrong gradient."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in steps:
        if ps is not None:
            mixout.set_p_(model, ps[step])
        if order == "zero_first":
            optimizer.zero_grad()
        for part in range(parts[step]):
            quiet = sync == "no_sync" and part < parts[step] - 1 and isinstance(model, DistributedDataParallel)
            with model.no_sync() if quiet else nullcontext():
                loss = model(inputs(step, part)).pow(2).mean() / parts[step]
                if order == "zero_late":
                    optimizer.zero_grad()
                loss.backward()
        optimizer.step()


# name: (what net takes, what DDP takes, what train takes)
CASES = {
    "plain": ({}, {}, {}),
    "accumulated": ({}, {}, {"parts": TWICE}),
    "static_graph": ({}, {"static_graph": True}, {"parts": STATIC}),
    "find_unused": ({"used": False}, {"find_unused_parameters": True}, {"parts": TWICE}),
    "checkpointed": ({"checkpointed": True}, {}, {"parts": TWICE}),
    "small buckets": ({}, {"bucket_cap_mb": 0.001}, {}),
    "Conv1D": ({"transposed": True}, {}, {"parts": TWICE}),
    "views": ({}, {"gradient_as_bucket_view": True}, {"parts": (3, 1, 2)}),
    "each part synchronised": ({}, {}, {"parts": TWICE, "sync": "each"}),
    "zero_grad after forward": ({}, {}, {"order": "zero_late"}),
    "p changes": ({}, {}, {"ps": [0.0, 0.9, 1.0]}),
}


def run_case(name, rank):
    options, wrap, training = CASES[name]
    torch.manual_seed(100 + rank)  # global seeds that differ, and other draws in between
    model = net(**options)
    ddp = DistributedDataParallel(model, **wrap)

    def inputs(step, part):
        torch.rand(rank + 1)
        return batch(step, part, rank)

    train(ddp, inputs, **training)
    return {"weights": weights(model), "state": mixout.save_state(model)}


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def error(function, *args):
    try:
        function(*args)
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"
    return "none"


def late(model, rank):
    """apply_ came before the process group."""
    train(DistributedDataParallel(model), lambda step, part: batch(step, part, rank))
    return {"weights": weights(model), "state": mixout.save_state(model)}


def resumed(rank):
    """Two steps; then a fresh model goes on, which would have agreed on another seed."""
    torch.manual_seed(100 + rank)
    model = net()
    train(DistributedDataParallel(model), lambda step, part: batch(step, part, rank), steps=range(2))
    state, trained = mixout.save_state(model), weights(model)
    torch.manual_seed(999 + rank)
    other = net()
    mixout.load_state_(other, state)
    other.load_state_dict(trained)
    expected, gone_on = (DistributedDataParallel(m) for m in (model, other))
    for ddp in (expected, gone_on):
        train(ddp, lambda step, part: batch(step, part, rank), steps=[2])
    # Back to before the first pass: ranks agree anew.
    torch.manual_seed(5000 + rank)
    back = net()
    beginning = mixout.save_state(back)
    for _ in range(2):
        back(batch(0, 0, rank))
        used = mixout.save_state(back)["agreed_seed"]
        mixout.load_state_(back, beginning)
    return {"uninterrupted": weights(model), "resumed": weights(other), "again": used}


def disagreements(rank):
    """What is raised where ranks differ."""
    mixout.seeds.PATIENCE = timedelta(seconds=3)
    found = {}
    x = batch(0, 0, rank)
    found["seed"] = error(net(seed=10 + rank), x)
    found["p"] = error(net(p=0.5 + rank / 10), x)
    found["anchor"] = error(mixout.apply_(nn.Linear(6, 6).double().requires_grad_(), mixout.Mixout(0.5)), x + rank)
    model = net(seed=1)
    model(x)
    mixout.set_p_(model, 0.5 + rank / 10)
    found["p later"] = error(check_ranks, model)
    model = net(seed=1)
    for _ in range(2 - rank):
        model(x)
    found["draws"] = error(check_ranks, model)
    model = net(seed=mixout.Seed(scope="rank"))
    for _ in range(2 - rank):
        model(x)
    found["own masks"] = error(check_ranks, model)
    return found


def own_masks(rank):
    """Seed(scope="rank") with equal seeds: outputs, which tell the masks, and what one restored RNG state repeats."""
    found = {}
    for seed in (None, 5):
        torch.manual_seed(7)
        model = net(seed=mixout.Seed(seed, scope="rank"))
        x = batch(0, 0, 0)
        outputs = [model(x).detach() for _ in range(2)]
        torch.manual_seed(7)
        found[seed] = [*outputs, model(x).detach()]
    return found


def kept_anchor(rank):
    """An anchor that differs after apply_: DDP broadcasts parameters when it is built and buffers in each pass."""
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).double()
    mixout.apply_(model, mixout.Mixout(0.5), seed=1)
    model[0]._mixed.stream.seed.subject = ""  # what was applied is not compared here
    with torch.no_grad():
        model[0].weight.fill_(rank)
        model[0]._mixed.anchor.tensor.fill_(rank)
        model[1].running_mean.fill_(rank)
    ddp = DistributedDataParallel(model)
    ddp(batch(0, 0, rank)).sum().backward()
    return {"weight": model[0].weight.max().item(), "anchor": model[0]._mixed.anchor.tensor.max().item()}


def compiled(rank):
    torch.manual_seed(100 + rank)
    model = net(p=0.5)
    ddp = DistributedDataParallel(torch.compile(model, backend="eager", fullgraph=True))
    train(ddp, lambda step, part: batch(step, part, rank))
    return {"weights": weights(model), "state": mixout.save_state(model)}


def accelerated(rank):
    from accelerate import Accelerator

    torch.manual_seed(100 + rank)
    model = net()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.05))
    for step in range(STEPS):
        for part in range(2):
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(batch(step, part, rank)).pow(2).mean())
                optimizer.step()
                optimizer.zero_grad()
    return {"weights": weights(model), "state": mixout.save_state(model), "kind": type(prepared).__name__}


def work(rank, world, folder, port):
    torch.set_num_threads(1)
    os.environ.update(
        GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
        WORLD_SIZE=str(world), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    torch.manual_seed(100 + rank)
    early = net()
    dist.init_process_group("gloo")
    results = {"late": late(early, rank), "anchor": kept_anchor(rank), "resumed": resumed(rank)}
    cases = CASES if world == 2 else ["accumulated"]
    results["cases"] = {name: run_case(name, rank) for name in cases}
    if world == 2:
        results["own"] = own_masks(rank)
        results["compiled"] = compiled(rank)
        results["accelerated"] = accelerated(rank)
        results["errors"] = disagreements(rank)
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(folder, world):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(rank, world, folder, port)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
