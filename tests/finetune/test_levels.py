from __future__ import annotations

import pytest
from torch import nn

from mixout.errors import InputError
from mixout.finetune.levels import blocks, layer_levels


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "bert",
            {
                "bert.embeddings.word_embeddings.weight": 0,
                "bert.embeddings.LayerNorm.weight": 0,
                "bert.encoder.layer.0.attention.self.query.weight": 1,
                "bert.encoder.layer.1.output.dense.bias": 2,
                "bert.pooler.dense.weight": 3,
                "classifier.weight": 3,
            },
        ),
        (
            "gpt2",
            {
                "transformer.wte.weight": 0,
                "transformer.wpe.weight": 0,
                "transformer.h.0.ln_1.weight": 1,
                "transformer.h.1.mlp.c_fc.weight": 2,
                "transformer.ln_f.weight": 3,
                "score.weight": 3,
            },
        ),
        (
            "t5",
            {
                "transformer.shared.weight": 0,
                "transformer.encoder.block.0.layer.0.SelfAttention.q.weight": 1,
                "transformer.encoder.block.1.layer.0.SelfAttention.q.weight": 2,
                "transformer.encoder.final_layer_norm.weight": 2,
                "transformer.decoder.block.0.layer.0.SelfAttention.q.weight": 3,
                "transformer.decoder.block.1.layer.2.DenseReluDense.wo.weight": 4,
                "transformer.decoder.final_layer_norm.weight": 5,
                "classification_head.dense.weight": 5,
            },
        ),
        (
            "llama",
            {
                "model.embed_tokens.weight": 0,
                "model.layers.0.mlp.up_proj.weight": 1,
                "model.layers.1.input_layernorm.weight": 2,
                "model.norm.weight": 3,
                "score.weight": 3,
            },
        ),
    ],
)
def test_levels(small_model, name, expected):
    model = small_model(name)
    levels = layer_levels(model)
    assert {name: levels[name] for name in expected} == expected
    assert levels.keys() == dict(model.named_parameters()).keys()


def test_more_than_nine_layers_are_told_apart(small_model):
    model = small_model("bert", layers=11)
    levels = layer_levels(model)
    assert levels["bert.encoder.layer.1.output.dense.weight"] == 2
    assert levels["bert.encoder.layer.10.output.dense.weight"] == 11
    assert blocks(model)[-1] == "bert.encoder.layer.10."


def test_a_model_without_blocks_is_refused():
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    for read in (blocks, layer_levels):
        with pytest.raises(InputError, match=r"got Sequential without one; use layer_decay=1\.0 and reinit_layers=0"):
            read(model)
