"""The callback in a Trainer of the user's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import mixout
from mixout.errors import AnchorMismatchError, MixoutError, NotAppliedError
from mixout.integrations.huggingface import MixoutCallback, attach_
from mixout.schedule import LinearRamp

pytestmark = pytest.mark.usefixtures("one_thread")


class Model(torch.nn.Module):
    """A loss that falls."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.layer(x).squeeze(-1) - labels) ** 2).mean()}


def trainer(
    model: torch.nn.Module, place: Path, *, steps: int = 4, callback: MixoutCallback | bool = True, **options
) -> transformers.Trainer:
    rows = [{"x": torch.full((4,), row / 8), "labels": torch.tensor(1.0)} for row in range(8)]
    args = transformers.TrainingArguments(
        output_dir=str(place), max_steps=steps, save_steps=2, per_device_train_batch_size=2, learning_rate=0.1,
        report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        **({"logging_strategy": "no"} | options),
    )  # fmt: skip
    callbacks = [MixoutCallback() if callback is True else callback] if callback else []
    found = transformers.Trainer(model, args, train_dataset=rows, callbacks=callbacks)
    found.remove_callback(transformers.PrinterCallback)
    return found


def mixed(seed: int = 0) -> torch.nn.Module:
    return mixout.apply_(Model(seed), mixout.Mixout(0.5), where="all")


def test_a_checkpoint_in_another_folder_is_checked_and_taken(tmp_path):
    whole = mixed()
    trainer(whole, tmp_path / "first").train()
    place = tmp_path / "moved"
    (tmp_path / "first" / "checkpoint-2").rename(place)
    resumed = mixed()
    trainer(resumed, tmp_path / "second").train(resume_from_checkpoint=str(place))
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert mixout.save_state(resumed) == mixout.save_state(whole)
    # The name and step of a checkpoint say nothing of where it came from.
    (tmp_path / "third").mkdir()
    (tmp_path / "first" / "checkpoint-4").rename(tmp_path / "third" / "checkpoint-2")
    with pytest.raises(AnchorMismatchError, match="call apply_"):
        trainer(mixed(seed=1), tmp_path / "third").train(resume_from_checkpoint=str(place))


def test_anchors_that_move_are_resumed_bit_for_bit(tmp_path):
    method = mixout.Mixout(0.5, every=2, anchor_ema=0.5)

    def run(name, resume=None, **options):
        model = mixout.apply_(Model(), method, where="all")
        trainer(model, tmp_path / name, **options).train(resume_from_checkpoint=resume)
        return [model.layer.weight.detach(), model.layer._mixed.anchor.tensor]

    whole, first = run("whole"), str(tmp_path / "whole" / "checkpoint-2")
    assert not whole[1].equal(Model().layer.weight)
    for found in (run("whole", first), run("elsewhere", first, resume_from_checkpoint=first)):
        assert all(a.equal(b) for a, b in zip(found, whole, strict=True))
    with pytest.raises(MixoutError, match="expected the anchors of step 2, which anchor_ema has moved"):
        run("another", first)


def test_in_a_search_each_trial_keeps_its_moving_anchors_in_its_own_folder(tmp_path, monkeypatch):
    """hyperparameter_search saves in run-<trial> within output_dir; no search library is needed to do so."""
    for trial in ("run-0", "run-1"):
        model = mixout.apply_(Model(), mixout.Mixout(0.5, every=2, anchor_ema=0.5), where="all")
        here = trainer(model, tmp_path)
        monkeypatch.setattr(here, "_get_output_dir", lambda *_, place=tmp_path / trial, **__: str(place))
        here.train()
        assert (tmp_path / trial / "checkpoint-2" / "mixout.pt").is_file()


def test_the_fine_tuned_weights_as_anchor_are_refused(tmp_path):
    model = mixed()
    trainer(model, tmp_path).train()
    again = mixout.apply_(mixout.remove_(model), mixout.Mixout(0.5), where="all")
    with pytest.raises(AnchorMismatchError, match="call apply_"):
        trainer(again, tmp_path, steps=6).train(resume_from_checkpoint=True)


def test_a_checkpoint_without_the_callback_is_refused(tmp_path):
    trainer(mixed(), tmp_path, callback=False).train()
    with pytest.raises(AnchorMismatchError, match="without MixoutCallback"):
        trainer(mixed(), tmp_path, steps=6).train(resume_from_checkpoint=True)


def test_a_model_without_a_method_fails_before_the_first_step(tmp_path):
    run = trainer(Model(), tmp_path)
    with pytest.raises(NotAppliedError):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.sweep
