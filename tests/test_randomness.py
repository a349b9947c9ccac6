"""Masks and the random stream: seeds, resume, checkpointing, two processes."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mixout
from mixout import Mixconnect, Mixout, streams
from mixout.layers.mixed import Mixed
from mixout.methods import Dropconnect

METHODS = [
    Mixout(0.5),
    Mixout(0.5, unit="output"),
    Mixconnect(0.5),
    Mixconnect(0.5, noise="gaussian"),
    Dropconnect(0.5),
]


def net(method=METHODS[0], seed=None, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
    mixout.apply_(model, method, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def inputs(n=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(n)]


@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
def test_manual_seed_decides_the_masks(method):
    model, (x, _) = net(method), inputs()
    torch.manual_seed(5)
    first, second = model(x), model(x)
    torch.manual_seed(5)
    assert model(x).equal(first)
    assert model(x).equal(second)
    assert not first.equal(second)
    torch.manual_seed(6)
    assert not model(x).equal(first)


@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
def test_a_restored_rng_state_repeats_the_masks(method):
    """Trap: a private torch.Generator is not saved by trainers."""
    model, (x, _) = net(method), inputs()
    model(x)
    state = torch.get_rng_state()
    expected = [model(x) for _ in range(3)]
    torch.set_rng_state(state)
    assert all(model(x).equal(y) for y in expected)


@pytest.mark.parametrize("seed", [None, 3])
def test_no_draw_in_eval_mode(seed):
    """Trap: a draw in eval mode."""
    model, (x, _) = net(seed=seed), inputs()
    model(x)
    global_state, own = torch.get_rng_state(), mixout.save_state(model)
    model.eval()
    assert model(x).equal(model(x))
    assert torch.get_rng_state().equal(global_state)
    assert mixout.save_state(model) == own


@pytest.mark.parametrize("seed", [None, 3])
def test_layers_have_masks_of_their_own(seed):
    model = mixout.apply_(
        nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3))), Mixout(0.5), anchor=0, seed=seed
    )
    kept = [(layer(torch.eye(64)) != 0).all(1) for layer in model]
    assert all(0 < k.sum() < 64 for k in kept)
    assert not kept[0].equal(kept[1])
    assert not kept[1].equal(kept[2])


def run(model, xs, wrap):
    """Forward passes first, then one backward: the gradients and the outputs."""
    model.zero_grad()
    torch.manual_seed(9)
    outputs = [wrap(model, x) for x in xs]
    (outputs[0].pow(2).sum() + sum((k + 2) * y.pow(3).sum() for k, y in enumerate(outputs[1:]))).backward()
    return [y.detach() for y in outputs], [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_activation_checkpointing_changes_nothing(passes, method, reentrant, seed):
    """Traps: a fresh mask in activation-checkpoint recomputation; two forward passes before one backward."""

    def checkpointed(model, x):
        y = x.requires_grad_()
        for block in (model[:2], model[2:4], model[4:]):
            y = checkpoint(block, y, use_reentrant=reentrant)
        return y

    plain = run(net(method, seed), inputs(passes), lambda model, x: model(x))
    wrapped = run(net(method, seed), inputs(passes), checkpointed)
    for a, b in zip(plain[0] + plain[1], wrapped[0] + wrapped[1], strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("seed", [None, 3])
def test_training_under_checkpointing_is_training_without(seed):
    """Several steps: recomputations must not disturb the draws of the steps after them."""
    results = []
    for reentrant in (None, True, False):
        model = net(seed=seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        torch.manual_seed(9)
        for x in inputs(4):
            optimizer.zero_grad()
            y = model(x) if reentrant is None else checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)
            y.pow(2).sum().backward()
            optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()] + [mixout.save_state(model)["draws"]])
    for other in results[1:]:
        assert other[-1] == results[0][-1]
        assert all(a.equal(b) for a, b in zip(results[0][:-1], other[:-1], strict=True))


PROGRAM = """
import sys, torch, mixout
from torch import nn
mode = sys.argv[1]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
mixout.apply_(model, mixout.Mixout(0.5), seed=11)
with torch.no_grad():
    [p.add_(1.0) for p in model.parameters()]
torch.manual_seed(int(sys.argv[2]))
for step in range(4):
    if mode == "reseeding":
        torch.manual_seed(77)
    if mode == "drawing":
        torch.rand(5)
    print([round(v, 4) for v in model(torch.ones(8)).tolist()])
"""


def in_a_process(mode, seed):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode, str(seed)], capture_output=True, text=True, check=True, timeout=900
    )
    return done.stdout.splitlines()


@pytest.mark.sweep
def test_an_explicit_seed_agrees_across_processes_whatever_else_is_drawn():
    """Trap: ranks that disagree (or agree) by accident."""
    first = in_a_process("plain", 1)
    assert len(set(first)) == 4
    assert in_a_process("drawing", 2) == first
    assert in_a_process("reseeding", 3) == first


def test_two_seeds_differ():
    x = inputs()[0]
    assert not net(seed=1)(x).equal(net(seed=2)(x))
    assert net(seed=1)(x).equal(net(seed=1)(x))


def test_a_restored_state_continues_the_draws():
    model, (x, _) = net(seed=3), inputs()
    for _ in range(3):
        model(x)
    state = mixout.save_state(model)
    expected = [model(x) for _ in range(2)]
    other = net(seed=3)
    torch.manual_seed(1234)
    mixout.load_state_(other, state)
    assert all(other(x).equal(y) for y in expected)
    assert mixout.save_state(other) == mixout.save_state(model)


def test_a_state_of_several_ranks_continues_its_draws_in_one_process():
    """There the agreed seed says that masks follow from counts, which none of the model's own settings does."""
    model, (x, _) = net(), inputs()
    draws = {name: 3 for name, module in model.named_modules() if hasattr(module, "_mixed")}
    state = {**mixout.save_state(model), "agreed_seed": 5, "draws": draws}
    mixout.load_state_(model, state)
    first = model(x)
    assert mixout.save_state(model)["draws"] == {name: 4 for name in draws}
    mixout.load_state_(model, state)
    assert model(x).equal(first)


