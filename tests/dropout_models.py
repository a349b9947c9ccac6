"""Small models with dropouts in every place where one is kept, each with inputs."""

import pytest
import torch
from torch import nn

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
