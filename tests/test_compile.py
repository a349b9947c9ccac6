"""torch.compile: one graph, no recompilation over p, fresh masks. Few tests: each compilation takes seconds."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mixout
from mixout import GradientMask, Mixconnect, Mixout, PScheduler, masks, passes
from mixout.schedule import LinearRamp

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


@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=pytest.mark.sweep), "aot_eager"])
def test_a_schedule_of_p_compiles_once_and_masks_are_fresh(backend):
    """Traps: a schedule of p that recompiles at each value; a Python-integer seed recompiles every step."""
    model = net(Mixout(0.5))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    scheduler = PScheduler(model, LinearRamp(0.1, 1.0, 4))
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


def kept_columns(model, compiled, x):
    """Which columns of each layer's weight have a gradient: the mask of its pass."""
    model.zero_grad()
    compiled(x).square().sum().backward()
    return [tuple((layer.weight.grad.abs().sum(0) > 0).tolist()) for layer in model if isinstance(layer, nn.Linear)]


BACKENDS = [
    *((Mixout(0.5), "aot_eager", seed) for seed in (None, 3)),
    (Mixout(0.5), "inductor", None),
    *(
        pytest.param(method, "aot_eager", seed, marks=pytest.mark.sweep)
        for method in (Mixout(0.5, unit="element"), GradientMask(0.5), Mixconnect(0.5))
        for seed in (None, 3)
    ),
]


@pytest.mark.parametrize(("method", "backend", "seed"), BACKENDS, ids=str)
def test_layers_of_a_compiled_model_have_masks_of_their_own(method, backend, seed):
    """Trap: compilers merge equal calls of an op, so that all layers of one width had one mask."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)))
    mixout.apply_(model, method, seed=seed)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    phis = []
    for _ in range(2):
        with torch.no_grad():
            for layer in model:
                layer.weight.add_(0.1 * torch.randn_like(layer.weight))
        kept = kept_columns(model, compiled, torch.randn(256, 64))
        gradients = [layer.weight.grad != 0 for layer in model]
        assert len({tuple(g.flatten().tolist()) for g in gradients}) == 3
        if method.unit == "input":
            assert all(16 < sum(mask) < 48 for mask in kept)
        phis.append(gradients)
    assert not any(a.equal(b) for a, b in zip(*phis, strict=True))  # a fresh mask in each pass


@pytest.mark.parametrize(
    ("backend", "seed"),
    [
        pytest.param("inductor", None, marks=pytest.mark.sweep),
        ("aot_eager", 3),
        pytest.param("inductor", 3, marks=pytest.mark.sweep),
        pytest.param("aot_eager", None, marks=pytest.mark.sweep),
    ],
)
def test_two_calls_of_a_layer_in_one_graph_draw_twice(backend, seed):
    """ALBERT, R-Drop, SimCSE: without this their two passes are one, and their KL is zero."""
    torch.manual_seed(0)
    layer = mixout.apply_(nn.Sequential(nn.Linear(32, 32)), Mixout(0.5), seed=seed)
    with torch.no_grad():
        layer[0].weight.add_(1.0)
    twice = torch.compile(lambda x: (layer(x), layer(x)), fullgraph=True, backend=backend)
    x = torch.randn(8, 32)
    before = mixout.save_state(layer)["draws"].get("0", 0)
    for _ in range(2):
        a, b = twice(x)
        assert not a.equal(b)
    if seed is not None:
        assert mixout.save_state(layer)["draws"]["0"] - before == 4
        eager = mixout.apply_(nn.Sequential(nn.Linear(32, 32)), Mixout(0.5), seed=seed)
        eager.load_state_dict(layer.state_dict())
        eager[0]._mixed.anchor.tensor.copy_(layer[0]._mixed.anchor.tensor)
        expected = [eager(x) for _ in range(4)]
        torch.testing.assert_close([a, b], expected[2:])  # the masks of the seed, compiled or not


@pytest.mark.parametrize(
    ("backend", "gradient"),
    [
        ("inductor", "exact"),
        ("aot_eager", "paper"),
        pytest.param("inductor", "paper", marks=pytest.mark.sweep),
        pytest.param("aot_eager", "exact", marks=pytest.mark.sweep),
    ],
)
def test_one_graph_serves_every_batch_and_its_gradients_are_the_definitions(backend, gradient):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    mixout.apply_(model, Mixout(0.5, gradient=gradient), seed=5)
    eager = copy.deepcopy(model)
    with torch.no_grad():
        for a, b in zip(model.parameters(), eager.parameters(), strict=True):
            b.copy_(a.add_(0.1 * torch.randn_like(a)))
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    counter = torch._dynamo.utils.counters["stats"]
    counter.clear()
    for rows in (5, 3, 17, 0, 2):
        x = torch.randn(rows, 8)
        found = []
        for net_ in (compiled, eager):
            leaf = x.clone().requires_grad_()
            y = net_(leaf)
            y.square().sum().backward()
            found.append([y.detach(), leaf.grad, *(p.grad.clone() for p in net_.parameters())])
            net_.zero_grad()
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert counter["unique_graphs"] <= 2  # an empty batch may have a graph of its own


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.sweep)])
def test_the_graph_that_a_gpu_gets_holds_no_op_of_ours(backend, monkeypatch):
    """There the compiler fuses plain torch: asked for here by taking the device's branch."""
    monkeypatch.setattr(passes, "_is_fused", lambda _: True)
    monkeypatch.setattr(masks, "draw", lambda shape, p, **_: torch.rand(shape) >= p)
    monkeypatch.setattr(passes, "draw", masks.draw)
    model = net(Mixout(0.5))
    names = []

    def record(graph, inputs):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph)

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=record, bw_compiler=record))(
        torch.randn(4, 8)
    ).sum().backward()
    assert not [name for name in names if "mixout" in name]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert not compiled(torch.ones(4, 8)).equal(compiled(torch.ones(4, 8)))
    compiled(torch.ones(4, 8)).sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_compiled_model_is_recomputed_with_its_own_masks(reentrant):
    torch.manual_seed(0)
    found = []
    for wrapped in (False, True):
        model = net(Mixout(0.5), seed=2)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.manual_seed(1)
        x = torch.ones(5, 8, requires_grad=True)
        y = [checkpoint(compiled, x, use_reentrant=reentrant) if wrapped else compiled(x) for _ in range(2)]
        (y[0] * y[1]).sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


