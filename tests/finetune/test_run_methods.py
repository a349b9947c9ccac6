"""Methods that need a whole run: LoRA, a decay by its Fisher information, an anchor on outputs; how close they stay."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import mixout
from mixout.errors import InputError, MissingExtraError
from mixout.finetune import causal, train, trainer
from mixout.finetune.cache import Cache
from mixout.finetune.record import Record
from mixout.finetune.run_methods import Lora, add_lora_, merge_lora_, parse
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune
from mixout.methods import spell
from mixout.selection import resolve

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(place: str | Path) -> dict[str, torch.Tensor]:
    """By name; a body's own checkpoint has no prefix."""
    found = load_file(Path(place) / "model.safetensors")
    prefix = "bert." if any(name.startswith("encoder.") for name in found) else ""
    return {prefix + name: value for name, value in found.items()}


def interrupted(chosen: Settings, place: Path, step: int) -> None:
    """A run that is cut off after ``step`` steps, as by Ctrl-C."""
    training_step = trainer.TextTrainer.training_step

    def stopping(self, *args):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.TextTrainer, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            finetune(chosen, place)


@pytest.mark.parametrize(
    "text", ["lora(8)", "lora(8)+mixout(0.7)", "anchor_decay(40.0, fisher=200)", "interpolate(0.5)"]
)
def test_text_goes_there_and_back(text):
    assert spell(parse(text)) == text


@pytest.mark.parametrize("options", ["radius=0.1, relative=true", "1.0, selective=true", "2.0, decoupled=false"])
def test_a_decay_keeps_every_option_that_the_library_knows(options):
    (given,), (expected,) = parse(f"anchor_decay({options})"), mixout.methods.parse(f"anchor_decay({options})")
    assert given.plain() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora(0)", "r as a whole number"),
        ("lora(1.5)", "r as a whole number"),
        ("lora(4)+lora(8)", "lora once"),
        ("interpolate(1.5)", r"expected t in \[0, 1\].*got 1.5"),
        ("interpolate(half)", "expected t to be a number"),
        ("interpolate(0.5)+interpolate(0.5)", "interpolate once"),
        ("anchor_decay(1, fisher=0)", "fisher as a whole number"),
        ("anchor_decay(1, fisher=9, selective=true)", "fisher without"),
    ],
)
def test_what_cannot_be_is_refused(settings, text, message):
    with pytest.raises(InputError, match=message):
        settings(method=text)


def test_lora_is_what_peft_makes_and_merges_into_what_it_computed(tiny_bert):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    names = dict(model.named_parameters())
    add_lora_(model, Lora(2), resolve("body", model), frozenset({"classifier.weight", "classifier.bias"}))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or name.startswith("classifier.") for name in trained)
    query = model.bert.encoder.layer[0].attention.self.query
    assert query.lora_A["default"].weight.shape[0] == 2
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tokens = torch.tensor([[1, 2, 3]])
    product = query.lora_B["default"].weight @ query.lora_A["default"].weight
    expected = query.base_layer.weight + 2 * product
    before = model(tokens).logits
    merge_lora_(model)
    torch.testing.assert_close(model(tokens).logits, before)
    torch.testing.assert_close(model.bert.encoder.layer[0].attention.self.query.weight, expected)
    assert dict(model.named_parameters()).keys() == names.keys()


@pytest.mark.parametrize("method", ["lora(2)", "lora(2)+mixout(0.5)"])
def test_lora_trains_low_rank_and_leaves_a_plain_checkpoint(settings, tiny_bert, tmp_path, method):
    record = finetune(settings(method=method), tmp_path / "a")
    start, end = weights(tiny_bert), weights(tmp_path / "a")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    assert {name for name, _ in model.named_parameters()} == end.keys()
    moved = {name: end[name] - start[name] for name in start if name in end and not torch.equal(end[name], start[name])}
    assert moved
    for name, change in moved.items():
        assert name.endswith("weight"), name
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 2
    assert record.distance == pytest.approx(torch.cat([c.flatten() for c in moved.values()]).norm().item(), rel=1e-4)
    assert bool(record.coverage["layers_mixed"]) == ("mixout" in method)


