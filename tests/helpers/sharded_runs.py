"""Short trainings of a tiny model, in one process or sharded over several: what test_layers_sharded.py compares.

As a script: ``python sharded_runs.py WORLD FOLDER`` runs all of them in WORLD processes, which leave what they found in
FOLDER/RANK.pt. It is imported where the same runs are made in one process.
"""

import contextlib
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mixout
from mixout import AnchorDecay, GradientMask, Mixconnect, Mixout, OutputAnchor
from mixout.methods import Dropconnect

ROWS = 8
# On CPUs torch 2.7 sums the float32 gradients of plain models under FSDP2, and cannot train with HSDP.
AVERAGES = not torch.__version__.startswith("2.7.")


class Block(nn.Module):
    """Two linears; with ``recompute`` under activation checkpointing; their results may be changed in place."""

    def __init__(self, width, inner):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.recompute = self.in_place = False

    def inside(self, x):
        if not self.in_place:
            return x + self.down(self.up(x).tanh())
        y = self.down(self.up(x).tanh_())
        y += x
        return y

    def forward(self, x):
        return checkpoint(self.inside, x, use_reentrant=False) if self.recompute else self.inside(x)


class Net(nn.Module):
    """16 rows are shared evenly by two or four ranks; 7 and 5 are not, and of 5 the last of four ranks has none."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Block(7, 16), Block(7, 5), nn.Linear(7, 3)
        self.recompute = False

    def forward(self, x):
        first = checkpoint(self.first, x, use_reentrant=False) if self.recompute else self.first(x)
        return self.head(self.second(first))


def net(*, recompute=False, frozen=False, in_place=False, dtype=torch.float64):
    """In float64, so that an error of 1e-9 shows."""
    torch.manual_seed(0)
    model = Net().bfloat16().to(dtype)
    model.first.recompute = model.second.recompute = recompute
    model.first.in_place = model.second.in_place = in_place
    model.first.up.requires_grad_(not frozen)
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
    return torch.randn(ROWS, 7, generator=torch.Generator().manual_seed(10 * step + micro), dtype=torch.float64)


def own_rows(x, rank, world):
    return x.chunk(world)[rank]


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(model, rank=0, world=1, steps=range(3), *, optimizer=None, evaluate=False, dtype=torch.float64):
    """Two micro-batches a step; no Adam, so that a wrong factor in the gradient shows."""
    optimizer = optimizer or momentum(model)
    sync = getattr(model, "set_requires_gradient_sync", lambda _: None)
    for step in steps:
        model.train()
        for micro in range(2):
            sync(micro == 1)
            out = model(own_rows(batch(step, micro), rank, world).to(dtype))
            (out.double().square().sum(1).mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        if evaluate:
            scores(model, dtype)
    return model


@torch.no_grad()
def scores(model, dtype=torch.float64):
    model.eval()
    return model(batch(99, 0).to(dtype)).double()


def weights(model):
    return {key: whole(value).detach().clone() for key, value in model.state_dict().items()}


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


FLOAT = {"dtype": torch.float32}
WIDE = MixedPrecisionPolicy(param_dtype=torch.float64)
NARROW = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
# name: method; arguments of net, of fully_shard, of apply_, of train
CASES = {
    "mixout": (Mixout(0.5), {}, {}, {}, {}),
    "few": (Mixout(0.2), {}, {}, {}, {}),
    "nothing": (Mixout(0.0), {}, {}, {}, {}),
    "anchor": (Mixout(1.0), {}, {}, {}, {}),
    "paper": (Mixout(0.5, gradient="paper"), {}, {}, {}, {}),
    "dense": (Mixout(0.5, gradient="dense"), {}, {}, {}, {}),
    "output": (Mixout(0.3, unit="output"), {}, {}, {}, {}),
    "element": (Mixconnect(0.3), {}, {}, {}, {}),
    "gaussian": (Mixconnect(0.3, noise="gaussian"), {}, {}, {}, {}),
    "zero": (Dropconnect(0.3), {}, {}, {}, {}),
    "gradient": (GradientMask(0.5), {}, {}, {}, {}),
    "decay": ([Mixout(0.5), AnchorDecay(0.1)], {}, {}, {}, {}),
    "selective": (AnchorDecay(0.5, selective=True), {}, {}, {}, {}),
    "relative": (AnchorDecay(radius=0.5, relative=True), {}, {}, {}, {}),
    "moving": (Mixout(0.5, every=2, anchor_ema=0.5), {}, {}, {}, {}),
    "layer": (GradientMask(0.5, unit="layer", every=2), {}, {}, {}, {}),
    "coupled": ([Mixout(0.5), AnchorDecay(0.1, decoupled=False)], {}, {}, {"anchor": 0}, {}),
    "other anchor": (Mixout(0.5), {}, {}, {"anchor": {k: v + 0.1 for k, v in net().state_dict().items()}}, {}),
    "small anchor": (Mixout(0.5), {}, {}, {"anchor": mixout.Anchor(dtype=torch.bfloat16)}, {}),
    "kept": (Mixout(0.5), {}, {"reshard_after_forward": False}, {}, {}),
    "layers": (Mixout(0.5), {}, {"over": "layers"}, {}, {}),
    "group": (Mixout(0.5), {}, {"over": "group"}, {}, {}),
    "root": (Mixout(0.5), {}, {"over": "root"}, {}, {}),
    "recomputed": (Mixout(0.5), {"recompute": True}, {}, {}, {}),
    "frozen": (Mixout(0.5), {"frozen": True}, {}, {}, {}),
    "evaluated": (Mixout(0.5), {}, {}, {}, {"evaluate": True}),
    "evaluated and kept": (Mixout(0.5), {}, {"reshard_after_forward": False}, {}, {"evaluate": True}),
    "float": (Mixout(0.5), FLOAT, {}, {}, FLOAT),
    "wide": (Mixout(0.5), FLOAT, {"mp_policy": WIDE}, {}, FLOAT),
    "bfloat16": (Mixout(0.5), FLOAT, {"mp_policy": NARROW}, {}, FLOAT),
}
EVERYWHERE = ("mixout", "output", "element", "decay", "selective", "relative", "moving", "kept", "small anchor")


def found(model, dtype):
    """Weights, what is measured on them, and the outputs in eval mode, mixed, then a quarter of the way and removed."""
    root = {"weights": weights(model), "scores": scores(model, dtype)}
    with contextlib.suppress(mixout.NotAppliedError):
        root |= {"distance": mixout.distance(model).total, "fingerprint": mixout.fingerprint(model)}
        root["radius used"] = max(mixout.radius_used(model).values(), default=0.0)
        mixout.interpolate_(model, 0.25)
    state = mixout.save_state(model)
    root |= {"drawn": state["draws"]} | {f"anchor of {key}": value for key, value in state.get("anchors", {}).items()}
    mixout.remove_(model)
    return root | {"plain scores": scores(model, dtype)}


def one_process(name, seed=3):
    method, made, _, applied, trained = CASES[name]
    model = mixout.apply_(net(**made), method, seed=seed, **applied)
    return found(train(model, **trained), trained.get("dtype", torch.float64))


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
    result = found(train(model, rank, world), torch.float64)
    return result if torch.get_rng_state().equal(before) else "a draw from the default generator"


def layers_before(mesh):
    """fully_shard on the layers themselves, after apply_: what it made of their classes outlives remove_."""
    model = mixout.remove_(shard(mixout.apply_(net(), Mixout(0.5), seed=3), mesh, over="layers"))
    return [isinstance(layer, FSDPModule) for layer in (model.first.up, model.second.down, model)]


def train_anchored(model, rank=0, world=1):
    """With OutputAnchor: the pass of the anchors comes between a forward and its backward."""
    optimizer = momentum(model)
    sync = getattr(model, "set_requires_gradient_sync", lambda _: None)
    for step in range(3):
        for micro in range(2):
            sync(micro == 1)
            x = own_rows(batch(step, micro), rank, world)
            out = model(x)
            loss = out.square().sum(1).mean() + mixout.output_penalty(model, x, out)
            (loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found(model, torch.float64)


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


def sharded_in_place(mesh, rank, world, **made):
    model = mixout.apply_(shard(net(in_place=True, **made), mesh), Mixout(0.5), seed=3)
    return found(train(model, rank, world), torch.float64)


def tensor_parallel(method, mesh):
    """All ranks see all rows; one weight is split over output neurons, one over input neurons (torch: evenly)."""
    model = net()
    parallelize_module(model.first, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return found(train(mixout.apply_(model, method, seed=3)), torch.float64)


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


def message(call):
    try:
        call()
    except mixout.MixoutError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def refused(mesh, rank, world):
    """What is asked for, and the error."""

    def two_passes():
        model = mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3)
        (model(batch(0, 0)) + model(batch(0, 1))).sum().backward()

    def evaluated_between():
        model = mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3)
        loss = model(batch(0, 0)).sum()
        scores(model)
        loss.backward()

    def twice_in_one_pass(**laid):
        model = mixout.apply_(shard(net(), mesh, **laid), Mixout(0.5), seed=3)
        model.forward = lambda x: model.first(model.first(x))
        model(batch(0, 0)).sum().backward()

    def layer_alone():
        model = mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3)
        scores(model)
        model.train().head(batch(0, 0))

    def tied():
        model = net()
        model.second.up = model.first.up
        mixout.apply_(shard(model, mesh, over="root"), Mixout(0.5), seed=3)

    def changed_anchor():
        model = mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3)
        other = mixout.apply_(shard(train(net()), mesh), Mixout(0.5), seed=3)
        mixout.load_state_(other, mixout.save_state(model))

    def embedding():
        model = fully_shard(nn.Sequential(nn.Embedding(8, 4), nn.Flatten()), mesh=mesh)
        mixout.apply_(model, Mixout(0.5), seed=3, where=mixout.Where(types=torch.nn.Module))

    def columns():
        model = fully_shard(
            nn.Linear(8, 4, bias=False), mesh=mesh, shard_placement_fn=lambda _: torch.distributed.tensor.Shard(1)
        )
        mixout.apply_(nn.Sequential(model), Mixout(0.5), seed=3)

    return {
        "scope": message(lambda: mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=mixout.Seed(scope="rank"))),
        "two passes": message(two_passes),
        "evaluated between": message(evaluated_between),
        "twice in one pass": message(twice_in_one_pass),
        "twice in one gathering": message(lambda: twice_in_one_pass(over="root")),
        "layer alone": message(layer_alone),
        "tied": message(tied),
        "part": message(lambda: mixout.apply_(shard(net(), mesh, over="root").first, Mixout(0.5), seed=3)),
        "host": message(
            lambda: mixout.apply_(shard(net(), mesh), Mixout(0.5), seed=3, anchor=mixout.Anchor(device="cpu"))
        ),
        "anchor": message(changed_anchor),
        "embedding": message(embedding),
        "columns": message(columns),
        "mixed outputs": message(lambda: mixout.apply_(shard(net(), mesh), [Mixout(0.5), OutputAnchor(0.1)])),
        "parallel outputs": message(lambda: tensor_parallel(OutputAnchor(0.1), mesh)),
    }


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
        "in place": lambda: sharded_in_place(mesh, rank, 2),
        "in place, recomputed": lambda: sharded_in_place(mesh, rank, 2, recompute=True),
        "encoder alone": lambda: encoder_alone(mesh, rank, 2),
        "sent plain": lambda: traffic(mesh, rank, 2, mixed=False),
        "sent mixed": lambda: traffic(mesh, rank, 2, mixed=True),
        "anchor bytes": lambda: anchor_bytes(mesh),
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
