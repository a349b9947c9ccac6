"""OutputAnchor in a Trainer: its weight beside the loss is the same however a batch is cut up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from anchored_trainer_program import anchored_trainer, trained

import mixout

pytestmark = pytest.mark.usefixtures("one_thread")
PROGRAM = Path(__file__).with_name("anchored_trainer_program.py")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_accumulated_batches_weigh_the_penalty_as_one_batch_does(kind, tmp_path):
    whole, halves = (trained(kind, "output_anchor(3.0)", *sizes, tmp_path) for sizes in ((4, 1), (2, 2)))
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-6)
    other = trained(kind, "output_anchor(6.0)", 4, 1, tmp_path)
    assert (other - whole).abs().max() > 100 * (halves - whole).abs().max()


def test_label_smoothing_leaves_the_labels_to_the_penalty(tmp_path):
    """The Trainer takes them out of the batch; without them the prompt would count too."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=2))
    mixout.apply_(model, mixout.OutputAnchor(1.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(1, 40, (2, 6))
    batch = {"input_ids": ids, "labels": torch.where(torch.arange(6) < 4, -100, ids)}
    args = transformers.TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    held, plain = (
        of(model, args).compute_loss(model, dict(batch)) for of in (anchored_trainer(), transformers.Trainer)
    )
    expected = mixout.output_penalty(model, batch, model(**batch))
    torch.testing.assert_close(held - plain, expected, rtol=1e-4, atol=1e-6)
    everything = mixout.output_penalty(model, {"input_ids": ids}, model(input_ids=ids))
    assert not torch.isclose(everything, expected, rtol=1e-3)


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
