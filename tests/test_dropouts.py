"""The model's own dropouts: found wherever they are, set, and put back. The oracle is the model in eval mode."""

import ast
import pathlib
import re

import pytest
import torch
from torch import nn

import mixout
from dropout_models import (
    MODELS,
    TINY,
    bart,
    bert,
    built,
    gptj,
    llama,
    torch_transformer,
)
from mixout import Mixout, dropouts
from mixout.methods import Dropout

transformers = pytest.importorskip("transformers")


def logits(model, inputs):
    return model(**inputs)["logits"].detach()


@pytest.mark.parametrize("attention", ["sdpa", "eager", None])
@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_with_a_mixing_method_no_dropout_is_left(make, attention):
    """Trap: only nn.Dropout switched off; functional dropout stays on.

    With p = 0 and dropouts off, two training passes are bit-identical and equal eval.
    """
    model, inputs = built(make)
    if attention is not None and hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(attention)
    elif attention is not None:
        pytest.skip("no attention implementations to choose from")
    expected = logits(model.eval(), inputs)
    model.train()
    assert not logits(model, inputs).equal(logits(model, inputs)), "the test needs a model that drops"
    mixout.apply_(model, Mixout(0.0), where="all")  # Falcon's body has linear layers of its own kind
    first, second = logits(model, inputs), logits(model, inputs)
    assert first.equal(second)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)  # other kernels in eval may round otherwise
    assert mixout.coverage(model).dropouts == ()
    mixout.remove_(model)
    torch.manual_seed(1)
    after = logits(model, inputs)
    torch.manual_seed(1)
    twin, _ = built(make)
    if attention is not None:
        twin.set_attn_implementation(attention)
    torch.manual_seed(1)
    assert logits(twin.train(), inputs).equal(after)  # restored: it drops as a model that was never touched


@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_dropouts_are_restored_one_by_one(make):
    model, _ = built(make)
    before = [(s.module, s.field, s.p, s.kind) for s in dropouts.find(model)]
    assert before
    config = getattr(model, "config", None)
    text = config.to_json_string() if config is not None else None
    for method in (Mixout(0.5), Dropout(0.7), mixout.methods.Dropconnect(0.5)):
        mixout.apply_(model, method, where="all")
        p = method.p if isinstance(method, Dropout) else 0.0
        assert {s.p for s in dropouts.find(model) if s.kind != "left"} == {p}
        assert config is None or (model.config is config and config.to_json_string() == text)
        mixout.remove_(model)
        assert [(s.module, s.field, s.p, s.kind) for s in dropouts.find(model)] == before
    for module in model.modules():
        own = getattr(module, "config", None)
        assert own is None or config is None or "0.3" in own.to_json_string()


def test_configs_are_the_same_objects_again():
    model, _ = built(gptj)
    before = [getattr(m, "config", None) for m in model.modules()]
    mixout.apply_(model, Mixout(0.5))
    mixout.remove_(model)
    assert all(a is b for a, b in zip(before, [getattr(m, "config", None) for m in model.modules()], strict=True))


@pytest.mark.parametrize("make", [bert, llama, torch_transformer], ids=lambda m: m.__name__)
def test_keep_dropout_leaves_them_on(make):
    model, inputs = built(make)
    before = [str(site) for site in dropouts.active(model)]
    mixout.apply_(model, Mixout(0.0), keep_dropout=True)
    assert [str(site) for site in mixout.coverage(model).dropouts] == before
    assert not logits(model, inputs).equal(logits(model, inputs))


def test_methods_that_do_not_mix_leave_dropouts_on():
    model, _ = built(bert)
    before = dropouts.find(model)
    mixout.apply_(model, mixout.AnchorDecay(0.1))
    assert dropouts.find(model) == before


def test_dropping_whole_layers_is_reported_and_left_on():
    model, _ = built(bart)
    model.model.encoder.layerdrop = 0.5
    mixout.apply_(model, Mixout(0.5))
    assert model.model.encoder.layerdrop == 0.5
    assert "layerdrop = 0.5" in str(mixout.coverage(model))


def test_kinds_of_torchs_own_modules():
    model = nn.Sequential(nn.Dropout2d(0.1), nn.AlphaDropout(0.2), nn.MultiheadAttention(4, 2, dropout=0.3))
    assert [str(site) for site in dropouts.active(model)] == ["0.p = 0.1", "1.p = 0.2", "2.dropout = 0.3"]


def test_what_counts_or_points_is_no_dropout():
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.drop_index, self.drop_rate, self.drop_path = 1, 0.5, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)[self.drop_index]

    model = mixout.apply_(Dropping(), mixout.Mixout(0.5))
    assert (model.drop_index, model.drop_rate) == (1, 0.0)
    model(torch.ones(2, 3))


@pytest.mark.parametrize(
    "name",
    ["dropout", "drop", "attn_pdrop", "dropout1", "drop_rate", "attn_dropout_p", "hidden_dropout_prob", "drop_out",
     "dropout_ratio", "dropout_positions", "head_drop", "drop_prob", "quantizer_dropout", "ff_dropout"],
)  # fmt: skip
def test_names_of_dropouts(name):
    model = nn.Linear(2, 2)
    setattr(model, name, 0.3)
    dropouts.set_(model, 0.0)
    assert getattr(model, name) == 0.0


