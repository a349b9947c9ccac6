"""What test_layers_sharded.py compares: the trainings of sharded_cases.py, and others, in two and in four processes.

``python sharded_runs.py FOLDER [NAME...]`` runs them; each process leaves what it found in FOLDER/WORLD/RANK.pt.
"""

import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sharded_cases import (
    AVERAGES,
    CASES,
    EVERYWHERE,
    Net,
    adapted,
    batch,
    elsewhere,
    found,
    momentum,
    net,
    own_rows,
    scores,
    shard,
    train,
    train_anchored,
)
from sharded_refused import message, refused, tensor_parallel
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

import mixout
from mixout import AnchorDecay, Mixout, OutputAnchor


def sharded(name, mesh, rank, world, *, before=False):
    method, made, laid, applied, trained = CASES[name]
    model = net(**made)
    if before:
        mixout.apply_(model, method, seed=3, **applied)
    shard(model, mesh, **laid)
    if not before:
        mixout.apply_(model, method, seed=3, **applied)
    return found(train(model, rank, world, **trained), trained.get("dtype", torch.float64))


def unseeded(mesh, rank, world):
    """Without a seed the ranks agree on one, whatever their own generators hold."""
    model = mixout.apply_(shard(net(), mesh), Mixout(0.5))
    torch.manual_seed(rank)
    train(model, rank, world)
    return {"seed": mixout.save_state(model)["agreed_seed"]} | found(model, torch.float64)


def from_meta(mesh, rank, world):
    """The model is made without memory, sharded, given memory and then weights."""
    with torch.device("meta"):
        model = Net().double()
    shard(model, mesh).to_empty(device="cpu")
    with torch.no_grad():
        for key, value in net().state_dict().items():
            own = model.get_parameter(key)
            own.copy_(mixout.parts.laid_out(value, own))
    scores(model)  # FSDP2 looks for hooks in its first forward; here they come later
    mixout.apply_(model, Mixout(0.5), seed=3)
    return found(train(model, rank, world), torch.float64)


def recomputed_outside(mesh, rank, world):
    """A whole FSDP2 module under checkpointing, whose recomputation gathers nothing: no draw may be missed there."""
    model = mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3)
    model.recompute = True
    before = torch.get_rng_state()
    train(model, rank, world)
    drawn = not torch.get_rng_state().equal(before)
    return "a draw from the default generator" if drawn else found(model, torch.float64)


def layers_before(mesh):
    """fully_shard on the layers themselves, after apply_: what it made of their classes outlives remove_."""
    model = mixout.remove_(shard(mixout.apply_(net(), Mixout(0.5), seed=3), mesh, over="layers"))
    return [isinstance(layer, FSDPModule) for layer in (model.first.up, model.second.down, model)]


def outputs(mesh, rank, world, **laid):
    return train_anchored(mixout.apply_(shard(net(), mesh, **laid), OutputAnchor(2.0)), rank, world)


def converted(mesh, rank, world):
    """Another dtype after apply_: FSDP2 gets other tensors, and the hooks must be on those."""
    model = mixout.apply_(shard(net(dtype=torch.float32), mesh), Mixout(0.5), seed=3)
    return found(train(model.double(), rank, world), torch.float64)


def kept_after_backward(mesh, rank, world):
    """Accumulation without resharding in between: the second micro-batch must not see the first's Phi."""
    model = mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3)
    optimizer = momentum(model)
    for step in range(3):
        for micro in range(2):
            model.set_requires_gradient_sync(micro == 1)
            model.set_reshard_after_backward(micro == 1)
            (model(own_rows(batch(step, micro), rank, world)).square().sum(1).mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found(model, torch.float64)


def steps_of_zero(mesh, *, within):
    """The outputs of five passes with a period of two steps, each step after the backward pass or ``within`` it."""
    model = mixout.apply_(shard(net(), mesh), Mixout(0.5, every=2), seed=3, anchor=elsewhere())
    each, outs = {p: torch.optim.SGD([p], lr=0.0) for p in model.parameters()}, []
    for p in each if within else ():
        p.register_post_accumulate_grad_hook(lambda p: each[p].step())
    for _ in range(5):
        outs.append(model(batch(0, 0)))
        outs[-1].sum().backward()
        for optimizer in () if within else each.values():
            optimizer.step()
    return torch.stack(outs).detach()


def sharded_in_place(mesh, rank, world, **made):
    model = mixout.apply_(shard(net(in_place=True, **made), mesh), Mixout(0.5), seed=3)
    return found(train(model, rank, world), torch.float64)


def two_dimensions():
    """||w - u|| of a model in parts of FSDP2's and of tensor parallelism at once, u from a whole state dict."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "parallel"))
    start, model = elsewhere(), net()
    plan = {"first.up": ColwiseParallel(), "first.down": RowwiseParallel()}
    fully_shard(parallelize_module(model, mesh["parallel"], plan), mesh=mesh["shard"])
    return mixout.distance(model, start, where=mixout.ALL).total


def encoder_alone(mesh, rank, world):
    """An FSDP2 module within the whole is called by itself between steps, as generate and probes do."""
    model = mixout.apply_(shard(net(), mesh, reshard_after_forward=False), Mixout(0.5), seed=3)
    optimizer = momentum(model)
    for step in range(3):
        train(model, rank, world, range(step, step + 1), optimizer=optimizer)
        model.eval()
        with torch.no_grad():
            model.first(batch(99, 0))
    return found(model, torch.float64)


def with_accelerate(rank, world):
    """Accelerator.prepare, told that this machine may shard, which it believes of GPUs only."""
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # asked for, not used: the ranks have met
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["Block"]
    )
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    model = net()
    model, optimizer = accelerator.prepare(model, momentum(model))
    mixout.apply_(model, Mixout(0.5), seed=3)
    return found(train(model, rank, world, optimizer=optimizer), torch.float64)


class Sent(TorchDispatchMode):
    """The collectives of what runs within, and the bytes of their tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            leaves = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.calls.append((func.name(), sum(t.nbytes for t in leaves)))
        return func(*args, **(kwargs or {}))


def traffic(mesh, rank, world, *, mixed):
    model = shard(net(), mesh)
    if mixed:
        mixout.apply_(model, [Mixout(0.5), AnchorDecay(0.1)], seed=3)
    with Sent() as sent:
        train(model, rank, world)
    return sent.calls


def anchor_bytes(mesh):
    model = mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3)
    return sum(m._mixed.anchor.tensor.to_local().nbytes for m in model.modules() if hasattr(m, "_mixed"))


