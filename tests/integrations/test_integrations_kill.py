"""Killed at a random step, resumed: the weights of the run that was not killed, bit for bit, under each trainer."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
from pathlib import Path

import lightning
import pytest
import torch
import transformers
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset

import mixout
from mixout.integrations import huggingface
from mixout.integrations import lightning as adapter
from mixout.schedule import LinearRamp

pytestmark = [
    pytest.mark.usefixtures("one_thread", "fresh_accelerate"),
    # Advice of Lightning's on workers and folders, and what it calls of torch.
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
]


class Network(lightning.LightningModule):
    """As the Trainer of transformers takes it, and as Lightning does."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        mixout.apply_(self.model, [mixout.Mixout(0.5), mixout.AnchorDecay(0.1)])

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.model(x).squeeze(1) - labels).square().mean()}

    def training_step(self, batch, number):
        return self(*batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.0)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    return x, x.sum(dim=1)


def under_trainer(folder: Path) -> nn.Module:
    network = Network()
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=12, save_steps=2, per_device_train_batch_size=4, learning_rate=0.05,
        report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    data = [{"x": x, "labels": y} for x, y in zip(*rows(), strict=True)]
    trainer = transformers.Trainer(network, args, train_dataset=data)
    trainer.remove_callback(transformers.PrinterCallback)
    huggingface.attach_(trainer, schedule=LinearRamp(0.0, 0.6, 10))
    trainer.train(resume_from_checkpoint=bool(list(folder.glob("checkpoint-*"))) or None)
    return network


def under_lightning(folder: Path) -> nn.Module:
    network, last = Network(), folder / "last.ckpt"
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[adapter.MixoutCallback(schedule=LinearRamp(0.0, 0.6, 10)), ModelCheckpoint(folder, save_last=True)],
    )  # fmt: skip
    torch.manual_seed(5)
    loader = DataLoader(TensorDataset(*rows()), batch_size=4, shuffle=True)
    trainer.fit(network, loader, ckpt_path=last if last.exists() else None)
    return network


@pytest.mark.parametrize("trainer", ["trainer", "lightning", "plain loop"])
# A fork, so that a victim need not load the trainers again; from 3.12 on Python warns of threads, of which none works.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_killed_at_a_random_step(trainer, tmp_path, example):
    run = {"trainer": under_trainer, "lightning": under_lightning, "plain loop": example("plain_loop")["train"]}[
        trainer
    ]
    step = random.Random().randrange(5, 12)

    def victim() -> None:
        steps = itertools.count(1)
        register_optimizer_step_post_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if next(steps) == step else None
        )
        run(tmp_path / "killed")

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    process = multiprocessing.get_context("fork").Process(target=victim)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"step {step}"
    taken = itertools.count()
    handle = register_optimizer_step_post_hook(lambda *_: next(taken))
    resumed = run(tmp_path / "killed")
    handle.remove()
    whole = run(tmp_path / "whole")
    assert 0 < next(taken) < {"plain loop": 20}.get(trainer, 12), f"not resumed, killed at step {step}"
    for name, parameter in whole.named_parameters():
        assert parameter.equal(resumed.get_parameter(name)), f"{name}, killed at step {step}"
    assert mixout.save_state(resumed) == mixout.save_state(whole)
