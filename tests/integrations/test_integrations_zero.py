"""Sharded optimizers on two gloo ranks against one process: torch's ZeRO-1, DeepSpeed's ZeRO-1 and 2."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mixout
from mixout import AnchorDecay, Mixout

pytestmark = [pytest.mark.sweep, pytest.mark.usefixtures("one_thread")]
PROGRAM = Path(__file__).with_name("zero_program.py")
spec = importlib.util.spec_from_file_location("zero_program", PROGRAM)
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)


def ranks(folder, which):
    """What each rank found."""
    sources = str(Path(mixout.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": sources, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), which],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(program.WORLD)]


@pytest.fixture(scope="module")
def of_torch(tmp_path_factory):
    return ranks(tmp_path_factory.mktemp("torch"), "torch")


@pytest.fixture(scope="module")
def of_deepspeed(tmp_path_factory):
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    return ranks(tmp_path_factory.mktemp("deepspeed"), "deepspeed")


@pytest.mark.parametrize("name", program.CASES)
def test_torchs_zero_trains_as_one_process(of_torch, name):
    """An anchor_decay acts once on each weight, on the ranks too that do not step it."""
    model = program.net(program.CASES[name])
    program.train(model, torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0))
    for rank in of_torch:
        assert 0 < rank[name]["own"] < 4  # of four parameters
        for key, expected in program.weights(model).items():
            torch.testing.assert_close(rank[name]["weights"][key], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeeds_zero_trains_as_one_process(of_deepspeed, stage):
    start, expected = of_deepspeed[0]["in one process"]
    for rank in of_deepspeed:
        for key, value in expected.items():
            assert not value.allclose(start[key], atol=1e-3)
            torch.testing.assert_close(rank[stage][key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("decay", "got DeepSpeed's ZeRO, which steps flat copies"),
        ("coupled", "got DeepSpeed's ZeRO, which steps flat copies"),
        ("taken apart", "ZeRO-3; shard it with FSDP2"),
        ("taken apart later", "ZeRO-3; shard it with FSDP2"),
    ],
)
def test_what_deepspeed_leaves_no_weight_for_is_refused(of_deepspeed, what, says):
    assert all(says in rank[what] for rank in of_deepspeed)


@pytest.mark.parametrize("mark", ["_hp_mapping", "ds_id"])
@pytest.mark.parametrize("decoupled", [True, False])
def test_a_decay_that_zero_would_step_over_is_refused(mark, decoupled):
    """By the marks that DeepSpeed leaves on parameters, which are all that can be seen without it."""
    model = mixout.apply_(nn.Sequential(nn.Linear(3, 2)), AnchorDecay(0.5, decoupled=decoupled))
    setattr(model[0].weight, mark, None)
    flat = nn.Parameter(torch.zeros(6))
    flat.grad = torch.ones(6)
    with pytest.raises(mixout.MixoutError, match=r"leave anchor_decay out"):
        torch.optim.SGD([flat], lr=0.1).step()


def test_zero_3_that_comes_after_apply_is_refused_in_the_first_pass():
    model = mixout.apply_(nn.Sequential(nn.Linear(3, 2)), Mixout(0.5))
    model[0].weight.ds_id = 0
    model.eval()(torch.ones(3))
    with pytest.raises(mixout.MixoutError, match=r"ZeRO-3.*FSDP2"):
        model.train()(torch.ones(3))