def test_lora_and_a_head_trained_first_resume_bit_for_bit(settings, tmp_path):
    chosen = settings(method="lora(2)+mixout(0.5)", save=4, learning_rate=None, head_first=1.0)
    whole = finetune(chosen, tmp_path / "whole")
    assert "10 times as high for lora" in whole.chosen["learning_rate"]
    interrupted(chosen, tmp_path / "cut", step=6)
    again = finetune(chosen, tmp_path / "cut", resume=True)
    assert again.predictions == whole.predictions
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_without_peft_the_extra_is_named(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"mixout\[lora\]"):
        finetune(settings(method="lora(2)"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_decay_measures_its_fisher_information_once(settings, tmp_path, monkeypatch):
    chosen = settings(method="anchor_decay(40, fisher=5)", save=4)
    finetune(chosen, tmp_path / "whole")
    held = load_file(tmp_path / "whole" / "fisher.safetensors")
    # The library's own, on the first, the tenth, ... of 42 training rows, spread evenly.
    shared = Cache()
    loaded, _ = shared.model(chosen, shared.task(chosen))
    rows = shared.tokens(shared.task(chosen).train, chosen)
    rows = [rows[k * len(rows) // 5] for k in range(5)]
    batches = [{n: torch.tensor([row[n]]) for n in row if n != "labels"} for row in rows]
    expected = mixout.fisher(loaded.model, batches, examples=5)
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], expected[name]) for name in held)

    def forbidden(*_args, **_options):
        raise AssertionError

    interrupted(chosen, tmp_path / "cut", step=6)
    monkeypatch.setattr("mixout.finetune.run_methods.fisher", forbidden)
    finetune(chosen, tmp_path / "cut", resume=True)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("written", [0, 40])
def test_a_fisher_information_that_was_cut_off_is_measured_again(settings, tmp_path, monkeypatch, written):
    chosen = settings(method="anchor_decay(40, fisher=5)", save=4)
    finetune(chosen, tmp_path / "whole")
    save = train.save_file

    def cut(tensors, path):
        save(tensors, path)
        os.truncate(path, written)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_file", cut)
    with pytest.raises(KeyboardInterrupt):
        finetune(chosen, tmp_path / "cut")
    monkeypatch.setattr(train, "save_file", save)
    finetune(chosen, tmp_path / "cut", resume=True)
    one, two = ({path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "cut"))
    assert one == two
    for name in ("model.safetensors", "fisher.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_language_model_needs_original_text_for_ewc(causal, tmp_path):
    with pytest.raises(InputError, match="give --original"):
        finetune(causal(method="anchor_decay(40, fisher=5)", original=None), tmp_path / "a")
    record = finetune(causal(method="anchor_decay(40, fisher=5)"), tmp_path / "b")
    assert record.status == "finished"


def kl(place: Path, base: str, settings) -> float:
    """From two models of transformers, a document at a time."""
    models = [transformers.AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (place, base)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    total = []
    for window in causal.encode(Cache().task(settings).dev, tokenizer, settings.max_length):
        tokens = torch.tensor([window["input_ids"]])
        with torch.no_grad():
            now, then = (model(tokens).logits[0, :-1].log_softmax(-1) for model in models)
        counts = [label != -100 for label in window["labels"][1:]]
        total += [(then.exp() * (then - now)).sum(-1)[torch.tensor(counts)]]
    return torch.cat(total).mean().item()


@pytest.mark.parametrize("method", ["mixout(0.5)", "lora(2)"])
def test_the_divergence_from_the_base_is_that_of_two_models(causal, tiny_llama, tmp_path, method):
    chosen = causal(method=method)
    record = finetune(chosen, tmp_path / "a")
    assert record.scores["kl_to_base"] == pytest.approx(kl(tmp_path / "a", tiny_llama, chosen), rel=1e-4)
    assert record.scores["kl_to_base"] > 0


def test_an_output_anchor_keeps_a_language_model_near_its_base(causal, tmp_path):
    free = finetune(causal(method="plain"), tmp_path / "plain")
    held = finetune(causal(method="output_anchor(10)"), tmp_path / "held")
    assert held.scores["kl_to_base"] < free.scores["kl_to_base"] / 2
    whole, halves = (
        finetune(
            causal(method="output_anchor(0.5)", batch_size=size, accumulation=8 // size, max_steps=2),
            tmp_path / str(size),
        )
        for size in (8, 4)
    )
    assert halves.training[-1].loss == pytest.approx(whole.training[-1].loss, rel=1e-5)
    assert halves.distance == pytest.approx(whole.distance, rel=1e-4)


@pytest.mark.parametrize("kind", ["classes", "labels", "tags"])
def test_an_output_anchor_of_a_new_head_anchors_hidden_states(settings, moods, names, tiny_task, tmp_path, kind):
    known = {"labels": {"task": moods}, "tags": {"task": names, "task_type": "token-classification"}}.get(kind, {})
    with pytest.raises(InputError, match="on=hidden"):
        finetune(settings(method="output_anchor(1)", **known), tmp_path / "a")
    free, held = (
        finetune(settings(method=method, original=f"{tiny_task}/dev.csv", **known), tmp_path / method[:5])
        for method in ("plain", "output_anchor(100, on=hidden)")
    )
    assert held.scores["original_similarity"] > free.scores["original_similarity"]


@pytest.mark.parametrize("method", ["mixout(0.5)", "lora(2)"])
def test_models_between_start_and_end_are_scored_and_the_trained_one_is_kept(settings, tiny_bert, tmp_path, method):
    chosen = settings(method=method, interpolate=(0.0, 0.5, 1.0))
    record = finetune(chosen, tmp_path / "a")
    assert Record.read(tmp_path / "a").interpolated == record.interpolated
    start, half, end = record.interpolated
    assert [one["t"] for one in record.interpolated] == [0.0, 0.5, 1.0]
    assert end["accuracy"] == record.scores["accuracy"]
    assert end["loss"] == pytest.approx(record.evaluations[-1].loss, rel=1e-5)
    plain = finetune(dataclasses.replace(chosen, interpolate=()), tmp_path / "b")
    assert plain.predictions == record.predictions
    one, two = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)
    # The oracle: weights averaged by hand, judged by transformers.
    base, model = weights(tiny_bert), transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    task, shared = Cache().task(chosen), Cache()
    shared.model(chosen, task)
    for t, found in ((0.0, start), (0.5, half)):
        mixed = {name: base[name] + t * (one[name] - base[name]) if name in base else one[name] for name in one}
        model.load_state_dict(mixed, strict=False)
        losses = [
            torch.nn.functional.cross_entropy(
                model.eval()(torch.tensor([row["input_ids"]])).logits, torch.tensor([row["labels"]])
            ).item()
            for row in shared.tokens(task.dev, chosen)
        ]
        assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_language_model_is_scored_in_between_on_new_and_on_old_text(causal, tmp_path):
    record = finetune(causal(interpolate=(0.0, 0.5)), tmp_path / "a")
    plain = finetune(causal(), tmp_path / "plain", keep_model=False)
    assert record.standard_errors == plain.standard_errors  # of the trained model, not of the last one between
    start, half = record.interpolated
    first = record.evaluations[0]
    assert first.step == 0
    for name in ("log_likelihood", "original_log_likelihood"):
        assert start[name] == pytest.approx(first.scores[name], rel=1e-5)
    assert start["kl_to_base"] == pytest.approx(0, abs=1e-6)
    assert 0 < half["kl_to_base"] < record.scores["kl_to_base"]


@pytest.mark.parametrize("method", ["dropout(0)", "lora(2)", "mixout(0.5)"])
def test_a_run_that_interpolates_keeps_and_scores_the_model_in_between(settings, tiny_bert, tmp_path, method):
    plain = finetune(settings(method=method, interpolate=(0.25,)), tmp_path / "plain")
    record = finetune(settings(method=f"{method}+interpolate(0.25)"), tmp_path / "between")
    start, trained, kept = weights(tiny_bert), weights(tmp_path / "plain"), weights(tmp_path / "between")
    for name, value in kept.items():
        w = trained[name]
        torch.testing.assert_close(value, start[name] + 0.25 * (w - start[name]) if name in start else w)
    [between] = plain.interpolated
    assert {name: between[name] for name in record.scores} == record.scores
    assert record.distance == pytest.approx(plain.distance / 4, rel=1e-4)
    assert [one.loss for one in record.training] == [one.loss for one in plain.training]
