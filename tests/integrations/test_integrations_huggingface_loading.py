"""Which parameters of a loaded model are new, and how layers with such are left out."""

from __future__ import annotations

import pytest
import torch
import transformers

import mixout
from mixout.integrations.huggingface import from_pretrained, pretrained_only

HEAD = {"classifier.weight", "classifier.bias"}


def test_a_head_and_a_pooler_that_the_checkpoint_lacks_are_new(tiny_bert, tmp_path):
    kind = transformers.AutoModelForSequenceClassification
    model, new = from_pretrained(kind, tiny_bert, num_labels=3)
    assert new == HEAD
    assert model.classifier.out_features == 3
    transformers.BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(tmp_path)
    model, new = from_pretrained(kind, tmp_path)
    assert new == HEAD | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    # A new pooler lies in the body, which is mixed by default: its only anchor would be random.
    mixed = set(mixout.coverage(mixout.apply_(model, mixout.Mixout(0.5))).mixed)
    mixout.remove_(model)
    mixout.apply_(model, mixout.Mixout(0.5), where=pretrained_only(model, new))
    assert mixed - set(mixout.coverage(model).mixed) == {"bert.pooler.dense"}


def test_a_head_of_another_size_is_new(tiny_bert, tmp_path):
    kind = transformers.AutoModelForSequenceClassification
    from_pretrained(kind, tiny_bert, num_labels=3)[0].save_pretrained(tmp_path)
    assert from_pretrained(kind, tmp_path)[1] == frozenset()
    assert from_pretrained(kind, tmp_path, num_labels=5, ignore_mismatched_sizes=True)[1] == HEAD


def test_new_layers_are_left_out_of_any_choice(tiny_bert):
    model, new = from_pretrained(transformers.AutoModelForSequenceClassification, tiny_bert)
    mixout.apply_(model, mixout.Mixout(0.5), where=pretrained_only(model, new, "query|classifier"))
    assert set(mixout.coverage(model).mixed) == {
        f"bert.encoder.layer.{layer}.attention.self.query" for layer in range(2)
    }
    mixout.remove_(model)
    mixout.apply_(model, mixout.AnchorDecay(0.5), where=pretrained_only(model, new, "all"))
    assert "classifier.weight" not in mixout.distance(model).by_layer
    assert "bert.pooler.dense.weight" in mixout.distance(model).by_layer


def test_layers_that_are_all_new_are_named():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3))
    where = pretrained_only(model, {"1.weight", "1.bias"})
    with pytest.raises(mixout.NothingMixedError, match=r"1: an output layer or a new head, left out by default"):
        mixout.apply_(model, mixout.Mixout(0.5), where=where)