def half_way(mesh, rank, world, folder):
    """Two of three steps, then a checkpoint."""
    model = mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3)
    optimizer = momentum(model)
    train(model, rank, world, range(2), optimizer=optimizer)
    state, moments = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": moments}, checkpoint_id=folder / "checkpoint")
    return mixout.save_state(model)


def resumed(mesh, rank, world, folder):
    """The third step, with another number of ranks than saved the checkpoint."""
    model = mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3)
    optimizer = momentum(model)
    state, moments = get_state_dict(model, optimizer)
    dcp.load({"model": state, "optimizer": moments}, checkpoint_id=folder / "checkpoint")
    set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=moments)
    mixout.load_state_(model, torch.load(folder / "2" / "0.pt", weights_only=False)["half way"])
    return found(train(model, rank, world, range(2, 3), optimizer=optimizer), torch.float64)


def compiled(mesh, rank, world):
    model = shard(net(), mesh)
    mixout.apply_(model, Mixout(0.5), seed=3)
    model.first.compile(backend="eager")
    return found(train(model, rank, world), torch.float64)


def two_ranks(mesh, rank, folder):
    runs = {name: (lambda name=name: sharded(name, mesh, rank, 2)) for name in CASES}
    return runs | {
        "half way": lambda: half_way(mesh, rank, 2, folder),
        "before": lambda: sharded("decay", mesh, rank, 2, before=True),
        "unseeded": lambda: unseeded(mesh, rank, 2),
        "meta": lambda: from_meta(mesh, rank, 2),
        "recomputed outside": lambda: recomputed_outside(mesh, rank, 2),
        "layers before": lambda: layers_before(mesh),
        "outputs": lambda: outputs(mesh, rank, 2),
        "outputs kept": lambda: outputs(mesh, rank, 2, reshard_after_forward=False),
        "outputs of one group": lambda: outputs(mesh, rank, 2, over="root"),
        "converted": lambda: converted(mesh, rank, 2),
        "kept after backward": lambda: kept_after_backward(mesh, rank, 2),
        "compiled": lambda: compiled(mesh, rank, 2),
        "steps after": lambda: steps_of_zero(mesh, within=False),
        "steps within": lambda: steps_of_zero(mesh, within=True),
        "in place": lambda: sharded_in_place(mesh, rank, 2),
        "in place, recomputed": lambda: sharded_in_place(mesh, rank, 2, recompute=True),
        "encoder alone": lambda: encoder_alone(mesh, rank, 2),
        "sent plain": lambda: traffic(mesh, rank, 2, mixed=False),
        "sent mixed": lambda: traffic(mesh, rank, 2, mixed=True),
        "anchor bytes": lambda: anchor_bytes(mesh),
        "adapted": lambda: adapted(mesh),
        "parallel mixout": lambda: tensor_parallel(CASES["mixout"][0], mesh),
        "parallel element": lambda: tensor_parallel(CASES["element"][0], mesh),
        "parallel output": lambda: tensor_parallel(CASES["output"][0], mesh),
        "parallel decay": lambda: tensor_parallel(CASES["decay"][0], mesh),
        "refused": lambda: refused(mesh, rank, 2),
        "accelerate": lambda: with_accelerate(rank, 2),
    }


def four_ranks(mesh, rank, folder):
    replicated = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    runs = {name: (lambda name=name: sharded(name, mesh, rank, 4)) for name in EVERYWHERE}
    return runs | {
        "resumed": lambda: resumed(mesh, rank, 4, folder),
        "replicated": lambda: sharded("mixout", replicated, rank, 4) if AVERAGES else None,
        "two dimensions": two_dimensions,
        "few ranks": lambda: message(
            lambda: mixout.apply_(shard(net(), mesh, reshard_after_forward=2), Mixout(0.5), seed=3)(batch(0, 0))
        ),
        "anchor bytes": lambda: anchor_bytes(mesh),
    }


def rank_main(rank, world, folder):
    """One rank's runs; leaves without Python's end, in which gloo sometimes aborts."""
    result = {}
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
        mesh = init_device_mesh("cpu", (world,))
        for name, run in {2: two_ranks, 4: four_ranks}[world](mesh, rank, folder).items():
            if not ONLY or name in ONLY:
                result[name] = run()
    except BaseException:
        result["failed"] = f"in {name}: {traceback.format_exc()}"
    (folder / str(world)).mkdir(exist_ok=True)
    torch.save(result, folder / str(world) / f"{rank}.pt")
    os._exit("failed" in result)


def main(folder):
    torch.set_num_threads(1)
    for world in (2, 4):
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                rank_main(rank, world, folder)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


ONLY = sys.argv[2:]
if __name__ == "__main__":
    main(Path(sys.argv[1]))
