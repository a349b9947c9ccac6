"""FSDP2 and tensor parallelism against one process, in real processes over gloo: two ranks, then four."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_cases as runs
import torch
from torch import nn

import mixout
from mixout import Mixout

pytestmark = pytest.mark.sweep

SCRIPT = Path(runs.__file__).with_name("sharded_runs.py")
# float64, three steps; other runs are as exact as what they keep weights in, or compute in. Weights move by 0.3.
TOLERANCE = {"float": 1e-6, "wide": 1e-6, "bfloat16": 0.02}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank found, by (ranks, rank)."""
    folder = tmp_path_factory.mktemp("ranks")
    sources = str(Path(mixout.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": sources}
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], env=environment, timeout=900, check=True)
    found = {
        (world, rank): torch.load(folder / str(world) / f"{rank}.pt", weights_only=False)
        for world in (2, 4)
        for rank in range(world)
    }
    for ranks, result in found.items():
        if "failed" in result:
            pytest.fail(f"{ranks}: {result['failed']}")
    return found


def assert_same(found, expected, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key == "weights":
            assert all(torch.allclose(found[key][n], w, rtol=0, atol=tolerance) for n, w in value.items())
        elif isinstance(value, torch.Tensor):
            assert torch.allclose(found[key], value, rtol=0, atol=tolerance), key
        else:
            assert found[key] == (pytest.approx(value, abs=tolerance) if isinstance(value, float) else value), key


averages = pytest.mark.skipif(not runs.AVERAGES, reason="torch 2.7 does not average gradients on CPUs")
LOW = ("float", "bfloat16")


@pytest.mark.parametrize("name", [pytest.param(n, marks=averages if n in LOW else ()) for n in runs.CASES])
def test_two_ranks_train_as_one_process(results, name):
    """Weights, outputs in eval mode, distance and fingerprint, for each method, way of sharding and way of training."""
    assert_same(results[2, 0][name], runs.one_process(name), TOLERANCE.get(name, 1e-9))


@pytest.mark.parametrize("name", runs.EVERYWHERE)
def test_four_ranks_with_uneven_and_empty_shards_train_as_one_process(results, name):
    assert_same(results[4, 0][name], runs.one_process(name))


@pytest.mark.parametrize(
    ("ranks", "name", "like"),
    [
        pytest.param(4, "replicated", "mixout", marks=averages),  # HSDP: two replicas of two shards
        (4, "resumed", "mixout"),  # a checkpoint of two ranks
        (2, "before", "decay"),  # apply_, then fully_shard
        (2, "meta", "mixout"),
        (2, "converted", "mixout"),
        (2, "recomputed outside", "mixout"),
        (2, "kept after backward", "mixout"),
        (2, "compiled", "mixout"),
        (2, "in place", "mixout"),
        (2, "in place, recomputed", "mixout"),
        (2, "encoder alone", "mixout"),
        (2, "accelerate", "mixout"),
        (2, "parallel mixout", "mixout"),
        (2, "parallel output", "output"),
        (2, "parallel element", "element"),
        (2, "parallel decay", "decay"),
    ],
)
def test_it_is_one_training_whatever_shards_it(results, ranks, name, like):
    expected = runs.one_process(like)
    if name == "converted":  # anchored in float32, and known by that ever after
        captured = mixout.apply_(runs.net(dtype=torch.float32), Mixout(0.5), seed=3)
        expected["fingerprint"] = mixout.fingerprint(captured)
    assert_same(results[ranks, 0][name], expected)


@pytest.mark.parametrize("name", ["outputs", "outputs kept", "outputs of one group"])
def test_the_anchors_pass_lies_between_a_forward_and_its_backward(results, name):
    anchored = runs.train_anchored(mixout.apply_(runs.net(), mixout.OutputAnchor(2.0)))
    free = runs.train_anchored(mixout.apply_(runs.net(), mixout.OutputAnchor(0.0)))
    assert_same(results[2, 0][name], anchored)
    assert anchored["distance"] < free["distance"]


def test_without_a_seed_the_ranks_agree_on_one(results):
    first, second = (dict(results[2, rank]["unseeded"]) for rank in range(2))
    seed = first.pop("seed")
    assert second["seed"] == seed
    assert_same(first, runs.one_process("mixout", seed=seed))


def test_the_runs_move_and_differ():
    """Else the comparisons above would compare nothing."""
    outcomes = {name: runs.one_process(name)["weights"]["first.up.weight"] for name in ("mixout", "few", "element")}
    start = runs.net().state_dict()["first.up.weight"]
    assert all(float((w - start).abs().max()) > 0.01 for w in outcomes.values())
    assert not outcomes["mixout"].allclose(outcomes["few"])
    assert not outcomes["few"].allclose(outcomes["element"])


def test_all_ranks_find_the_same(results):
    for name in ("mixout", "element", "decay"):
        for rank in range(4):
            assert_same(results[4, rank][name], results[4, 0][name], 0)


def test_nothing_is_sent_for_mixing(results):
    """The same collectives with the same bytes in the same order as FSDP2 alone, AnchorDecay included."""
    for rank in range(2):
        assert len(results[2, rank]["sent plain"]) > 20
        assert results[2, rank]["sent mixed"] == results[2, rank]["sent plain"]


def test_adapters_on_sharded_bases_are_anchored_as_on_whole_ones(results):
    for rank in range(2):
        for method, (fingerprint, distance) in runs.adapted().items():
            sharded_fingerprint, sharded_distance = results[2, rank]["adapted"][method]
            assert sharded_fingerprint == fingerprint
            assert sharded_distance == pytest.approx(distance, rel=1e-6)
            assert distance > 0


def test_anchors_are_sharded_like_the_weights(results):
    whole = sum(p.numel() * 8 for p in runs.net().parameters() if p.dim() > 1)
    for world in (2, 4):
        assert sum(results[world, rank]["anchor bytes"] for rank in range(world)) == whole


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("scope", "expected scope='all'"),
        ("two passes", "backward of each forward pass"),
        ("evaluated between", "backward of each forward pass"),
        ("twice in one pass", "backward of each forward pass"),
        ("twice in one gathering", "expected one call of each mixed layer"),
        ("layer alone", "call the module that fully_shard was called on"),
        ("tied", "leave it out with where="),
        ("part", "apply to the whole"),
        ("host", "mixout.Anchor"),
        ("mixed outputs", "beside a method that mixes"),
        ("parallel outputs", "or ones that FSDP2 gathers"),
        ("anchor", "AnchorMismatchError"),
        ("embedding", "nn.Linear alone can be mixed"),
        ("columns", "sharded by rows"),
    ],
)
def test_what_cannot_be_is_refused_on_every_rank(results, what, says):
    for rank in range(2):
        assert says in results[2, rank]["refused"][what]


