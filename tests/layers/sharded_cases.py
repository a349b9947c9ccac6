"""A tiny model and its short trainings, in one process or sharded: what sharded_runs.py makes in several processes."""

import contextlib

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
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


def elsewhere():
    """Weights that differ from :func:`net`'s, each row by another amount: a wrong part of them is another distance."""
    state = net().state_dict()
    return {name: w + 0.1 * torch.arange(w.numel(), dtype=w.dtype).view_as(w) for name, w in state.items()}


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
    mixout.delta.drop_(model, 0.5, {key: torch.zeros(p.shape) for key, p in net().named_parameters()}, where=mixout.ALL)
    root |= {f"dropped {key}": value for key, value in weights(model).items()}
    state = mixout.save_state(model)
    root |= {"drawn": state["draws"]} | {f"anchor of {key}": value for key, value in state.get("anchors", {}).items()}
    mixout.remove_(model)
    return root | {"plain scores": scores(model, dtype)}


def one_process(name, seed=3):
    method, made, _, applied, trained = CASES[name]
    model = mixout.apply_(net(**made), method, seed=seed, **applied)
    return found(train(model, **trained), trained.get("dtype", torch.float64))


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


def adapted(mesh=None):
    """Fingerprint and distance of adapters under each method that takes some; sharded if there is a mesh."""
    import peft

    told = {}
    for method in (Mixout(0.5), OutputAnchor(1.0), AnchorDecay(1.0, selective=True)):
        model = net()
        config = peft.LoraConfig(r=2, target_modules=["up", "down"], init_lora_weights=False)
        torch.manual_seed(1)
        peft.inject_adapter_in_model(config, model)
        if mesh is not None:
            shard(model, mesh)
        mixout.apply_(model, method, where=mixout.ALL)
        told[str(method)] = mixout.fingerprint(model), mixout.distance(model).total
    return told
