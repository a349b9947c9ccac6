"""The model's own dropouts: found wherever they are, set, and put back. The oracle is the model in eval mode."""

import pytest
import torch
from torch import nn

import mixout
from mixout import Dropout, Mixout, dropouts

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert():
    config = transformers.BertConfig(**TINY, vocab_size=30, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    return transformers.BertForSequenceClassification(config), {"input_ids": torch.arange(10).reshape(2, 5)}


def t5():
    config = transformers.T5Config(
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        vocab_size=30,
        dropout_rate=0.3,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config), {
        "input_ids": torch.arange(10).reshape(2, 5),
        "labels": torch.arange(6).reshape(2, 3),
    }


def bart():
    config = transformers.BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=30, max_position_embeddings=20, dropout=0.3,
        attention_dropout=0.3, activation_dropout=0.3, classifier_dropout=0.3, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config), {"input_ids": torch.arange(10).reshape(2, 5)}


def vit():
    config = transformers.ViTConfig(
        **TINY, image_size=8, patch_size=4, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.ones(2, 3, 8, 8)}


def llama():
    config = transformers.LlamaConfig(**TINY, vocab_size=30, attention_dropout=0.3)
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.arange(10).reshape(2, 5)}


def gptj():
    config = transformers.GPTJConfig(
        n_embd=16, n_layer=2, n_head=2, rotary_dim=4, vocab_size=30, n_positions=20, resid_pdrop=0.3, embd_pdrop=0.3,
        attn_pdrop=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.GPTJForCausalLM(config), {"input_ids": torch.arange(10).reshape(2, 5)}


def falcon():
    config = transformers.FalconConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=30, hidden_dropout=0.3,
        attention_dropout=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.FalconForCausalLM(config), {"input_ids": torch.arange(10).reshape(2, 5)}


def gpt2():
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=20, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), {"input_ids": torch.arange(10).reshape(2, 5)}


class Wrapped(nn.Module):
    """A torch model that answers like one of transformers."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.head = inner, nn.Linear(16, 16)

    def forward(self, x):
        out = self.inner(x)
        return {"logits": self.head(out[0] if isinstance(out, tuple) else out)}


def torch_transformer():
    return Wrapped(nn.TransformerEncoderLayer(16, 2, 24, dropout=0.3)), {"x": torch.randn(5, 2, 16)}


def lstm():
    return Wrapped(nn.LSTM(16, 16, num_layers=2, dropout=0.3)), {"x": torch.randn(5, 2, 16)}


MODELS = [bert, t5, bart, vit, llama, gptj, falcon, gpt2, torch_transformer, lstm]


def built(make):
    torch.manual_seed(0)
    model, inputs = make()
    # Attention of freshly initialised models is uniform: spread the weights, so that every dropout shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model, inputs


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
    for method in (Mixout(0.5), Dropout(0.7), mixout.Dropconnect(0.5)):
        mixout.apply_(model, method, where="all")
        p = method.p if isinstance(method, Dropout) else 0.0
        assert {s.p for s in dropouts.find(model) if s.kind != "layers"} == {p}
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
