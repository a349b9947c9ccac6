"""Weights without pretrained values are neither mixed nor decayed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

import mixout
from mixout.errors import InputError
from mixout.finetune import models
from mixout.finetune.levels import apply_methods
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune
from mixout.layers import Mixed

pytestmark = pytest.mark.usefixtures("one_thread")


def applied(settings: Settings) -> torch.nn.Module:
    loaded = models.load(settings.model, labels=("a", "b"), init_seed=0)
    apply_methods(loaded, settings)
    return loaded.model


def mixed(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, Mixed)}


def test_the_new_head_is_not_mixed(settings):
    names = mixed(applied(settings()))
    assert "bert.pooler.dense" in names
    assert "classifier" not in names


def test_a_new_pooler_is_neither_mixed_nor_decayed(settings, tiny_bert, tmp_path):
    transformers.BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(tmp_path)
    for file in Path(tiny_bert).glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    with_pooler = mixed(applied(settings()))
    assert mixed(applied(settings(model=tmp_path))) == with_pooler - {"bert.pooler.dense"}
    decayed = mixout.distance(applied(settings(model=tmp_path, method="anchor_decay(0.1)"))).by_layer
    assert "bert.pooler.dense.weight" not in decayed
    assert "bert.embeddings.word_embeddings.weight" in decayed


def test_the_answers_of_a_new_head_are_nothing_to_keep(settings):
    with pytest.raises(InputError, match="on=hidden for a model whose head is new"):
        applied(settings(method="output_anchor(0.1)"))


@pytest.mark.parametrize("where", ["all", "class", "."])
@pytest.mark.parametrize("method", ["mixout(0.5)", "mixconnect(0.5)", "anchor_decay(0.1)"])
def test_a_new_head_anchored_by_request_is_an_error(settings, tmp_path, where, method):
    with pytest.raises(InputError, match=r"classifier.*without weights"):
        finetune(settings(where=where, method=method), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_head_with_weights_may_be_anchored_and_one_without_may_be_zeroed(settings, tmp_path):
    finetune(settings(), tmp_path / "first")
    assert "classifier" in mixed(applied(settings(model=tmp_path / "first", where="all")))
    assert "classifier" in mixed(applied(settings(where="all", method="dropconnect(0.5)")))


def test_a_new_head_mixed_on_purpose(settings):
    model = applied(settings(head="mixout", method="mixout(0.7)+anchor_decay(0.1)", where="paper"))
    assert mixed(model) == mixed(applied(settings(where="paper"))) | {"classifier"}
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
    head = model.train().classifier
    first = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.add_(1.0)
        head.bias.zero_()
        # Each column is that of the first weights, or further from them by 1/(1-p).
        away = head(torch.eye(16)) - first.T
    assert {round(value, 4) for value in away.flatten().tolist()} == {0.0, round(1 / 0.3, 4)}
    # What has no pretrained weights is not decayed.
    head.weight.grad = torch.zeros_like(first)
    torch.optim.SGD([head.weight], lr=0.1).step()
    assert torch.equal(head.weight, first + 1.0)


def test_dropout_before_the_head_alone(settings):
    model = applied(settings(head="dropout", method="mixout(0.7)"))
    assert mixed(model) == mixed(applied(settings(method="mixout(0.7)")))
    found = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert found.pop("dropout") == 0.7
    assert set(found.values()) == {0.0}
    plain = mixout.remove_(model)
    assert {module.p for module in plain.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}


def test_a_head_with_weights_is_no_new_head(settings, tmp_path):
    finetune(settings(), tmp_path / "first")
    with pytest.raises(InputError, match="new linear output head"):
        applied(settings(model=tmp_path / "first", head="mixout"))


def test_a_model_without_a_dropout_before_its_head(small_model, settings):
    model = small_model("llama")
    loaded = models.Loaded(model=model, tokenizer=None, new=frozenset({"score.weight"}), source="", sha256=None)
    with pytest.raises(InputError, match="dropout before its head"):
        apply_methods(loaded, settings(head="dropout"))
