"""OutputAnchor in a Trainer: its weight beside the loss is the same however a batch is cut up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from anchored_trainer_program import trained

pytestmark = pytest.mark.usefixtures("one_thread")
PROGRAM = Path(__file__).with_name("anchored_trainer_program.py")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_accumulated_batches_weigh_the_penalty_as_one_batch_does(kind, tmp_path):
    whole, halves = (trained(kind, "output_anchor(3.0)", *sizes, tmp_path) for sizes in ((4, 1), (2, 2)))
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-6)
    other = trained(kind, "output_anchor(6.0)", 4, 1, tmp_path)
    assert (other - whole).abs().max() > 100 * (halves - whole).abs().max()


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_two_processes_weigh_the_penalty_as_one_does(kind, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launch, str(PROGRAM), kind, "output_anchor(3.0)", str(tmp_path)],
        capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    whole = trained(kind, "output_anchor(3.0)", 4, 1, tmp_path / "whole")
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), whole, rtol=1e-4, atol=1e-6)
