"""Methods by layer: each layer has the first that fits; state, schedule, callbacks and distance work with it."""

import copy

import pytest
import torch
import transformers
from torch import nn

import mixout
from mixout import AnchorDecay, Mixout
from mixout.integrations import measures


def net():
    torch.manual_seed(0)
    part = {name: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 4)) for name in ("encoder", "decoder")}
    return nn.ModuleDict({**part, "head": nn.Linear(4, 4)})


@pytest.fixture
def bert():
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))


RULES = {
    r"encoder\.0": Mixout(0.2),
    "encoder": "mixout(0.4)",
    "decoder": [Mixout(0.8, unit="output"), AnchorDecay(1.0)],
}
PS = {"encoder.0": 0.2, "encoder.2": 0.4, "decoder.0": 0.8, "decoder.2": 0.8}


def test_the_first_that_fits_counts_and_what_none_fits_is_left_out():
    model = mixout.apply_(net(), RULES)
    assert mixout.state(model).by_layer == PS
    assert mixout.state(model).p == 0.8
    assert [m._mixed.mixing.unit for m in model.modules() if hasattr(m, "_mixed")] == ["input"] * 2 + ["output"] * 2
    report = mixout.coverage(model)
    assert report.methods == "mixout(0.2), mixout(0.4), mixout(0.8, unit=output)+anchor_decay(1.0)"
    assert report.plain == ("head",)
    assert report.dropouts == ()
    assert set(mixout.measure.targets(model)) == {"decoder.0.weight", "decoder.2.weight"}
    assert mixout.distance(model).total == 0.0
    assert set(mixout.distance(model).by_layer) == {f"{name}.weight" for name in PS}
    mixout.remove_(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]


@pytest.mark.parametrize("method", ["mixout(0.5)", "anchor_decay(1.0)"])
@pytest.mark.parametrize("dry", [False, True])
def test_what_no_expression_matches_is_said_to_be_outside_of_the_parts(method, dry, bert):
    rules = {r"layer\.0": method}
    report = mixout.coverage(bert, rules) if dry else mixout.coverage(mixout.apply_(bert, rules))
    reasons = {row.name: row.reason for row in report.layers if row.kind == "plain" and "Norm" not in row.name}
    assert any("layer.1" in name for name in reasons)
    assert any("embeddings" in name for name in reasons)
    assert set(reasons.values()) == {r"left out (where='body', in the parts 'layer\\.0')"}


def test_an_expression_that_matches_nothing_is_not_taken_for_one_of_the_head(bert):
    with pytest.raises(
        mixout.NothingMixedError, match=r"in the part 'encoderr' matches no linear layer: names are bert"
    ):
        mixout.apply_(bert, {"encoderr": "mixout(0.5)"})
    with pytest.raises(
        mixout.NothingMixedError, match=r"classifier: an output layer or a new head, left out by default"
    ):
        mixout.apply_(bert, {"classifier": "mixout(0.5)"})


def test_a_schedule_keeps_the_proportions():
    model = mixout.apply_(net(), RULES)
    mixout.PScheduler(model, mixout.schedule.LinearRamp(0.4, 0.4, 1))
    assert mixout.state(model).by_layer == pytest.approx({k: p / 2 for k, p in PS.items()})
    assert measures(model)["mixout_p"] == pytest.approx(0.1)
    mixout.set_p_(model, 0.5)
    assert set(mixout.state(model).by_layer.values()) == {0.5}
    from_zero = mixout.apply_(net(), {"encoder": Mixout(0.0), "decoder": Mixout(0.0)})
    mixout.PScheduler(from_zero, mixout.schedule.LinearRamp(0.4, 0.4, 1))
    assert set(mixout.state(from_zero).by_layer.values()) == {0.4}


def test_the_state_comes_back():
    first, second = (mixout.apply_(net(), RULES, seed=3) for _ in range(2))
    mixout.PScheduler(first, mixout.schedule.LinearRamp(0.4, 0.4, 1))
    x = torch.randn(2, 4)
    first["encoder"](x).sum().backward()
    state = mixout.save_state(first)
    mixout.load_state_(second, state)
    assert mixout.save_state(second) == state
    assert mixout.state(second).by_layer == mixout.state(first).by_layer
    assert second["encoder"](x).equal(first["encoder"](x))
    twin = copy.deepcopy(first)
    assert mixout.fingerprint(twin) == mixout.fingerprint(first)


def test_by_depth():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(12))
            self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
            self.pooler = nn.Linear(4, 4)

    model = Model()
    mixout.apply_(model, mixout.by_depth(model, lambda depth: Mixout(0.9 - 0.5 * depth)))
    found = mixout.state(model).by_layer
    expected = {f"layers.{place}.0": 0.9 - 0.5 * place / 11 for place in range(12)}
    assert found == pytest.approx({**expected, "pooler": 0.4})
    with pytest.raises(ValueError, match=r"blocks lie in a torch.nn.ModuleList, got Linear"):
        mixout.by_depth(nn.Linear(2, 2), lambda depth: Mixout(depth))


@pytest.mark.parametrize(
    ("error", "rules", "match"),
    [
        (ValueError, {}, "empty dict"),
        (ValueError, {"(": Mixout(0.5)}, "regular expressions as keys"),
        (ValueError, {3: Mixout(0.5)}, "regular expressions as keys"),
        (ValueError, {"encoder": mixout.methods.Dropout(0.1)}, "sets all of the model's"),
        (TypeError, {"encoder": 0.5}, "expected a method"),
        (mixout.NothingMixedError, {"encoder": Mixout(0.5), "encodre": Mixout(0.1)}, "encodre"),
        (ValueError, {"encoder": [Mixout(0.5), Mixout(0.1)]}, "at most one mixes"),
    ],
)
def test_what_is_refused_leaves_the_model_untouched(error, rules, match):
    model = net()
    with pytest.raises(error, match=match):
        mixout.apply_(model, rules)
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]
    assert not [m for m in model.modules() if any(key.startswith("_mix") for key in vars(m))]


def test_the_depth_of_a_compiled_model():
    model = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
    plain = mixout.by_depth(model, lambda depth: Mixout(0.9 - 0.4 * depth))
    assert mixout.by_depth(torch.compile(model, backend="eager"), lambda depth: Mixout(0.9 - 0.4 * depth)) == plain
