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
from mixout.finetune.placement import apply_methods
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