def test_two_processes_write_one_checkpoint(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_integrations_huggingface import mixed, torch, trainer\n"
        "place, checkpoint = sys.argv[1], (sys.argv[2:] or [None])[0]\n"
        "trainer(mixed(), place).train(resume_from_checkpoint=checkpoint)\n"
        # Left to the interpreter's end, one process may abort when the other is gone.
        "torch.distributed.barrier(); torch.distributed.destroy_process_group()\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    checkpoint = tmp_path / "a" / "checkpoint-2"
    for words in ([tmp_path / "a"], [tmp_path / "b", checkpoint]):
        ended = subprocess.run(
            [*launch, *map(str, words)],
            capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
    assert '"fingerprint"' in (tmp_path / "b" / "checkpoint-4" / "trainer_state.json").read_text()
    assert not list(tmp_path.rglob("*.tmp"))


class Logger(transformers.TrainerCallback):
    """Keeps what a logger would be handed, as it was at that moment."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.distances: list[float] = []

    def on_log(self, args, state, control, logs, model, **kwargs):
        self.seen.append(dict(logs))
        self.distances.append((model.layer.weight - model.layer._mixed.anchor.tensor).norm().item())


def test_every_logger_gets_p_and_the_distance_of_the_step_just_done(tmp_path):
    schedule, logger = LinearRamp(0.0, 0.8, 4), Logger()
    run = trainer(mixed(), tmp_path, callback=False, logging_strategy="steps", logging_steps=1, steps=6)
    run.add_callback(logger)  # before ours, as the loggers of report_to are
    attach_(run, schedule=schedule)
    run.train()
    training = [entry for entry in logger.seen if "loss" in entry]
    assert [entry["mixout_p"] for entry in training] == [schedule(step) for step in range(6)]
    assert [entry["anchor_distance"] for entry in training] == pytest.approx(logger.distances[:6], rel=1e-5)
    assert logger.distances[0] > 0
    kept = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["mixout_p"] for entry in kept] == [entry["mixout_p"] for entry in training]
    assert "mixout_p" not in logger.seen[-1]  # the summary of the run
    with pytest.raises(MixoutError, match="leave out one"):
        attach_(run)


@pytest.mark.parametrize(
    ("method", "lacking"), [(mixout.AnchorDecay(0.1), "mixout_p"), (mixout.GradientMask(0.5), "anchor_distance")]
)
def test_what_the_method_lacks_is_not_logged(tmp_path, method, lacking):
    model = mixout.apply_(Model(), method, where="all")
    run = trainer(model, tmp_path, steps=1, logging_strategy="steps", logging_steps=1)
    run.train()
    logged = set(run.state.log_history[0])
    assert {"mixout_p", "anchor_distance"} - logged == {lacking}
    assert ("anchor_radius_used" in logged) == isinstance(method, mixout.AnchorDecay)


def test_the_distance_of_a_lora_model_is_logged(tmp_path):
    peft = pytest.importorskip("peft")
    model = Model()
    peft.inject_adapter_in_model(peft.LoraConfig(r=1, target_modules=["layer"], init_lora_weights=False), model)
    run = trainer(mixout.apply_(model, mixout.Mixout(0.5), where="all"), tmp_path, steps=2, logging_strategy="steps",
                  logging_steps=1)  # fmt: skip
    run.train()
    logged = [entry["anchor_distance"] for entry in run.state.log_history if "loss" in entry]
    layer = model.layer
    delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert logged[1] == pytest.approx(delta.norm().item(), rel=1e-5)
    assert logged[0] != logged[1]


@pytest.mark.parametrize("restore", [True, False])
def test_a_resumed_run_goes_on_with_its_schedule(tmp_path, restore):
    def scheduled(place, **options):
        model = mixed()
        run = trainer(model, place, callback=MixoutCallback(schedule=LinearRamp(0.0, 0.9, 6)), steps=6, **options)
        return model, run

    whole, run = scheduled(tmp_path / "whole")
    run.train()
    place = str(tmp_path / "whole" / "checkpoint-2")
    resumed, run = scheduled(tmp_path / "resumed")
    run.train(resume_from_checkpoint=place)
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert mixout.save_state(resumed)["p"] == mixout.save_state(whole)["p"] == LinearRamp(0.0, 0.9, 6)(5)
    if restore:  # the Trainer makes the callback anew, and cannot know the schedule
        _, run = scheduled(tmp_path / "restored", restore_callback_states_from_checkpoint=True)
    else:
        run = trainer(mixed(), tmp_path / "forgotten", steps=6)
    with pytest.raises(MixoutError, match="expected the schedule of p"):
        run.train(resume_from_checkpoint=place)


def test_p_without_a_schedule_is_restored(tmp_path):
    model = mixed()
    mixout.set_p_(model, 0.25)
    trainer(model, tmp_path / "first").train()
    resumed = mixed()
    trainer(resumed, tmp_path / "second").train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    assert mixout.save_state(resumed)["p"] == 0.25
    assert torch.equal(resumed.layer.weight, model.layer.weight)


def test_a_schedule_needs_a_method_that_mixes(tmp_path):
    model = mixout.apply_(Model(), mixout.AnchorDecay(0.1))
    with pytest.raises(NotAppliedError, match="mixing"):
        trainer(model, tmp_path, callback=MixoutCallback(schedule=LinearRamp(0.0, 0.9, 6))).train()
