"""torch.compile on blocks of transformers: one graph, and masks of their own for all layers."""

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout

# torch's own, of the way its compiler traces autograd functions.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def blocks():
    from transformers import BertConfig, LlamaConfig
    from transformers.models.bert.modeling_bert import BertLayer
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    sdpa = {"attn_implementation": "sdpa"}
    llama = LlamaConfig(**shape, num_key_value_heads=1, **sdpa)
    rotary = LlamaRotaryEmbedding(llama)(torch.zeros(2, 5, 16), torch.arange(5)[None])
    bert = BertConfig(**shape, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, **sdpa)
    return {
        "bert": (BertLayer(bert), {}),
        "llama": (LlamaDecoderLayer(llama, 0), {"position_embeddings": rotary}),
    }


@pytest.mark.parametrize("name", ["bert", pytest.param("llama", marks=pytest.mark.sweep)])
def test_a_transformer_block_compiles_once_with_fresh_masks(name):
    """fullgraph, fifty steps without compiling again, a fresh mask in each, which the seed decides."""
    torch.manual_seed(0)
    block, extra = blocks()[name]
    mixout.apply_(block, Mixout(0.8), where="all")
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 5, 16)

    def step(function, seed):
        torch.manual_seed(seed)
        out = function(x, **extra)
        out = out[0] if isinstance(out, tuple) else out
        block.zero_grad()
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in block.parameters() if p.grad is not None)]

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    step(compiled, 0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        outputs = [step(compiled, seed) for seed in range(50)]
    assert len({float(one[0].sum()) for one in outputs}) == 50
    torch.testing.assert_close(outputs[17], step(compiled, 17))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's, where a model has graph breaks
def test_a_compiled_bert_has_as_many_masks_as_an_eager_one():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96, vocab_size=20,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = mixout.apply_(BertModel(config, add_pooling_layer=False), Mixout(0.5))
    torch.compile(model, backend="aot_eager")(torch.arange(16)[None]).last_hidden_state.square().sum().backward()
    masks = {
        tuple((layer.weight.grad.abs().sum(0) > 0).tolist())
        for layer in model.modules()
        if isinstance(layer, nn.Linear) and layer.in_features == 64
    }
    assert len(masks) == 15
