from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import transformers
from torch import nn

from mixout.errors import InputError
from mixout.finetune.levels import reinitialise_
from mixout.finetune.models import Loaded, load
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ("no", "yes")
HEAD = {"classifier.weight", "classifier.bias"}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def wrap(model: nn.Module) -> Loaded:
    """A model as if all of it came from a checkpoint, with weights that no initialisation gives."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return Loaded(model=model, tokenizer=None, new=frozenset(), source="", sha256=None)


def test_the_top_block_and_the_pooler_start_anew(tiny_bert):
    before = named(load(tiny_bert, labels=LABELS, init_seed=3).model)
    loaded = reinitialise_(load(tiny_bert, labels=LABELS, init_seed=3), 1, seed=3)
    after = named(loaded.model)
    top = {name for name in before if name.startswith("bert.encoder.layer.1.")}
    assert len(top) == 16
    assert loaded.new == HEAD | POOLER | top
    # What stays is the checkpoint's, and the head is the one that a run without new layers gets.
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - POOLER - top)
    matrices = [name for name in top | POOLER if after[name].dim() == 2]
    assert not any(torch.equal(after[name], before[name]) for name in matrices)
    drawn = torch.cat([after[name].flatten() for name in matrices])
    assert drawn.std().item() == pytest.approx(0.02, rel=0.1)
    assert drawn.mean().item() == pytest.approx(0.0, abs=0.002)
    for name in top:
        if after[name].dim() == 1:
            assert (after[name] == (1.0 if name.endswith("LayerNorm.weight") else 0.0)).all(), name


def test_weights_are_scaled_by_depth_where_the_class_does(small_model):
    config = transformers.GPT2Config(
        n_embd=64, n_layer=8, n_head=2, vocab_size=20, num_labels=2, bos_token_id=1, eos_token_id=1
    )
    model = transformers.GPT2ForSequenceClassification(config)
    reinitialise_(wrap(model), 2, seed=0)
    for block in model.transformer.h[6:]:
        assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.1)
    assert (model.transformer.ln_f.weight == 1.0).all()
    assert all((parameter == 7.0).all() for parameter in model.transformer.h[:6].parameters())


@pytest.mark.parametrize(("name", "blocks"), [("bert", 2), ("gpt2", 2), ("t5", 4), ("llama", 2)])
def test_any_stack_down_to_the_embeddings(small_model, name, blocks):
    loaded = reinitialise_(wrap(small_model(name)), blocks, seed=0)
    kept = {key for key, value in named(loaded.model).items() if (value == 7.0).all()}
    assert kept
    assert all(any(word in key for word in ("embed", "wte", "wpe", "shared")) for key in kept)
    assert loaded.new == named(loaded.model).keys() - kept
    with pytest.raises(InputError, match=f"reinit_layers <= {blocks}, .* got {blocks + 1}"):
        reinitialise_(loaded, blocks + 1, seed=0)


def test_new_weights_follow_their_seed_alone(small_model):
    def drawn(seed: int) -> torch.Tensor:
        return reinitialise_(wrap(small_model("bert")), 1, seed).model.bert.encoder.layer[1].output.dense.weight

    torch.manual_seed(5)
    first = drawn(0)
    torch.manual_seed(6)
    model = wrap(small_model("bert"))
    state = torch.random.get_rng_state()
    reinitialise_(model, 1, 1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, drawn(0))
    assert not torch.equal(first, drawn(1))


def test_none_and_a_model_without_a_stack(tiny_bert):
    loaded = load(tiny_bert, labels=LABELS, init_seed=0)
    assert reinitialise_(loaded, 0, seed=0) is loaded
    flat = dataclasses.replace(loaded, model=nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2)))
    with pytest.raises(InputError, match="expected a model whose blocks lie in"):
        reinitialise_(flat, 1, seed=0)


def test_new_layers_are_neither_mixed_nor_measured(settings, tmp_path):
    chosen = settings(reinit_layers=1, method="mixout(0.5)+anchor_decay(0.1)")
    record = finetune(chosen, tmp_path / "out")
    top = {name for name in record.new_parameters if name.startswith("bert.encoder.layer.1.")}
    assert set(record.new_parameters) == HEAD | POOLER | top
    assert len(top) == 16
    # Six linear layers in the one block that is left.
    assert record.coverage["layers_mixed"] == 6
    assert not set(record.distance_by_layer) & set(record.new_parameters)
    assert any(name.startswith("bert.encoder.layer.0.") for name in record.distance_by_layer)
    with pytest.raises(InputError, match="a head anchored by request"):
        finetune(settings(reinit_layers=1, where="all"), tmp_path / "other")