class Checkpointed(nn.Module):
    """As transformers' models with gradient checkpointing: blocks that are checkpointed, within what is compiled."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(8, 8, dtype=torch.float64) for _ in range(3))

    def block(self, x):
        return self.two(torch.relu(self.one(x))).tanh()

    def forward(self, x):
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=False)
        return self.three(x)


@pytest.mark.parametrize(
    ("method", "backend", "seed"),
    [
        *((Mixout(0.5), "aot_eager", seed) for seed in (None, 3)),
        pytest.param(Mixout(0.5), "inductor", None, marks=pytest.mark.sweep),
        pytest.param(Mixout(0.5), "inductor", 3, marks=pytest.mark.sweep),
        *(
            pytest.param(method, "aot_eager", seed, marks=pytest.mark.sweep)
            for method in (Mixconnect(0.5), Mixout(0.5, unit="element"), Mixout(0.5, every=4))
            for seed in (None, 3)
        ),
    ],
    ids=str,
)
def test_a_block_that_is_checkpointed_in_a_graph_is_recomputed_with_its_own_masks(method, seed, backend):
    """The gradient is that of the loss: held against finite differences of the same passes."""
    torch.manual_seed(0)
    model = mixout.apply_(Checkpointed(), method, seed=seed, where=mixout.ALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    compiled, x = torch.compile(model, backend=backend), torch.ones(3, 8, dtype=torch.float64)
    start = mixout.save_state(model)

    def loss():
        torch.manual_seed(7)
        mixout.load_state_(model, start)
        return compiled(x).pow(2).sum()

    loss().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    norm = sum(gradient.pow(2).sum() for gradient in gradients).sqrt().item()
    ends = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=step / norm)
            ends.append(loss().item())
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-step / norm)
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(norm, rel=1e-6)


def test_a_model_that_is_compiled_already_is_mixed_under_its_own_names():
    plain = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 4))
    compiled = torch.compile(plain, backend="eager")
    assert mixout.apply_(compiled, Mixout(0.5), anchor=compiled) is compiled
    with torch.no_grad():
        plain[0].weight.add_(1.0)
    first, second = (compiled(torch.ones(1, 8)) for _ in range(2))
    assert not first.equal(second)
    assert mixout.distance(compiled).by_layer == pytest.approx({"0.weight": 128**0.5, "2.weight": 0.0})
    mixout.load_state_(plain, mixout.save_state(compiled))
    mixout.remove_(compiled)
    assert plain[1].p == 0.3
    assert type(plain[0]) is nn.Linear


@pytest.mark.parametrize("bias", [True, False])
def test_an_input_of_another_dtype_is_refused_as_eagerly(bias):
    layer = mixout.apply_(nn.Sequential(nn.Linear(4, 3, bias=bias)).bfloat16(), mixout.Mixout(0.5))
    with pytest.raises(RuntimeError, match="dtype"):
        torch.compile(layer, backend="eager")(torch.ones(64, 4))
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.sweep), "aot_eager"])
def test_every_kind_of_layer_is_one_graph_with_a_period(backend):
    """Also of a copy, and after a state was loaded; eager passes are the oracle."""
    x = torch.randn(2, 4, 6)
    for layer in (nn.Conv1d(4, 4, 3), nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 6)):
        model = mixout.apply_(nn.ModuleList([layer]), mixout.Mixout(0.5, every=2), where=mixout.Where(types=nn.Module))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        mixout.load_state_(model, mixout.save_state(model))
        for one in (model, copy.deepcopy(model)):
            # 2.7 cannot trace vars().
            whole = isinstance(layer, nn.Linear) or not torch.__version__.startswith("2.7.")
            call = torch.compile(one[0], backend=backend, fullgraph=whole)
            inputs = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
            got, wanted = call(*inputs), one[0](*inputs)
            torch.testing.assert_close(got, wanted)
            assert not torch.allclose(*(a[0] if isinstance(a, tuple) else a for a in (got, one.eval()[0](*inputs))))
        torch._dynamo.reset()
