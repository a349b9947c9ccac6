"""The fingerprint: of what was captured, computed once, and of nothing that happens to the model afterwards."""

import copy
import hashlib
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import mixout
from mixout import AnchorDecay, Mixconnect, Mixout
from mixout.anchor import digest, fingerprint


def net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def mixed(method=None, **options):
    return mixout.apply_(net(), method or Mixout(0.5), **options)


def anchors(model):
    return [m._mixed.anchor.tensor for m in model.modules() if hasattr(m, "_mixed")]


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dtype = next(model.parameters()).dtype
    model.train()(torch.ones(4, 6, dtype=dtype)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model


@pytest.mark.parametrize(
    "tensor", [torch.randn(3, 2), torch.randn(2, 3).t(), torch.randn(4).double(), torch.ones(0, 2)]
)
def test_a_digest_is_sha256_of_dtype_shape_and_bytes(tensor):
    head = f"{tensor.dtype}:{tuple(tensor.shape)};".encode()
    assert digest(tensor) == hashlib.sha256(head + tensor.numpy().tobytes()).hexdigest()
    assert digest(tensor.clone()) == digest(tensor)


def test_digests_tell_values_shapes_and_dtypes_apart():
    ones = torch.ones(2, 3)
    others = [
        ones,
        ones.t(),
        ones.double(),
        ones.bfloat16(),
        ones.half(),
        ones * 2,
        torch.full((2, 3), 1 + 1e-7),
        -ones * 0,
        ones * 0,
    ]
    assert len(set(map(digest, others))) == len(others)


def test_fingerprints_tell_digests_and_their_order_apart():
    others = [["1"], ["2"], [], ["1", "0"], ["1", "2"], ["2", "1"], ["12"]]
    assert len({fingerprint(one) for one in others}) == len(others)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.half().float(),
        lambda m: m.to("meta"),
        lambda m: m.to_empty(device="cpu"),
        lambda m: m.to("meta").bfloat16().to_empty(device="cpu"),
        lambda m: m.share_memory(),
        lambda m: step(step(m)),
        lambda m: step(m.double()),
        copy.deepcopy,
        lambda m: copy.deepcopy(m.bfloat16()),
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: pickle.loads(pickle.dumps(m.double())).float(),
    ],
)
@pytest.mark.parametrize("method", [Mixout(0.5), AnchorDecay(0.1), AnchorDecay(radius=0.1, relative=True)], ids=str)
@pytest.mark.filterwarnings("ignore::mixout.DecayStrengthWarning")
def test_nothing_that_happens_to_the_model_changes_it(change, method):
    model = mixed(method)
    before = mixout.fingerprint(model)
    changed = change(model)
    assert mixout.fingerprint(changed) == before
    mixout.load_state_(mixed(method), mixout.save_state(changed))


def test_a_value_the_order_or_a_dtype_at_capture_changes_it_and_names_do_not():
    other_value = net()
    with torch.no_grad():
        other_value[0].weight[0, 0] += 1e-6
    models = [net(), other_value, net(dtype=torch.bfloat16), net(dtype=torch.float64)]
    found = [mixout.fingerprint(mixout.apply_(model, Mixout(0.5), where="0|2")) for model in models]
    turned = nn.ModuleDict({"2": net()[2], "0": net()[0]})
    found.append(mixout.fingerprint(mixout.apply_(turned, Mixout(0.5))))
    assert len(set(found)) == len(found)
    renamed = nn.ModuleDict({"a": net()[0], "b": net()[2]})
    assert mixout.fingerprint(mixout.apply_(renamed, Mixout(0.5))) == found[0]


def test_how_an_anchor_is_kept_is_not_what_it_is():
    """Another dtype and place of the anchor train bit for bit alike, so either may resume the other's run."""
    model = net().bfloat16().float()
    usual = mixout.apply_(copy.deepcopy(model), Mixout(0.5))
    for options in ({"anchor": mixout.Anchor(dtype=torch.bfloat16)}, {"anchor": mixout.Anchor(device="cpu")}):
        kept = mixout.apply_(copy.deepcopy(model), Mixout(0.5), **options)
        assert mixout.fingerprint(kept) == mixout.fingerprint(usual)
    # From a file, a state dict or a model it is the same as from the weights themselves.
    assert mixout.fingerprint(mixout.apply_(net(1), Mixout(0.5), anchor=model)) == mixout.fingerprint(usual)
    assert mixout.fingerprint(mixout.apply_(net(1), Mixout(0.5), anchor=model.double())) == mixout.fingerprint(usual)


