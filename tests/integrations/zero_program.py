"""Training with an optimizer that is sharded over two ranks: ``python zero_program.py FOLDER torch|deepspeed``.

Every rank writes what it found to FOLDER/RANK.pt. The ranks are forked, and leave through os._exit: gloo sometimes
aborts while the interpreter shuts down, after everything is done.
"""

import os
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mixout
from mixout import AnchorDecay, Mixout

WORLD, STEPS, ROWS = 2, 3, 8
EXAMPLE = Path(__file__).parents[2] / "examples" / "deepspeed_zero.py"
CASES = {
    "mixout": Mixout(0.5),
    "decay": [Mixout(0.5), AnchorDecay(0.5)],
    "coupled": [Mixout(0.5), AnchorDecay(0.5, decoupled=False)],
}


def net(methods):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    return mixout.apply_(model, methods, seed=3)


def batch(step):
    return torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(model, optimizer, rank=0, world=1):
    for step in range(STEPS):
        model(batch(step).chunk(world)[rank]).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def with_torch(rank):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns where a test imports this file

    found = {}
    for name, methods in CASES.items():
        model = net(methods)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.05, weight_decay=0.0)
        train(DistributedDataParallel(model), optimizer, rank, WORLD)
        found[name] = {"weights": weights(model), "own": sum(len(g["params"]) for g in optimizer.optim.param_groups)}
    return found


def in_one_process(example):
    """The example's training by hand, with all rows and without DeepSpeed: weights before and after."""
    model = mixout.apply_(example["network"](), Mixout(0.9), where="0|2", seed=1)
    start = weights(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, eps=1e-4, weight_decay=0.0)
    for step in range(example["STEPS"]):
        x = example["rows"](step)
        (model(x).squeeze(1) - x[:, 0]).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return start, weights(model)


def message(call):
    try:
        call()
    except mixout.MixoutError as error:
        return str(error)
    return "no error"


def with_deepspeed(rank):
    import deepspeed

    # On a CPU it would compile its own reduction in shared memory, for a minute; without that gloo reduces.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    example = runpy.run_path(str(EXAMPLE))

    def one_step(model, stage):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        config = {
            "train_batch_size": ROWS,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        engine.backward(engine(batch(0).float().chunk(WORLD)[rank]).pow(2).mean())
        engine.step()

    def taken_apart():
        with deepspeed.zero.Init(config_dict_or_path={"train_batch_size": ROWS, "zero_optimization": {"stage": 3}}):
            model = nn.Linear(4, 4)
        mixout.apply_(model, Mixout(0.5))

    return {
        "in one process": in_one_process(example),
        1: weights(example["train"](1)),
        2: weights(example["train"](2)),
        "decay": message(lambda: one_step(net(AnchorDecay(0.5)).float(), 1)),
        "coupled": message(lambda: one_step(net(AnchorDecay(0.5, decoupled=False)).float(), 2)),
        "taken apart": message(taken_apart),
        "taken apart later": message(lambda: one_step(net(Mixout(0.5)).float(), 3)),
    }


def rank_main(rank, folder, which):
    code = 1
    try:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), GLOO_SOCKET_IFNAME="lo")
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
        torch.save({"torch": with_torch, "deepspeed": with_deepspeed}[which](rank), folder / f"{rank}.pt")
        dist.barrier()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    os._exit(code)


def main(folder, which):
    children = []
    for rank in range(WORLD):
        child = os.fork()
        if child == 0:
            rank_main(rank, folder, which)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