def test_resharding_to_fewer_ranks_is_refused(results):
    assert "reshard_after_forward" in results[4, 0]["few ranks"]


def test_removing_leaves_what_fully_shard_did_to_a_layer(results):
    assert results[2, 0]["layers before"] == [True, True, True]


def test_fsdp1_is_refused_by_name():
    """Its constructor wants a GPU: only the class is looked at."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped._modules["inner"] = runs.net()
    with pytest.raises(mixout.MixoutError, match="fully_shard"):
        mixout.apply_(nn.Sequential(wrapped), Mixout(0.5), seed=3)


def test_zero_3_is_refused_by_name():
    """DeepSpeed marks the parameters that it has taken apart."""
    model = runs.net()
    model.head.weight.ds_id = 0
    with pytest.raises(mixout.MixoutError, match=r"ZeRO-3.*FSDP2"):
        mixout.apply_(model, Mixout(0.5))


def test_an_anchor_from_elsewhere_is_laid_out_where_two_kinds_of_parts_meet(results):
    """FSDP2 around tensor parallelism cuts rows of rows: torch says so by a placement that is no Shard."""
    expected = mixout.distance(runs.net(), runs.elsewhere(), where=mixout.ALL).total
    assert all(results[4, rank]["two dimensions"] == pytest.approx(expected, abs=1e-9) for rank in range(4))


def test_steps_in_the_backward_pass_change_masks_when_steps_after_it_do(results):
    after, within = (results[2, 0][f"steps {when}"] for when in ("after", "within"))
    torch.testing.assert_close(within, after)
    assert [bool(a.allclose(b)) for a, b in itertools.pairwise(after)] == [True, False, True, False]