def test_each_anchor_is_hashed_once(monkeypatch):
    import mixout.anchor

    hashed, original = [], mixout.anchor._hash_bytes
    monkeypatch.setattr(mixout.anchor, "_hash_bytes", lambda *args: hashed.append(args[1].shape) or original(*args))
    model = net()
    model.append(nn.Linear(8, 3))
    model[3].weight = model[2].weight  # tied: one parameter, one anchor
    mixout.apply_(model, [Mixout(0.5), AnchorDecay(0.1)])
    assert hashed == [(8, 6), (3, 8)]
    state = mixout.save_state(model)
    mixout.load_state_(copy.deepcopy(model).double(), state)
    mixout.distance(model, anchor=net().state_dict(), where="0")
    assert len(hashed) == 2


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.double], ids=["bfloat16", "double"])
@pytest.mark.parametrize("when", ["before loading", "after loading"])
def test_a_run_that_was_cast_resumes_exactly(cast, when):
    torch.manual_seed(3)
    whole = step(step(cast(mixed())))
    state, weights, stream = mixout.save_state(whole), copy.deepcopy(whole.state_dict()), torch.get_rng_state()
    step(step(whole))
    resumed = mixed()
    if when == "before loading":
        cast(resumed)
    mixout.load_state_(resumed, state)
    cast(resumed).load_state_dict(weights)
    torch.set_rng_state(stream)
    step(step(resumed))
    assert all(a.equal(b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert mixout.distance(whole) == mixout.distance(resumed)


@pytest.mark.parametrize(
    "away",
    [
        lambda m: m.to_empty(device="cpu"),
        lambda m: m.to("meta").to_empty(device="cpu"),
        lambda m: m.to_empty(device="meta").to_empty(device="cpu"),
    ],
    ids=["emptied", "meta", "emptied on meta"],
)
@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64}, {"device": "cpu"}], ids=str)
def test_weights_may_go_and_come_back_and_the_anchor_stays(away, options):
    """to_empty fills what it sees with garbage, meta drops it: the anchor's values must be neither's."""
    whole, emptied = (mixed(anchor=mixout.Anchor(**options)) for _ in range(2))
    weights = copy.deepcopy(emptied.state_dict())
    away(emptied).load_state_dict(weights)
    assert all(a.equal(b) for a, b in zip(anchors(emptied), anchors(whole), strict=True))
    for model in (whole, emptied):
        torch.manual_seed(1)
        step(step(model))
    assert all(a.equal(b) for a, b in zip(whole.parameters(), emptied.parameters(), strict=True))


def test_an_anchor_is_cast_like_its_weight():
    model = mixed()
    weights = [net()[0].weight, net()[2].weight]
    for cast in (torch.Tensor.half, torch.Tensor.double, torch.Tensor.bfloat16, torch.Tensor.float):
        weights = [cast(w) for w in weights]
        model = model.to(weights[0].dtype)
        assert all(a.equal(w) and a.dtype == w.dtype for a, w in zip(anchors(model), weights, strict=True))
    assert mixout.distance(model).total == 0.0  # the weights went the same way
    fixed = mixed(anchor=mixout.Anchor(dtype=torch.float64)).half().float()
    assert {t.dtype for t in anchors(fixed)} == {torch.float64}


def test_a_convolution_in_channels_last_beside_an_anchor_that_is_not():
    model = mixout.apply_(nn.Sequential(nn.Conv2d(4, 6, 3)), Mixout(0.5), where=mixout.Where(types=nn.Conv2d), seed=1)
    other, x = copy.deepcopy(model), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        model[0].weight.add_(1)
        other[0].weight.add_(1)
    other.to(memory_format=torch.channels_last)
    assert mixout.distance(other).total == pytest.approx(mixout.distance(model).total)
    torch.testing.assert_close(other.double()(x.double()), model.double()(x.double()))


def test_in_shared_memory_the_anchor_stays_what_it_is():
    model = mixed().share_memory()
    assert all(a.equal(b) for a, b in zip(anchors(model), anchors(mixed()), strict=True))


@pytest.mark.parametrize("method", [Mixout(0.5), Mixconnect(0.3), [Mixout(0.9), AnchorDecay(0.1)]], ids=str)
def test_copies_of_a_model_share_its_anchors(method):
    """An average of the weights (EMA, SWA) is a deep copy that never reads its anchors."""
    model = mixed(method)
    average = AveragedModel(model)
    twin = average.module
    assert [a.data_ptr() for a in anchors(twin)] == [a.data_ptr() for a in anchors(model)]
    before = [a.clone() for a in anchors(model)]
    for _ in range(3):
        average.update_parameters(step(model))
        step(twin)
    assert all(a.equal(b) for a, b in zip(anchors(model), before, strict=True))  # nobody writes to them
    assert mixout.distance(twin).total > 0
    twin.double()
    assert {a.dtype for a in anchors(twin)} == {torch.float64}
    assert all(a.equal(b) for a, b in zip(anchors(model), before, strict=True))
    held = mixout.measure.anchored_weights(twin)["0.weight"][2]
    assert twin[0]._mixed.anchor is held  # within a copy they are one, as before
