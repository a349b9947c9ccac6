"""What is refused where weights lie in parts on several ranks."""

import torch
from sharded_cases import (
    batch,
    found,
    net,
    scores,
    shard,
    train,
)
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import mixout
from mixout import Mixout, OutputAnchor


def tensor_parallel(method, mesh):
    """All ranks see all rows; one weight is split over output neurons, one over input neurons (torch: evenly)."""
    model = net()
    parallelize_module(model.first, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return found(train(mixout.apply_(model, method, seed=3)), torch.float64)


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
