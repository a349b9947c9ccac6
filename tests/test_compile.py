"""torch.compile: one graph, no recompilation over p, fresh masks. Few tests: each compilation takes seconds."""

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixconnect, Mixout, PScheduler
from mixout.schedule import Linear

# torch's own, of the way its compiler traces autograd functions.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def net(method, seed=None, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)
    mixout.apply_(model, method, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_a_schedule_of_p_compiles_once_and_masks_are_fresh(backend):
    """Traps: a schedule of p that recompiles at each value; a Python-integer seed recompiles every step."""
    model = net(Mixout(0.5))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    scheduler = PScheduler(model, Linear(0.1, 1.0, 4))
    x = torch.randn(5, 8)
    torch._dynamo.utils.counters.clear()
    seen = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            y = compiled(x)
            y.sum().backward()
            assert model[0].weight.grad is not None
            model.zero_grad()
            seen.append((y.detach(), compiled(x).detach()))
            scheduler.step()
        ends = compiled(x).detach()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert all(not a.equal(b) for a, b in seen[:3])
    # p is 1 now: the anchors
    anchors = [model[i]._mixed.anchor.tensor for i in (0, 2)]
    h = torch.relu(torch.nn.functional.linear(x, anchors[0], model[0].bias))
    torch.testing.assert_close(ends, torch.nn.functional.linear(h, anchors[1], model[2].bias).detach())


@pytest.mark.parametrize("gradient", ["exact", "paper"])
@pytest.mark.parametrize("kind", [Mixout, Mixconnect])
def test_a_compiled_layer_computes_phi_and_its_gradient(kind, gradient):
    layer = mixout.apply_(nn.Linear(8, 6, bias=False).double(), kind(0.7, gradient=gradient))
    u = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    phi = compiled(torch.eye(8, dtype=torch.float64)).t()
    mask = (~torch.isclose(phi, u)).double()
    torch.testing.assert_close(phi.detach(), u + mask / (1 - 0.7), rtol=1e-9, atol=1e-9)
    phi.sum().backward()
    torch.testing.assert_close(layer.weight.grad, mask / (1 - 0.7) if gradient == "exact" else mask)


def test_in_eval_mode_a_compiled_model_is_the_plain_one():
    model = net(Mixout(0.5)).eval()
    x = torch.randn(5, 8)
    assert torch.compile(model, fullgraph=True, backend="eager")(x).equal(model(x))


def test_an_explicit_seed_compiles_fullgraph_too():
    """Trap: a private torch.Generator breaks fullgraph compile; a Python-integer seed recompiles every step."""
    model, eager = net(Mixout(0.5), seed=3), net(Mixout(0.5), seed=3)
    x = torch.randn(5, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [compiled(x) for _ in range(4)]
    for y in found:
        torch.testing.assert_close(y, eager(x))  # the masks of the seed, compiled or not


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


@pytest.mark.parametrize("name", ["bert", "llama"])
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


def test_more_columns_than_expected_travel_behind_the_static_shape():
    """mixout::keep shows the graph one column; all kept ones reach mixout::columns, and a copy is refused."""
    x, g, w = torch.randn(4, 6), torch.randn(4, 3), torch.randn(3, 6)
    mask = torch.tensor([True, False, True, True, True, True])
    kept, same = torch.ops.mixout.keep(x, mask)
    assert kept.shape == (4,)
    gradient = torch.ops.mixout.columns(g, kept, same, w, torch.tensor(2.0))
    torch.testing.assert_close(gradient, 2.0 * (g.t() @ x) * mask)
    with pytest.raises(RuntimeError, match="got copies"):
        torch.ops.mixout.columns(g, kept.clone(), same, w, torch.tensor(2.0))


def test_a_model_that_is_compiled_already_is_mixed_under_its_own_names():
    plain = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 4))
    compiled = torch.compile(plain, backend="eager")
    assert mixout.apply_(compiled, Mixout(0.5), anchor=compiled) is compiled
    with torch.no_grad():
        plain[0].weight.add_(1.0)
    first, second = (compiled(torch.ones(1, 8)) for _ in range(2))
    assert not first.equal(second)
    assert mixout.distance(compiled).by_layer == pytest.approx({"0.weight": 128**0.5, "2.weight": 0.0})
    mixout.load_state_dict_(plain, mixout.state_dict(compiled))
    mixout.remove_(compiled)
    assert plain[1].p == 0.3
    assert type(plain[0]) is nn.Linear
