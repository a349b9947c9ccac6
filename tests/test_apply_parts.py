"""A part, a copy or the whole of an applied model: each can be asked, saved and undone."""

import copy
import math
import pickle
import weakref

import pytest
import torch
from torch import nn

import mixout
from mixout import AnchorDecay, GradientMask, Mixout
from mixout.integrations import measures
from mixout.methods import Dropconnect, Dropout, Plain

METHODS = [
    Mixout(0.5),
    Dropconnect(0.5),
    GradientMask(0.5),
    AnchorDecay(0.1),
    AnchorDecay(radius=0.1, relative=True),
    Dropout(0.4),
    [Mixout(0.5), AnchorDecay(0.1)],
]


def block():
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.25), nn.Linear(4, 4))


def net():
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": block(), "decoder": block()})


def moved(model, by=1.0):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)
    return model


def extracted(model):
    """``enc = model.encoder; del model``: nothing keeps the whole alive."""
    root, part = weakref.ref(model), model["encoder"]
    del model
    return root, part


def parts_of(model):
    return {
        "part": model["encoder"],
        "copy": copy.deepcopy(model["encoder"]),
        "pickle": pickle.loads(pickle.dumps(model["encoder"])),
        "wrapped copy": nn.Sequential(copy.deepcopy(model["encoder"])),
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda m: mixout.methods.spell(m))
@pytest.mark.parametrize("kind", ["part", "copy", "pickle", "wrapped copy"])
def test_a_part_is_a_model_of_its_own(method, kind):
    """Distillation makes its student of copies of the teacher's layers."""
    model = moved(mixout.apply_(net(), method))
    part = parts_of(model)[kind]
    assert mixout.coverage(part).methods == mixout.methods.spell(method)
    state = mixout.save_state(part)
    mixout.load_state_(part, state)
    if state["fingerprint"] is not None:
        weights = [p.detach() for p in part.parameters() if p.dim() == 2]
        starts = [p.detach() for p in net()["encoder"].parameters() if p.dim() == 2]
        if method == Dropconnect(0.5):
            starts = [0 * u for u in starts]
        expected = math.sqrt(sum(float((w - u).square().sum()) for w, u in zip(weights, starts, strict=True)))
        assert mixout.distance(part).total == pytest.approx(expected)
        assert mixout.fingerprint(part) == mixout.fingerprint(model["encoder"]) != mixout.fingerprint(model)
    with pytest.raises(mixout.AlreadyAppliedError):
        mixout.apply_(part, Mixout(0.1))
    weights = [p.clone() for p in part.parameters()]
    mixout.remove_(part)
    assert [type(m) for m in part.modules() if list(m.children()) == []] == [nn.Linear, nn.Dropout, nn.Linear]
    assert not [m for m in part.modules() if any(key.startswith("_mix") for key in vars(m))]
    assert [m.p for m in part.modules() if isinstance(m, nn.Dropout)] == [0.25]
    assert all(a.equal(b) for a, b in zip(part.parameters(), weights, strict=True))
    mixout.apply_(part, Mixout(0.1))
    assert mixout.save_state(part)["p"] == 0.1
    # What was not removed is as it was.
    assert mixout.coverage(model["decoder"]).methods == mixout.methods.spell(method)
    mixout.remove_(model)
    assert not [m for m in model.modules() if any(key.startswith("_mix") for key in vars(m))]


