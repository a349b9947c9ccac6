"""Ranks have the same masks whatever each of them did before, and are told if they applied different things.

Each scenario runs in two real processes of its own over gloo. As a script, ``python test_ranks_agree.py FOLDER`` runs
all of them: torch is imported once, and the ranks are forked from that. They leave through os._exit, since gloo
sometimes aborts while the interpreter shuts down.
"""

import copy
import os
import signal
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import mixout
from mixout import AnchorDecay, Mixconnect, Mixout

pytestmark = pytest.mark.sweep

WORLD = 2
PATIENCE = timedelta(seconds=4)
WIDTH = 32  # two masks are equal by accident once in 2^32


def net(width=WIDTH):
    """The same weights on every rank; the global generators stay different."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)).double()


def masks(model, passes=3):
    """Kept columns by pass and layer, of this rank alone: DDP would average differences away."""
    found = []
    for _ in range(passes):
        model.zero_grad()
        width = model[0].in_features
        model(torch.linspace(0.5, 1.5, width, dtype=torch.float64).expand(4, width)).sum().backward()
        found += [(layer.weight.grad != 0).any(0).tolist() for layer in (model[0], model[2])]
    return found


# What ranks do otherwise, and what masks each model has afterwards, by name.


def nothing_else(rank):
    return {"model": masks(mixout.apply_(net(), Mixout(0.5)))}


def a_training_pass_of_a_copy_on_rank_0(rank):
    model = net()
    if rank == 0:
        masks(mixout.apply_(copy.deepcopy(model), Mixout(0.5)), passes=1)
    return {"model": masks(mixout.apply_(model, Mixout(0.5)))}


def a_training_pass_of_a_copy_with_another_method_on_rank_0(rank):
    model = net()
    if rank == 0:
        masks(mixout.apply_(copy.deepcopy(model), Mixout(0.9)), passes=1)
    return {"model": masks(mixout.apply_(model, Mixout(0.5)))}


def a_look_at_coverage_of_a_copy_on_rank_0(rank):
    model = net()
    if rank == 0:
        str(mixout.coverage(mixout.apply_(copy.deepcopy(model), Mixout(0.5))))
    return {"model": masks(mixout.apply_(model, Mixout(0.5)))}


def applied_twice_on_rank_1(rank):
    model = mixout.apply_(net(), Mixout(0.5))
    if rank == 1:
        mixout.apply_(mixout.remove_(model), Mixout(0.5))
    return {"model": masks(model)}


def another_model_on_rank_1(rank):
    if rank == 1:
        mixout.apply_(net(48), Mixconnect(0.5))
    return {"model": masks(mixout.apply_(net(), Mixout(0.5)))}


def a_copy_before_the_first_draw(rank):
    """An average of weights, made before training: each rank draws for it at another time."""
    model = mixout.apply_(net(), Mixout(0.5))
    average = copy.deepcopy(model)
    if rank == 0:
        return {"average": masks(average), "model": masks(model)}
    return {"model": masks(model), "average": masks(average)}


def a_copy_before_the_first_draw_on_rank_0(rank):
    model = mixout.apply_(net(), Mixout(0.5))
    if rank == 0:
        masks(copy.deepcopy(model), passes=1)
    return {"model": masks(model)}


def two_models_in_another_order(rank):
    models = {"narrow": net(), "wide": net(48)}
    for name in sorted(models, reverse=rank == 1):
        mixout.apply_(models[name], Mixout(0.5))
    return {name: masks(models[name]) for name in sorted(models, reverse=rank == 1)}


def a_second_process_group(rank):
    first = mixout.apply_(net(), Mixout(0.5))
    before = masks(first)
    if rank == 0:
        mixout.apply_(net(48), Mixout(0.5))
    dist.destroy_process_group()
    meet(rank, "again")
    return {"before": before, "first": masks(first), "second": masks(mixout.apply_(net(48), Mixout(0.5)))}


AGREE = (
    nothing_else,
    a_training_pass_of_a_copy_on_rank_0,
    a_training_pass_of_a_copy_with_another_method_on_rank_0,
    a_look_at_coverage_of_a_copy_on_rank_0,
    applied_twice_on_rank_1,
    another_model_on_rank_1,
    a_copy_before_the_first_draw,
    a_copy_before_the_first_draw_on_rank_0,
    two_models_in_another_order,
    a_second_process_group,
)


# What each rank applies: (method, options of apply_), of rank 0 and of rank 1.
DIFFERENT = {
    "another p": [(Mixout(0.5), {}), (Mixout(0.6), {})],
    "another method": [(Mixout(0.5), {}), (Mixconnect(0.5), {})],
    "one method more": [(Mixout(0.5), {}), ([Mixout(0.5), AnchorDecay(0.1)], {})],
    "other layers": [(Mixout(0.5), {}), (Mixout(0.5), {"where": "0"})],
    "another anchor": [(Mixout(0.5), {}), (Mixout(0.5), {"anchor": 0})],
    "another seed": [(Mixout(0.5), {"seed": 1}), (Mixout(0.5), {"seed": 2})],
    "a seed on one rank": [(Mixout(0.5), {}), (Mixout(0.5), {"seed": 2})],
    "nothing on rank 0": [None, (Mixout(0.5), {})],
}


def differ(rank, name):
    """What applying and a training pass raise, and how long that took."""
    applied, start = DIFFERENT[name][rank], time.monotonic()
    try:
        if applied is not None:
            method, options = applied
            masks(mixout.apply_(net(), method, **options), passes=1)
        raised = None
    except mixout.MixoutError as error:
        raised = type(error).__name__
    if rank == 0 and raised is None:
        time.sleep(PATIENCE.total_seconds() + 2)  # rank 0 holds the store that rank 1 asks
    return {"raised": raised, "seconds": time.monotonic() - start}


def scenarios():
    found = {run.__name__: run for run in AGREE}
    return found | {name: lambda rank, name=name: differ(rank, name) for name in DIFFERENT}


# The ranks.


def meet(rank, place):
    dist.init_process_group("gloo", init_method=f"file://{Path.cwd() / place}", rank=rank, world_size=WORLD)


def rank_main(folder, run, rank):
    try:
        os.chdir(folder)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        signal.alarm(120)
        torch.set_num_threads(1)
        mixout.seeds.PATIENCE = PATIENCE
        torch.manual_seed(100 + rank)
        meet(rank, "meet")
        result = run(rank)
    except BaseException:
        result = {"failed": traceback.format_exc(limit=-2)}
    torch.save(result, f"{rank}.part")
    os.rename(f"{rank}.part", f"{rank}.pt")
    while not (folder / f"{1 - rank}.pt").exists():  # rank 0 holds the store
        time.sleep(0.02)
    os._exit(0)


def main(folder):
    for name, run in scenarios().items():
        place = folder / name.replace(" ", "_")
        place.mkdir()
        children = []
        for rank in range(WORLD):
            child = os.fork()
            if child == 0:
                rank_main(place, run, rank)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


# The tests.


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By scenario: what both ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    sources = str(Path(mixout.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": sources}
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, timeout=600, check=True)
    return {
        name: [torch.load(folder / name.replace(" ", "_") / f"{rank}.pt") for rank in range(WORLD)]
        for name in scenarios()
    }


@pytest.mark.parametrize("name", [run.__name__ for run in AGREE])
def test_ranks_have_the_same_masks(results, name):
    first, second = results[name]
    for found in (first, second):
        assert "failed" not in found, found["failed"]
    assert first.keys() == second.keys()
    for model in first:
        assert first[model] == second[model], model
        assert len({tuple(mask) for mask in first[model]}) == len(first[model])  # each pass, each layer its own


@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_that_applied_different_things_are_told(results, name):
    assert all("failed" not in found for found in results[name]), results[name]
    told = results[name][1]
    assert told["raised"] == "RankMismatchError"
    assert told["seconds"] < PATIENCE.total_seconds() + 10


if __name__ == "__main__":
    main(Path(sys.argv[1]))
