"""apply_ and remove_ on plain torch models: nothing that others hold is replaced."""

import copy
import warnings

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.25), nn.Linear(5, 3))


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.ones_like(parameter))
    return model


def test_parameter_objects_and_state_dict_keys_stay():
    """Trap: replacing modules by new ones orphans an optimizer built earlier."""
    model = net()
    parameters, modules, keys = dict(model.named_parameters()), list(model.modules()), list(model.state_dict())
    for change in (lambda: mixout.apply_(model, Mixout(0.9)), lambda: mixout.remove_(model)):
        assert change() is model
        assert all(model.get_parameter(name) is p for name, p in parameters.items())
        assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
        assert list(model.state_dict()) == keys
        assert not list(model.buffers())
    assert [type(m) for m in model.modules()] == [nn.Sequential, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert all(vars(m).keys() == vars(n).keys() for m, n in zip(model.modules(), net().modules(), strict=True))


def test_remove_gives_the_weights_bit_for_bit():
    model = mixout.apply_(net(), Mixout(0.9))
    moved(model)
    weights = copy.deepcopy(model.state_dict())
    mixout.remove_(model)
    assert all(weights[key].equal(value) for key, value in model.state_dict().items())


def test_an_optimizer_built_earlier_still_trains():
    """Trap: orphans an optimizer built earlier."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mixout.apply_(model, Mixout(0.3))
    before = model[0].weight.detach().clone()
    model(torch.randn(64, 6)).sum().backward()
    optimizer.step()
    assert not model[0].weight.equal(before)


def test_tied_weights_stay_tied_and_share_one_anchor():
    """Trap: replacing modules unties tied weights."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    mixout.apply_(model, Mixout(0.5))
    assert model[0].weight is model[1].weight
    assert model[0]._mixed.anchor is model[1]._mixed.anchor
    model(torch.randn(3, 4)).sum().backward()
    twin = copy.deepcopy(model)
    assert twin[0].weight is twin[1].weight
    assert twin[0]._mixed.anchor is twin[1]._mixed.anchor


def test_isinstance_still_holds():
    """Trap: breaks isinstance(m, nn.Linear)."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4), nn.Conv2d(2, 2, 1))
    mixout.apply_(model, Mixout(0.5), where=lambda *_: True)
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[1], nn.Embedding)
    assert isinstance(model[2], nn.Conv2d)
    assert len(mixout.coverage(model).mixed) == 3


def test_hooks_survive_and_run():
    """Trap: replacing modules drops hooks."""
    model, calls = net(), []
    model[0].register_forward_pre_hook(lambda *_: calls.append("pre"))
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model[0].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[0].weight.register_hook(lambda _: calls.append("gradient"))
    mixout.apply_(model, Mixout(0.5))
    model(torch.randn(3, 6, requires_grad=True)).sum().backward()
    assert calls.count("pre") == calls.count("forward") == calls.count("backward") == calls.count("gradient") == 1
    mixout.remove_(model)
    model(torch.randn(3, 6, requires_grad=True)).sum().backward()
    assert len(calls) == 8


def test_frozen_layers_stay_frozen():
    """Trap: replacing modules thaws frozen layers."""
    model = net()
    model[0].requires_grad_(False)
    mixout.apply_(model, Mixout(0.5))
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    model(torch.randn(3, 6)).sum().backward()
    assert model[0].weight.grad is None
    mixout.remove_(model)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


@pytest.mark.parametrize("training", [True, False])
def test_the_training_flag_stays(training):
    """Trap: replacing modules turns eval mode into train mode."""
    model = net().train(training)
    model[3].train(not training)
    flags = [m.training for m in model.modules()]
    mixout.apply_(model, Mixout(0.5))
    assert [m.training for m in model.modules()] == flags
    mixout.remove_(model)
    assert [m.training for m in model.modules()] == flags


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("method", [Mixout(0.5), mixout.AnchorDecay(0.1), mixout.methods.Dropout(0.1)], ids=repr)
def test_conversion_leaves_the_global_random_stream_alone(method, seed):
    """Trap: consumes the global random stream; a draw in conversion."""
    model = net()
    state = torch.get_rng_state()
    mixout.apply_(model, method, seed=seed)
    mixout.coverage(model)
    mixout.save_state(model)
    mixout.remove_(model)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_copy_is_complete_and_independent(duplicate, seed):
    """Trap: a mixed weight cached as an attribute: deepcopy raises; parametrize refuses pickling."""
    model = moved(mixout.apply_(net(), Mixout(0.5), seed=seed))
    x = torch.randn(4, 6)
    model(x).sum().backward()  # also after a training pass
    twin = duplicate(model)
    state = torch.get_rng_state()
    y = model(x)
    torch.set_rng_state(state)
    assert twin(x).equal(y)
    assert mixout.fingerprint(twin) == mixout.fingerprint(model)
    assert mixout.distance(twin).total == mixout.distance(model).total
    mixout.set_p_(twin, 0.25)
    assert mixout.save_state(model)["p"] == 0.5
    mixout.remove_(twin)
    assert type(model[0]) is not nn.Linear
    assert mixout.coverage(model).mixed == ("0", "3")
    mixout.remove_(model)


def test_no_shadow_module_appears_for_dotted_names():
    """Trap: setattr on dotted names creates a shadow module: mixout never applied, the untrained shadow saved."""
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(3, 3)])})})
    names = [name for name, _ in model.named_modules()]
    mixout.apply_(model, Mixout(0.0))
    assert [name for name, _ in model.named_modules()] == names
    layer = model["encoder"]["layer"][0]
    layer(torch.ones(3)).sum().backward()
    assert layer.weight.grad is not None
    assert model.state_dict()["encoder.layer.0.weight"].data_ptr() == layer.weight.data_ptr()


def test_applying_twice_is_an_error_that_says_what_to_do():
    model = mixout.apply_(net(), Mixout(0.5))
    for target in (model, nn.Sequential(model), model[0]):
        with pytest.raises(mixout.AlreadyAppliedError, match=r"remove_\(model\) first"):
            mixout.apply_(target, Mixout(0.5))
    mixout.remove_(model)
    mixout.remove_(mixout.apply_(model, Mixout(0.5)))


def test_without_a_method_everything_says_so():
    for function in (mixout.remove_, mixout.distance, mixout.save_state, mixout.fingerprint):
        with pytest.raises(mixout.NotAppliedError, match="apply_"):
            function(net())
    with pytest.raises(mixout.NotAppliedError):
        mixout.set_p_(mixout.apply_(net(), mixout.methods.Dropout(0.1)), 0.5)


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (mixout.NothingMixedError, {"method": Mixout(0.5), "where": "no_such_layer"}),
        (mixout.NothingMixedError, {"method": [Mixout(0.5), mixout.AnchorDecay(0.1)], "where": r"\.nothing"}),
        (
            mixout.AnchorMismatchError,
            {"method": Mixout(0.5), "anchor": {"0.weight": torch.zeros(5, 6)}, "where": "all"},
        ),
        (mixout.AnchorMismatchError, {"method": Mixout(0.5), "anchor": {"3.weight": torch.zeros(3, 5)}}),
        (
            mixout.AnchorMismatchError,
            {"method": Mixout(0.5), "anchor": {"0.weight": torch.zeros(5, 6), "3.weight": torch.zeros(5, 3)}},
        ),
        (ValueError, {"method": Mixout(0.5), "where": "("}),
        (ValueError, {"method": Mixout(0.5), "where": "paper"}),
        (TypeError, {"method": Mixout(0.5), "where": 3}),
        (ValueError, {"method": "mixout"}),
        (ValueError, {"method": ["mixout(0.5)", "mixot(0.5)"]}),
        (TypeError, {"method": []}),
        (TypeError, {"method": Mixout(0.5), "anchor": 1}),
        (TypeError, {"method": Mixout(0.5), "anchor": True}),
        (TypeError, {"method": Mixout(0.5), "seed": 0.5}),
        (ValueError, {"method": Mixout(0.5), "form": "quick"}),
        (FileNotFoundError, {"method": Mixout(0.5), "anchor": "no/such/file"}),
    ],
)
def test_a_failed_apply_leaves_the_model_untouched(error, arguments):
    model = net()
    before, classes = [dict(vars(m)) for m in model.modules()], [type(m) for m in model.modules()]
    with pytest.raises(error, match="expected"):
        mixout.apply_(model, **arguments)
    assert [type(m) for m in model.modules()] == classes
    assert [vars(m) for m in model.modules()] == before
    mixout.apply_(model, Mixout(0.5))  # and a correct call works


def test_a_method_that_fails_late_is_rolled_back(monkeypatch):
    model = net()
    monkeypatch.setattr(mixout.install, "_decay_", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mixout.apply_(model, [Mixout(0.5), mixout.AnchorDecay(0.1)])
    assert type(model[0]) is nn.Linear
    assert model[2].p == 0.25
    with pytest.raises(mixout.NotAppliedError):
        mixout.remove_(model)


def test_a_single_layer_is_a_model_too():
    layer = mixout.apply_(nn.Linear(3, 2), Mixout(0.5))
    assert mixout.coverage(layer).mixed == ("",)
    assert list(mixout.distance(layer).by_layer) == ["weight"]
    assert type(mixout.remove_(layer)) is nn.Linear


def test_found_and_removed_inside_a_wrapper():
    inner = mixout.apply_(net(), Mixout(0.5))
    wrapper = nn.Sequential(inner)
    assert mixout.coverage(wrapper).mixed == ("0.0", "0.3")
    mixout.remove_(wrapper)
    assert type(inner[0]) is nn.Linear


def test_functional_call_mixes_the_given_weights():
    model = mixout.apply_(net(), Mixout(1.0))
    other = {name: torch.full_like(p, 7.0) for name, p in model.named_parameters() if "weight" in name}
    x = torch.randn(2, 6)
    assert torch.func.functional_call(model, other, x).equal(model(x))  # p = 1: the anchor, whatever the weights


def test_a_layer_parametrized_since_is_not_taken_apart():
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), Mixout(0.5))
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(mixout.MixoutError, match=r"'0' parametrized since.*remove_parametrizations"):
        mixout.remove_(model)
    assert mixout.coverage(model).mixed
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    mixout.remove_(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    model(torch.ones(1, 4))


def test_the_form_is_an_option():
    """It changes how a layer is computed, not what."""
    x = torch.randn(7, 6, dtype=torch.float64)
    results = []
    for form in ("auto", "fast", "lean"):
        model = moved(mixout.apply_(net().double(), Mixout(0.5), seed=1, form=form))
        assert model[0]._mixed.mixing.form == form
        results.append(model(x))
    for one in results[1:]:
        torch.testing.assert_close(one, results[0])


@pytest.mark.parametrize("kind", ["frozen", "fine-tuned"])
def test_a_warning_that_is_an_error_leaves_the_model_plain(kind, tmp_path, recwarn):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    if kind == "frozen":
        model.requires_grad_(False)
    else:
        (tmp_path / "trainer_state.json").write_text("{}")
        model.name_or_path = str(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((mixout.errors.FrozenLayersWarning, mixout.errors.FineTunedAnchorWarning)):
            mixout.apply_(model, mixout.Mixout(0.5))
    assert {type(layer) for layer in model} == {nn.Linear}
    with pytest.raises(mixout.NotAppliedError):
        mixout.remove_(model)