def test_a_restored_state_continues_the_draws_in_the_same_process():
    """Rolled back with the global RNG state, as a trainer does: the count must go on as it did before."""
    model, (x, _) = net(seed=3), inputs()
    model(x)
    state, rng = mixout.save_state(model), torch.get_rng_state()
    expected, after = [model(x) for _ in range(2)], mixout.save_state(model)
    mixout.load_state_(model, state)
    torch.set_rng_state(rng)
    assert all(model(x).equal(y) for y in expected)
    assert mixout.save_state(model) == after


@pytest.mark.parametrize(
    ("method", "seed", "chunks"),
    [
        *((method, seed, 4) for method in (METHODS[0], METHODS[2]) for seed in (None, 3)),
        (METHODS[0], 3, 1100),
        pytest.param(METHODS[0], None, 1100, marks=pytest.mark.sweep),
        *(pytest.param(METHODS[2], seed, 1100, marks=pytest.mark.sweep) for seed in (None, 3)),
    ],
    ids=str,
)
def test_gradient_caching_repeats_each_chunk_with_its_own_masks(method, seed, chunks):
    """GradCache: embeddings of all chunks without a graph, then each again with one, under the same random state."""
    model = net(method, seed)
    parts = torch.randn(chunks, 1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states, first = [], []
    with torch.no_grad():
        for part in parts:
            states.append(torch.get_rng_state())
            first.append(model(part))
    assert not first[0].equal(model(parts[0]))
    for part, state, embedding in zip(parts, states, first, strict=True):
        torch.set_rng_state(state)
        again = model(part)
        assert again.equal(embedding)
        assert again.requires_grad


@pytest.mark.parametrize("seed", [None, 3])
def test_a_cached_gradient_is_that_of_the_loss(seed):
    """The same step with all chunks in one graph; checkpointed in the second pass too."""
    xs = inputs(3)
    expected = run(net(seed=seed), xs, lambda model, x: model(x))[1]
    for wrap in (lambda model, x: model(x), lambda model, x: checkpoint(model, x, use_reentrant=False)):
        model = net(seed=seed)
        model.zero_grad()
        torch.manual_seed(9)
        states, first = [], []
        with torch.no_grad():
            for x in xs:
                states.append(torch.get_rng_state())
                first.append(model(x))
        leaves = [y.clone().requires_grad_() for y in first]
        (leaves[0].pow(2).sum() + sum((k + 2) * y.pow(3).sum() for k, y in enumerate(leaves[1:]))).backward()
        for x, state, leaf in zip(xs, states, leaves, strict=True):
            torch.set_rng_state(state)
            wrap(model, x).backward(leaf.grad)
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_a_recomputation_that_does_not_find_its_masks_raises():
    """Never another mask in silence."""
    model, (x, _) = net(seed=3), inputs()
    y = checkpoint(model, x.requires_grad_(), use_reentrant=False, preserve_rng_state=False)
    torch.rand(7)
    with pytest.raises(mixout.MixoutError, match=r"'0' is called in a backward pass.*preserve_rng_state"):
        y.sum().backward()


@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_caching_of_too_many_chunks_is_told_once(monkeypatch, compiled):
    monkeypatch.setattr(streams, "REMEMBERED_DRAWS", 8)
    model, (x, _) = net(seed=3), inputs()
    layers = sum(isinstance(module, Mixed) for module in model.modules())
    call = torch.compile(model, backend="aot_eager") if compiled else model
    for _ in range(12):  # their backward is done: nothing is lost when they are forgotten
        call(x).sum().backward()
    with torch.no_grad(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(8 // layers):
            call(x)
        assert not seen
        for _ in range(3):
            call(x)
    [warning] = seen
    assert warning.category is mixout.ForgottenMasksWarning
    assert "the masks of 8 draws are remembered" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("save", ["mm", "nothing", "everything"])
@pytest.mark.parametrize("rows", [1, 3, 400])
@pytest.mark.parametrize("method", METHODS, ids=mixout.methods.spell)
def test_selective_checkpointing_changes_nothing(method, rows, save, seed, dtype):
    """It keeps some results and refuses those that a layer changes in place, as small float32 layers change masks."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def policy(_context, op, *_args, **_options):
        keep = save == "everything" or (save == "mm" and "mm" in str(op))
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    xs = [torch.randn(rows, 6, generator=torch.Generator().manual_seed(k), dtype=dtype) for k in (1, 2)]
    plain = run(net(method, seed, dtype), xs, lambda model, x: model(x))
    contexts = lambda: create_selective_checkpoint_contexts(policy)  # noqa: E731
    wrapped = run(
        net(method, seed, dtype),
        xs,
        lambda model, x: checkpoint(model, x.requires_grad_(), use_reentrant=False, context_fn=contexts),
    )
    for a, b in zip(plain[0] + plain[1], wrapped[0] + wrapped[1], strict=True):
        assert a.equal(b)
