"""Two and four real processes over gloo against one process with all their examples."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout

PROGRAM = Path(__file__).with_name("ranks_program.py")
spec = importlib.util.spec_from_file_location("ranks_program", PROGRAM)
ranks_program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks_program)
CASES = ranks_program.CASES


# What four ranks do two do as well; they take as long as all other tests of this file.
WORLDS = [2, pytest.param(4, marks=pytest.mark.sweep)]


class Results(dict):
    """By number of ranks: what each rank wrote. They run when they are asked for."""

    def __init__(self, folders):
        super().__init__()
        self.folders = folders

    def __missing__(self, world):
        folder = self.folders.mktemp(f"world{world}")
        done = subprocess.run(
            [sys.executable, PROGRAM, folder, str(world)],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        self[world] = [torch.load(folder / f"rank{rank}.pt") for rank in range(world)]
        return self[world]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory)


def one_process(name, world, seed):
    """The same training of one process with all ranks' examples and the seed on which they agreed."""
    options, _, training = CASES[name]
    model = ranks_program.net(**options | {"checkpointed": False}, seed=seed)
    together = lambda step, part: torch.cat([ranks_program.batch(step, part, rank) for rank in range(world)])  # noqa: E731
    ranks_program.train(model, together, **training)
    return ranks_program.weights(model), mixout.save_state(model)


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("world", "name"),
    [*((2, name) for name in CASES), pytest.param(4, "accumulated", marks=pytest.mark.sweep)],
)
def test_several_ranks_are_one_process_with_all_examples(results, world, name):
    for rank in results[world]:
        got = rank["cases"][name]
        weights, state = one_process(name, world, got["state"]["agreed_seed"])
        assert_close(got["weights"], weights)
        assert got["state"]["draws"] == state["draws"]


@pytest.mark.sweep
def test_rank_0s_generator_decides_the_seed(results):
    """It is the same in two runs; the other ranks' generators differ."""
    seeds = {rank["cases"]["accumulated"]["state"]["agreed_seed"] for world in (2, 4) for rank in results[world]}
    assert len(seeds) == 1
    assert seeds != {None}


@pytest.mark.parametrize("world", WORLDS)
def test_a_group_that_comes_after_apply(results, world):
    for rank in results[world]:
        weights, _ = one_process("plain", world, rank["late"]["state"]["agreed_seed"])
        assert_close(rank["late"]["weights"], weights)


@pytest.mark.parametrize("world", WORLDS)
def test_a_restored_state_brings_the_agreed_seed(results, world):
    for rank in results[world]:
        assert all(w.equal(rank["resumed"]["resumed"][n]) for n, w in rank["resumed"]["uninterrupted"].items())


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_agree_anew_on_a_state_of_before_the_first_pass(results, world):
    assert len({rank["resumed"]["again"] for rank in results[world]}) == 1


@pytest.mark.parametrize("world", WORLDS)
def test_anchors_are_not_broadcast(results, world):
    """Trap: as a buffer, DDP re-broadcasts the anchor at every forward."""
    for number, rank in enumerate(results[world]):
        assert rank["anchor"] == {"weight": 0.0, "anchor": float(number)}


def test_a_compiled_model_under_ddp(results):
    for rank in results[2]:
        weights, _ = one_process("plain", 2, rank["compiled"]["state"]["agreed_seed"])
        assert_close(rank["compiled"]["weights"], weights)


def test_accelerate(results):
    for rank in results[2]:
        got = rank["accelerated"]
        assert got["kind"] == "DistributedDataParallel"
        weights, _ = one_process("accumulated", 2, got["state"]["agreed_seed"])
        assert_close(got["weights"], weights)


def test_each_rank_its_own_masks(results):
    first, second = (rank["own"] for rank in results[2])
    for seed in (None, 5):
        assert not first[seed][0].equal(second[seed][0])  # although the global seeds are equal
        assert not first[seed][0].equal(first[seed][1])
    assert first[None][2].equal(first[None][0])  # a restored RNG state repeats them
    assert not first[5][2].equal(first[5][0])  # with a seed the count goes on


@pytest.mark.parametrize(
    ("what", "ranks", "message"),
    [
        ("seed", {1}, "rank 0 has drawn none for it"),
        ("p", {1}, "rank 0 has drawn none for it"),
        ("anchor", {1}, "digest of layers and anchors"),
        ("p later", {0, 1}, "expected the same p on every rank, got 0.5 on rank 0 and 0.6 on rank 1; apply"),
        ("draws", {0, 1}, "expected the same draws on every rank, got {'first': 2, 'middle': 2"),
        ("own masks", {0, 1}, "none"),
    ],
)
def test_ranks_that_disagree_are_told(results, what, ranks, message):
    found = [rank["errors"][what] for rank in results[2]]
    assert {number for number, text in enumerate(found) if message in text} == ranks, found
    assert all(text == "none" for number, text in enumerate(found) if number not in ranks)


def test_one_process_knows_no_scope():
    """Without torch.distributed the default generators decide, as dropout's."""
    x = torch.ones(4)
    outputs = []
    for scope in ("all", "rank"):
        torch.manual_seed(0)
        model = mixout.apply_(nn.Sequential(nn.Linear(4, 4)), Mixout(0.5), anchor=0, seed=mixout.Seed(scope=scope))
        torch.manual_seed(1)
        outputs.append(model(x))
        assert mixout.save_state(model)["agreed_seed"] is None
    assert outputs[0].equal(outputs[1])
    with pytest.raises(ValueError, match="expected scope in"):
        mixout.Seed(scope="none")
