"""Trainer against a loop written by hand with the same masks: what its machinery does to a mixed model."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import mixout
from mixout.integrations.huggingface import MixoutCallback

pytestmark = [
    pytest.mark.usefixtures("one_thread", "fresh_accelerate"),
    # torch's own, of the way its compiler traces autograd functions.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]
CLIP = 0.02


def bert(tiny_bert: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification.from_pretrained(tiny_bert)
    return mixout.apply_(model, mixout.Mixout(0.5))


def numbered_masks(model: nn.Module) -> None:
    """The n-th forward in training sees the masks of seed n, whatever else the loop draws."""
    numbers = itertools.count()

    def seed(module: nn.Module, _inputs: Any) -> None:
        if module.training:
            torch.manual_seed(next(numbers))

    model.register_forward_pre_hook(seed)


def sentences(rows: int = 12) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 12, (rows,), generator=draw).tolist()
    inputs = [[2, *torch.randint(5, 37, (length,), generator=draw).tolist(), 3] for length in lengths]
    # One class, so that the gradients of a batch do not cancel.
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": 0} for ids in inputs]


def train(model: nn.Module, tiny_bert: str, place, rows=None, *, resume=None, **options) -> transformers.Trainer:
    tokenizer = None if rows else transformers.AutoTokenizer.from_pretrained(tiny_bert)
    args = transformers.TrainingArguments(
        output_dir=str(place), per_device_train_batch_size=2, weight_decay=0.0, report_to="none", use_cpu=True,
        disable_tqdm=True, dataloader_pin_memory=False, lr_scheduler_type="constant", logging_strategy="no",
        **({"save_strategy": "no", "learning_rate": 1e-2} | options),
    )  # fmt: skip
    run = transformers.Trainer(
        model, args, train_dataset=rows or sentences(), processing_class=tokenizer, callbacks=[MixoutCallback()]
    )
    run.remove_callback(transformers.PrinterCallback)
    run.train(resume_from_checkpoint=resume)
    return run


def by_hand(model: nn.Module, tiny_bert: str, *, accumulation: int, bf16: bool, clip: bool, steps: int) -> None:
    """Accumulation, autocast, clipping and SGD, without the Trainer and without activation checkpointing."""
    collate = transformers.DataCollatorWithPadding(transformers.AutoTokenizer.from_pretrained(tiny_bert))
    rows, optimizer = sentences(), torch.optim.SGD(model.parameters(), lr=0.5)
    batches = itertools.cycle([collate(rows[start : start + 2]) for start in range(0, len(rows), 2)])
    model.train()
    for _ in range(steps):
        for _ in range(accumulation):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**next(batches)).loss
            # The Trainer leaves the division to models that take keyword arguments: BERT's mean losses add up.
            loss.backward()
        if clip:
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP) > CLIP  # it has something to do
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.0},  # no clipping, which would hide a scale
        {"gradient_accumulation_steps": 2, "bf16": True},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}, "bf16": True},
    ],
    ids=["accumulation", "accumulation in bf16", "reentrant checkpointing", "checkpointing in bf16"],
)
def test_the_trainer_computes_what_a_loop_by_hand_does(tiny_bert, tmp_path, options):
    model, oracle = bert(tiny_bert), bert(tiny_bert)
    before = {name: p.detach().clone() for name, p in oracle.named_parameters()}
    numbered_masks(model)
    numbered_masks(oracle)
    chosen = {"max_grad_norm": CLIP, "train_sampling_strategy": "sequential", "optim": "sgd", "learning_rate": 0.5}
    train(model, tiny_bert, tmp_path, max_steps=3, **(chosen | options))
    accumulation = options.get("gradient_accumulation_steps", 1)
    clip = "max_grad_norm" not in options
    by_hand(oracle, tiny_bert, accumulation=accumulation, bf16="bf16" in options, clip=clip, steps=3)
    for (name, ours), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert not all(p.equal(before[name]) for name, p in model.named_parameters())


def test_a_run_grouped_by_length_is_resumed_exactly(tiny_bert, tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "train_sampling_strategy": "group_by_length"}
    whole, resumed = bert(tiny_bert), bert(tiny_bert)
    train(whole, tiny_bert, tmp_path / "whole", **options)
    # In the middle of the first epoch of 6 steps.
    train(resumed, tiny_bert, tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-4"), **options)
    assert all(a.equal(b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.layer(x).squeeze(-1)
        return {"loss": (found - labels).square().mean(), "logits": found}


def vectors(target) -> list[dict[str, torch.Tensor]]:
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    return [{"x": row, "labels": target(row)} for row in rows]


def test_a_compiled_model_is_trained_and_saved_as_one_that_is_not(tiny_bert, tmp_path, dropped_columns):
    torch._dynamo.reset()
    found = []
    for place, options in (("plain", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "aot_eager"})):
        model = mixout.apply_(Regression(), mixout.Mixout(0.5), where="all", seed=3)
        steps = dropped_columns(model)
        run = train(model, tiny_bert, tmp_path / place, vectors(torch.sum), max_steps=8, **options)
        run.save_model(str(tmp_path / place))
        found.append((load_file(tmp_path / place / "model.safetensors"), [step["layer"] for step in steps[:8]]))
    torch._dynamo.reset()
    (plain, masks), (compiled, compiled_masks) = found
    assert plain.keys() == compiled.keys() == {"layer.weight", "layer.bias"}
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-6)
    assert masks == compiled_masks
    assert len(set(masks)) > 3


def test_the_best_model_is_loaded_again_and_the_anchor_stays(tmp_path):
    """The labels of the dev set are the first predictions, so the first evaluation stays the best."""
    model = mixout.apply_(Regression(), mixout.Mixout(0.5), where="all")
    first, fingerprint = Regression().layer, mixout.fingerprint(model)
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=4, learning_rate=0.1, report_to="none",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, eval_strategy="steps", eval_steps=2, save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False,
    )  # fmt: skip
    run = transformers.Trainer(
        model,
        args,
        train_dataset=vectors(torch.sum),
        eval_dataset=vectors(lambda x: first(x).detach().squeeze()),
        callbacks=[MixoutCallback(), transformers.EarlyStoppingCallback(early_stopping_patience=2)],
    )
    run.remove_callback(transformers.PrinterCallback)
    run.train()
    assert run.state.global_step == 6
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert model.layer.weight.equal(best["layer.weight"])
    assert mixout.fingerprint(model) == fingerprint
    x = torch.randn(5, 6)
    plain = torch.nn.functional.linear(x, best["layer.weight"], best["layer.bias"])
    assert model.eval().layer(x).equal(plain)
    assert not model.train().layer(x).equal(plain)
