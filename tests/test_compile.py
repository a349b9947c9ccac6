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
