"""A run whose loss gets out of hand is seen as such, whenever that begins and however often it is saved."""

from __future__ import annotations

import math

import pytest
from tests.finetune.conftest import interrupted

from mixout.finetune import outcome
from mixout.finetune.train import finetune
from mixout.finetune.trainer import TextTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

FACTOR = 5  # more than the four times that are too much


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch):
    """Lets the training loss of a step be what a rule says, so often that of the model: ``rule(step)``, from 1."""
    compute = TextTrainer.compute_loss

    def set_rule(rule):
        def changed(self, model, inputs, *args, **options):
            loss = compute(self, model, inputs, *args, **options)
            return loss * rule(self.state.global_step + 1) if model.training else loss

        monkeypatch.setattr(TextTrainer, "compute_loss", changed)

    return set_rule


@pytest.fixture
def still(settings):
    """Settings of a run of 30 steps in 5 epochs in which the model all but stays where it is."""

    def build(**changes):
        return settings(**{"epochs": 5.0, "method": "dropout(0)", "learning_rate": 1e-30, "evaluate": "end"} | changes)

    return build


@pytest.mark.parametrize("save", ["no", pytest.param("epoch", marks=pytest.mark.sweep), 4])
@pytest.mark.parametrize(
    ("rule", "status", "steps"),
    [
        (lambda _: 1, "finished", 30),
        (lambda step: 1 if step == 1 else FACTOR, "diverged", 10),  # before there are ten steps of another kind
        (lambda step: FACTOR if step > 10 else 1, "diverged", 20),
        (lambda step: 3 * FACTOR if step > 16 else 1, "diverged", 20),
        (lambda step: math.nan if step == 13 else 1, "diverged", 20),
    ],
)
def test_status_and_step_do_not_depend_on_checkpoints(still, losses, tmp_path, save, rule, status, steps):
    losses(rule)
    record = finetune(still(save=save), tmp_path / "out")
    assert (record.status, record.steps) == (status, steps)


def test_the_last_steps_are_looked_at_too(still, losses, tmp_path):
    losses(lambda step: 2 * FACTOR if step > 17 else 1)
    record = finetune(still(max_steps=25), tmp_path / "out")
    assert (record.status, record.steps) == ("diverged", 25)


@pytest.mark.parametrize("at", [4, 8, 12, 16])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(still, losses, tmp_path, at):
    # Ten steps are needed to tell: who has forgotten one of them goes on to step 30.
    losses(lambda step: 1.0 if step < 11 else 4.35)
    chosen = still(save=4)
    whole = finetune(chosen, tmp_path / "whole")
    interrupted(chosen, tmp_path / "cut", at + 1)
    again = finetune(chosen, tmp_path / "cut", resume=True)
    assert (whole.status, whole.steps) == ("diverged", 20)
    assert (again.status, again.steps, again.training) == (whole.status, whole.steps, whole.training)


@pytest.mark.parametrize("save", ["no", 5])
def test_a_language_models_first_batch_may_be_an_easy_one(causal, losses, tmp_path, save):
    losses(lambda step: 0.01 if step == 1 else 1)
    record = finetune(causal(epochs=3.0, method="plain", learning_rate=1e-30, save=save), tmp_path / "out")
    assert record.status == "finished"
    assert record.verdict.startswith("it has hardly learned: dev loss ")


@pytest.mark.parametrize("save", ["no", "epoch"])
def test_a_rate_that_is_far_too_high_is_never_to_be_raised(settings, tmp_path, save):
    hot = settings(optimizer="sgd", learning_rate=1e5, max_grad_norm=0.0, epochs=5.0, method="plain", save=save)
    record = finetune(hot, tmp_path / "out")
    assert record.status == "diverged"
    assert outcome.diverges(record.training[-1].loss, math.log(2))
    assert "--learning-rate 1e4" in record.verdict