def test_nothing_of_a_part_keeps_the_whole_alive():
    root, part = extracted(mixout.apply_(net(), [Mixout(0.5), AnchorDecay(0.1)]))
    assert root() is None
    optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
    part(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert mixout.distance(part).total > 0
    mixout.remove_(part)


def test_p_of_a_copy_is_its_own_and_p_of_a_part_is_the_wholes():
    model = mixout.apply_(net(), Mixout(0.5))
    twin = copy.deepcopy(model["encoder"])
    mixout.set_p_(twin, 0.9)
    assert mixout.save_state(model)["p"] == 0.5
    mixout.set_p_(model["encoder"], 0.1)
    assert mixout.save_state(model["decoder"])["p"] == 0.1


@pytest.mark.parametrize("method", METHODS, ids=lambda m: mixout.methods.spell(m))
def test_parts_that_are_removed_one_by_one_leave_nothing(method):
    model = mixout.apply_(net(), method)
    mixout.remove_(model["encoder"])
    mixout.remove_(model["decoder"])
    with pytest.raises(mixout.NotAppliedError):
        mixout.remove_(model)
    mixout.apply_(model, method)


def test_a_method_that_changes_nothing_lies_on_the_model_itself():
    model = mixout.apply_(net(), Plain())
    assert mixout.save_state(copy.deepcopy(model))["methods"] == "plain"
    with pytest.raises(mixout.AlreadyAppliedError):
        mixout.apply_(model, Plain())
    with pytest.raises(mixout.NotAppliedError, match=r"apply_ has not been called on this model"):
        mixout.remove_(model["encoder"])
    mixout.remove_(model)
    assert vars(model).keys() == vars(net()).keys()


def two(seed=None):
    """p by part: most of the decoder is kept near its start."""
    model = net()
    mixout.apply_(model["encoder"], Mixout(0.5), seed=seed)
    mixout.apply_(model["decoder"], [Mixout(0.9), AnchorDecay(0.1)], seed=seed)
    return model


def test_parts_with_ps_of_their_own_are_measured_and_reported_as_one():
    model = moved(two(), 0.5)
    assert mixout.coverage(model).methods == "mixout(0.5), mixout(0.9)+anchor_decay(0.1)"
    assert len(mixout.coverage(model).mixed) == 4
    assert mixout.distance(model).total == pytest.approx(math.sqrt(4 * 16 * 0.25))
    assert list(mixout.distance(model).by_layer) == [
        "decoder.0.weight", "decoder.2.weight", "encoder.0.weight", "encoder.2.weight"
    ]  # fmt: skip
    assert measures(model) == pytest.approx(
        {"mixout_p": 0.5, "mixout_p_2": 0.9, "anchor_distance": 4.0, "anchor_radius_used": 0.05}
    )
    mixout.remove_(model)
    assert mixout.coverage(model).mixed == ()


@pytest.mark.parametrize("seed", [None, 3])
def test_parts_with_ps_of_their_own_mix_with_them(seed):
    """With p = 0 and p = 1 Phi is w and u, whatever the masks."""
    model = net()
    mixout.apply_(model["encoder"], Mixout(0.0), seed=seed)
    mixout.apply_(model["decoder"], Mixout(1.0), seed=seed)
    start, x = copy.deepcopy(net()["decoder"]).eval(), torch.randn(3, 4)
    with torch.no_grad():
        for layer in (model["encoder"][0], model["decoder"][0]):
            layer.weight.add_(1.0)
    assert model["encoder"](x).equal(copy.deepcopy(model["encoder"]).eval()(x))
    assert model["decoder"](x).equal(start(x))


def test_the_state_of_parts_comes_back_and_is_compared_part_by_part():
    first, second = two(seed=3), two(seed=3)
    mixout.set_p_(first["encoder"], 0.25)
    for part in first.values():
        part(torch.ones(2, 4)).sum().backward()
    first["encoder"](torch.ones(2, 4))
    state = mixout.save_state(first)
    assert state["draws"] == {"0": 2, "2": 2}
    mixout.load_state_(second, state)
    assert mixout.save_state(second) == state
    assert [one["p"] for one in (state, *state["also"])] == [0.25, 0.9]
    for a, b in zip(first.values(), second.values(), strict=True):
        assert a(torch.ones(2, 4)).equal(b(torch.ones(2, 4)))  # the same masks go on
    with pytest.raises(mixout.MixoutError, match="the state is of 2 calls of apply_, the model carries 1"):
        mixout.load_state_(mixout.apply_(net(), Mixout(0.5), seed=3), state)
    other = two(seed=3)
    mixout.remove_(other["decoder"])
    moved(other["decoder"])
    mixout.apply_(other["decoder"], [Mixout(0.9), AnchorDecay(0.1)], seed=3)
    before = mixout.save_state(other)
    with pytest.raises(mixout.AnchorMismatchError):
        mixout.load_state_(other, state)
    assert mixout.save_state(other) == before


def test_a_schedule_follows_one_part_or_all():
    model = two()
    mixout.PScheduler(model["encoder"], mixout.schedule.LinearRamp(0.125, 0.125, 1))
    assert measures(model)["mixout_p"] == 0.125
    assert measures(model)["mixout_p_2"] == 0.9
    mixout.PScheduler(model, mixout.schedule.LinearRamp(0.75, 0.75, 1))
    # The largest is the schedule's; the others keep the proportion that they were applied with.
    assert measures(model)["mixout_p_2"] == 0.75
    assert measures(model)["mixout_p"] == pytest.approx(0.75 * 0.5 / 0.9)


def test_a_layer_that_was_replaced_is_not_anchored():
    """A new layer of the same shape has no anchor: no distance to the old one's may be told."""
    model = moved(mixout.apply_(net(), Mixout(0.5)))
    model["encoder"][0] = nn.Linear(4, 4)
    model["decoder"][0] = nn.Linear(4, 7)
    assert list(mixout.distance(model).by_layer) == ["encoder.2.weight", "decoder.2.weight"]
    assert mixout.coverage(model).mixed == ("encoder.2", "decoder.2")
    assert "encoder.0" in mixout.coverage(model).plain
    model["encoder"][2] = model["decoder"][2] = nn.Identity()
    assert mixout.coverage(model).mixed == ()
    mixout.remove_(model)  # the dropouts
    assert model["encoder"][1].p == 0.25
    with pytest.raises(mixout.NotAppliedError):
        mixout.distance(model)


def test_a_weight_that_was_resized_is_told_apart_from_its_anchor():
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), Mixout(0.5))
    model[0].weight = nn.Parameter(torch.zeros(5, 4))
    with pytest.raises(mixout.AnchorMismatchError, match=r"'0.weight' has shape \(5, 4\), its anchor \(3, 4\)"):
        mixout.distance(model)


def test_coverage_of_a_plain_model_is_a_report():
    report = mixout.coverage(nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(2), nn.Dropout(0.1)))
    assert (report.methods, report.mixed, report.parameters_mixed) == ("no method", (), 0.0)
    assert [str(site) for site in report.dropouts] == ["2.p = 0.1"]
    assert "no method: 0 layers mixed" in str(report)
