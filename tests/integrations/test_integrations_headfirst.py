"""LP-FT: the head alone first, then everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import mixout
from mixout.integrations.huggingface import HeadFirst, MixoutCallback
from mixout.record import applications

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_accelerate")
ROWS = [{"input_ids": [1 + n % 7, 2 + n % 5, 3], "labels": n % 2} for n in range(8)]


def bert(tiny_bert: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification.from_pretrained(tiny_bert)
    return mixout.apply_(model, mixout.Mixout(0.5))


class Spy(transformers.TrainerCallback):
    """After each step which weights have moved, and whether layers mixed."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.start = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.steps: list[tuple[set[str], bool]] = []

    def on_step_end(self, args, state, control, **kwargs):
        moved = {name for name, p in kwargs["model"].named_parameters() if not torch.equal(p, self.start[name])}
        self.steps.append((moved, not any(one.mixing.off for one in applications(kwargs["model"]))))


def train(model: Any, place: Path, *, resume: str | None = None, until: int = -1, first: float = 1) -> Spy:
    args = transformers.TrainingArguments(
        output_dir=str(place), per_device_train_batch_size=4, num_train_epochs=3, learning_rate=1e-2, save_steps=1,
        report_to="none", disable_tqdm=True, use_cpu=True, seed=3,
    )  # fmt: skip
    spy = Spy(model)

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == until

    callbacks = [MixoutCallback(log=False), HeadFirst(first), Stop(), spy]
    transformers.Trainer(model, args, train_dataset=ROWS, callbacks=callbacks).train(resume_from_checkpoint=resume)
    return spy


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_the_head_moves_first_and_a_resumed_run_is_the_same(tiny_bert, tmp_path, cut):
    whole = bert(tiny_bert)
    spy = train(whole, tmp_path / "whole")
    assert [mixes for _, mixes in spy.steps] == [False, False, True, True, True, True]
    assert all(moved == {"classifier.weight", "classifier.bias"} for moved, _ in spy.steps[:2])
    assert any(name.startswith("bert.encoder") for name in spy.steps[2][0])
    assert all(p.requires_grad for p in whole.parameters())

    train(bert(tiny_bert), tmp_path / "cut", until=cut)
    resumed = bert(tiny_bert)
    train(resumed, tmp_path / "cut", resume=str(tmp_path / "cut" / f"checkpoint-{cut}"))
    for (name, one), two in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_run_after_an_interrupted_one_trains_everything(tiny_bert, tmp_path):
    class Interrupt(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise KeyboardInterrupt

    def trainer(model, *callbacks):
        args = transformers.TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, num_train_epochs=2, report_to="none", use_cpu=True,
            disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        return transformers.Trainer(model, args, train_dataset=ROWS, callbacks=[*callbacks])

    model = bert(tiny_bert)
    first = trainer(model, HeadFirst(1), Interrupt())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert sum(p.requires_grad for p in model.parameters()) == 2
    second = trainer(model, HeadFirst(1), spy := Spy(model))
    assert all(p.requires_grad for p in model.parameters())
    second.train()
    assert [mixes for _, mixes in spy.steps] == [False, False, True, True]
    assert any(name.startswith("bert.encoder") for name in spy.steps[-1][0])

    other = bert(tiny_bert)
    with pytest.raises(KeyboardInterrupt):
        trainer(other, HeadFirst(1), Interrupt()).train()
    late = trainer(other)
    late.add_callback(HeadFirst(1))  # too late for on_init_end: the optimizer has the head alone
    with pytest.raises(mixout.MixoutError, match="built while an interrupted run with HeadFirst had frozen the body"):
        late.train()
    assert all(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize("first", [3, 20])
def test_a_run_that_would_train_the_head_alone_is_refused(tiny_bert, tmp_path, first):
    model = bert(tiny_bert)
    with pytest.raises(
        mixout.MixoutError,
        match=f"at most 2.5 epochs, where the last step of this run begins, got {first}: only the head",
    ):
        train(model, tmp_path, first=first)
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_without_a_head_is_refused(tiny_bert, tmp_path):
    model = mixout.apply_(transformers.BertModel.from_pretrained(tiny_bert), mixout.Mixout(0.5))
    with pytest.raises(mixout.MixoutError, match="new head"):
        HeadFirst(1).on_train_begin(None, transformers.TrainerState(), None, model=model)


def test_other_names_of_tied_parameters_are_passed_over(tiny_bert):
    model = transformers.AutoModelForMaskedLM.from_pretrained(tiny_bert)
    callback = HeadFirst(1, new=[name for name in model.state_dict() if name.startswith("cls")])
    kept = callback._body(model)
    assert any(parameter is model.bert.embeddings.word_embeddings.weight for parameter in kept)
    assert not any(parameter is model.cls.predictions.bias for parameter in kept)


@pytest.mark.parametrize("new", [["clasifier.weight"], "clasifier.weight", ["classifier.bias", "clasifier.weight"]])
def test_a_parameter_that_is_not_there_is_named(new, tiny_bert):
    with pytest.raises(mixout.MixoutError, match=r"got 'clasifier\.weight'; did you mean 'classifier\.weight'"):
        HeadFirst(1, new=new).on_train_begin(None, transformers.TrainerState(), None, model=bert(tiny_bert))


@pytest.mark.parametrize(
    ("head_first", "epochs", "max_steps", "alone", "accumulation"),
    [
        (1.0, 2.0, None, 6, 1),
        (1.0, 2.0, 7, 6, 1),
        (0.8, 1.0, None, 5, 1),
        (2.0, 2.0, None, None, 1),
        (1.0, 2.0, 6, None, 1),  # in so many steps no epoch is left for the others, whatever epochs says
        (1.0, 5.0, 3, None, 1),
        (0.9, 1.0, None, None, 1),  # the last step begins before
        (0.7, 2.0, None, 2, 4),  # the second step of an epoch, of four batches and two, begins after two thirds
        (1.6, 2.0, None, 3, 4),
        (1.7, 2.0, None, None, 4),
    ],
)
def test_the_finetune_setting_trains_the_new_head_first(
    tiny_bert, tiny_task, tmp_path, monkeypatch, head_first, epochs, max_steps, alone, accumulation
):
    from mixout.finetune.course import Course
    from mixout.finetune.settings import Settings
    from mixout.finetune.train import finetune

    base, moved, step_ends = load_file(Path(tiny_bert) / "model.safetensors"), [], Course.on_step_end

    def look(self, args, state, control, **kwargs):
        step_ends(self, args, state, control, **kwargs)
        body = ((name.removeprefix("bert."), p) for name, p in kwargs["model"].named_parameters())
        moved.append(not all(torch.equal(p, base[name]) for name, p in body if name in base))

    monkeypatch.setattr(Course, "on_step_end", look)
    values = {"model": tiny_bert, "task": tiny_task, "max_length": 32, "learning_rate": 1e-2, "batch_size": 8}
    values |= {
        "method": "mixout(0.5)",
        "save": "no",
        "head_first": head_first,
        "epochs": epochs,
        "max_steps": max_steps,
        "accumulation": accumulation,
    }
    if alone is None:
        with pytest.raises(mixout.InputError, match="head_first below"):
            finetune(Settings(**values), tmp_path / "run")
        return
    steps = finetune(Settings(**values), tmp_path / "run").steps
    assert moved == [False] * alone + [True] * (steps - alone)
    assert steps > alone


def test_hidden_states_are_not_held_while_they_cannot_move(tiny_bert, tiny_task, tmp_path):
    """With the body frozen a penalty on hidden states is a constant."""
    from mixout.finetune.settings import Settings
    from mixout.finetune.train import finetune

    values = {"model": tiny_bert, "task": tiny_task, "max_length": 32, "learning_rate": 1e-2, "batch_size": 8}
    values |= {"save": "no", "head_first": 1.0, "epochs": 2.0}
    held, plain = (
        finetune(Settings(**values, method=method), tmp_path / method[:5])
        for method in ("output_anchor(1, on=hidden)", "plain")
    )
    assert held.training[0].loss == plain.training[0].loss  # of the epoch of the head alone
    assert held.training[1].loss != plain.training[1].loss