@pytest.mark.parametrize(
    "name",
    ["drop_threshold", "dropped_share", "drop_below", "dropout_threshold", "before_dropping", "drop_path"],
)
def test_what_is_no_dropout_is_left_and_eval_stays(name):
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            setattr(self, name, 0.7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            return y.masked_fill(y.sigmoid() < getattr(self, name), 0.0)

    torch.manual_seed(0)
    model, x = Gate().eval(), torch.randn(5, 6)
    before = model(x).detach()
    mixout.apply_(model, [Mixout(0.5), Dropout(0.0)])
    assert before.count_nonzero() > 0
    assert model(x).equal(before)
    assert f"{name} = 0.7" in str(mixout.coverage(model))
    mixout.remove_(model)
    assert getattr(model, name) == 0.7


@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_a_part_is_put_back_by_itself(make, duplicate):
    """Nothing that restores a part lies outside of it: neither in the whole, nor in names from there."""
    model, _ = built(make)
    before = {name: [str(site) for site in dropouts.find(part)] for name, part in model.named_children()}
    dropouts.set_(model, 0.0)
    for name, part in model.named_children():
        for one in (duplicate(part), part):
            assert dropouts.active(one) == []
            dropouts.restore_(one)
            assert [str(site) for site in dropouts.find(one)] == before[name]
            assert not any("_mixout_dropouts" in vars(module) for module in one.modules())


@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_what_stood_there_first_comes_back(make):
    model, _ = built(make)
    before = dropouts.find(model)
    configs = [getattr(module, "config", None) for module in model.modules()]
    for p in (0.0, 0.7, 0.2):
        dropouts.set_(model, p)
    dropouts.restore_(model)
    assert dropouts.find(model) == before
    after = [getattr(module, "config", None) for module in model.modules()]
    assert all(a is b for a, b in zip(configs, after, strict=True))
    dropouts.restore_(model)  # nothing is left to undo
    assert dropouts.find(model) == before


def bigbird():
    config = transformers.BigBirdConfig(
        **TINY, vocab_size=30, max_position_embeddings=64, block_size=4, hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.3, attention_type="block_sparse",
    )  # fmt: skip
    return transformers.BigBirdModel(config), {"input_ids": torch.arange(16).reshape(2, 8)}


def bigbird_pegasus():
    config = transformers.BigBirdPegasusConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=30, max_position_embeddings=64, block_size=4, dropout=0.3,
        attention_dropout=0.3, activation_dropout=0.3,
    )  # fmt: skip
    ids = torch.arange(16).reshape(2, 8)
    return transformers.BigBirdPegasusModel(config), {"input_ids": ids, "decoder_input_ids": ids}


@pytest.mark.parametrize("make", [bigbird, bigbird_pegasus], ids=lambda m: m.__name__)
def test_dropouts_made_in_the_first_forward(make):
    """For short texts the first forward makes another attention, with an nn.Dropout that apply_ has not seen."""

    def result(model, inputs):
        return model(**inputs).last_hidden_state.detach()

    model, inputs = built(make)
    modules = set(model.modules())
    mixout.apply_(model.train(), Mixout(0.0))
    first = result(model, inputs)
    made = [m for m in set(model.modules()) - modules if isinstance(m, nn.Dropout)]
    assert made, "the test needs a model that makes dropouts in its forward"
    assert result(model, inputs).equal(first)
    torch.testing.assert_close(result(model.eval(), inputs), first)
    assert mixout.coverage(model).dropouts == ()
    mixout.remove_(model)
    twin, _ = built(make)
    result(twin, inputs)
    assert [str(site) for site in dropouts.find(model)] == [str(site) for site in dropouts.find(twin)]
    assert model.config.to_json_string() == twin.config.to_json_string()


def test_layerdrop_that_is_read_from_a_configuration_is_reported_and_left_on():
    config = transformers.Wav2Vec2Config(
        **TINY, conv_dim=(8, 8), conv_kernel=(4, 4), conv_stride=(2, 2), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, layerdrop=0.25, vocab_size=30,
    )  # fmt: skip
    model = mixout.apply_(transformers.Wav2Vec2Model(config), Mixout(0.5))
    assert [str(site) for site in mixout.coverage(model).dropouts] == ["encoder.layerdrop = 0.25"]
    assert model.encoder.config is model.config


def test_the_table_names_every_module_that_reads_a_dropout_from_its_configuration():
    """Oracle: the syntax trees of all models of the transformers that is installed."""
    read: set[tuple[str, str]] = set()
    for file in pathlib.Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        text = file.read_text(encoding="utf-8")
        if re.search(r"self\.config\.\w*drop", text) is None:
            continue
        for kind in (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)):
            for method in kind.body:
                if not isinstance(method, ast.FunctionDef) or method.name == "__init__":
                    continue
                for node in ast.walk(method):
                    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.config":
                        read.add((node.attr, kind.name))
    read = {(field, kind) for field, kind in read if "drop" in field}
    assert len(read) > 20
    table = {(field, kind) for field, kinds in dropouts.READ_FROM_CONFIG.items() for kind in kinds.split()}
    assert read - table == set()
    makes = {
        ("attention_probs_dropout_prob", "BigBirdAttention"),
        ("attention_dropout", "BigBirdPegasusEncoderAttention"),
    }
    assert table - read == makes
