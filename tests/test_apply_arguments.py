"""What apply_ takes as a method, a number or an anchor, and what it refuses with a clear error."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout

# Models of few layers, of which most cannot be mixed.
pytestmark = pytest.mark.filterwarnings("ignore::mixout.LowCoverageWarning")


def test_an_anchor_that_nothing_would_use_is_an_error():
    model = nn.Sequential(nn.Linear(4, 3))
    for method in ("dropconnect(0.1)", "gradient_mask(0.1)", "plain", "gradient_mask(0.1)+dropout(0.0)"):
        with pytest.raises(ValueError, match="which takes none"):
            mixout.apply_(model, method, anchor=model.state_dict())
    with pytest.raises(mixout.NothingMixedError, match=r"dropouts to set to 0\.1"):
        mixout.apply_(model, mixout.methods.Dropout(0.1))
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("method", [{"^0$": "plain", "": "mixout(0.9)"}, "plain+anchor_decay(radius=0.1)"])
def test_an_anchor_that_one_of_the_methods_reads_is_taken(method):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    start = {name: value + 1 for name, value in model.state_dict().items()}
    mixout.apply_(model, method, anchor=start, where=mixout.ALL)
    assert mixout.state(model).anchor("1").equal(start["1.weight"])


def test_a_state_of_another_seed_is_refused():
    first = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.5), seed=1)
    second = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), mixout.Mixout(0.5), seed=2)
    second.load_state_dict(first.state_dict())
    with pytest.raises(mixout.MixoutError, match=r"seed=2 and scope='all', got .* seed=1 and"):
        mixout.load_state_(second, mixout.save_state(first))


def test_training_refuses_the_dtypes_that_eval_refuses():
    layer = mixout.apply_(nn.Linear(4, 3), mixout.Mixout(0.5))
    with pytest.raises((ValueError, RuntimeError)):
        layer(torch.randn(2, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        layer.eval()(torch.randn(2, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (0.9, r"such as mixout.Mixout\(0.9\) or .*, got 0.9"),
        (None, "got None"),
        (mixout.Mixout, r"got <class .*; write Mixout\(...\), with its arguments"),
        ([mixout.Mixout(0.5), 0.1], "got \\[Mixout"),
        ({"mixout": 0.5}, "expected a method"),
    ],
    ids=str,
)
def test_what_is_no_method_is_a_clear_error(method, message):
    with pytest.raises(TypeError, match=message):
        mixout.apply_(nn.Linear(4, 3), method)


@pytest.mark.parametrize("text", ["mixout(0.9)", ["mixout(0.9)"]])
def test_text_counts_as_the_methods_it_names(text):
    assert mixout.coverage(mixout.apply_(nn.Linear(4, 3), text)).methods == "mixout(0.9)"
    model = mixout.apply_(nn.Linear(4, 3), "mixout(0.9)+anchor_decay(0.1)")
    assert mixout.save_state(model)["methods"] == "mixout(0.9)+anchor_decay(0.1)"
    both = mixout.apply_(nn.Linear(4, 3), ["mixout(0.9)", mixout.AnchorDecay(0.1)])
    assert mixout.save_state(both)["methods"] == "mixout(0.9)+anchor_decay(0.1)"


@pytest.mark.parametrize("p", [np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2)], ids=repr)
def test_p_may_be_any_real_number(p):
    for kind in (
        mixout.Mixout,
        mixout.Mixconnect,
        mixout.methods.Dropconnect,
        mixout.GradientMask,
        mixout.methods.Dropout,
    ):
        assert kind(p) == kind(0.5)
        assert repr(kind(p)) == repr(kind(0.5))
    layer = mixout.apply_(nn.Linear(4, 3), mixout.Mixout(0.1))
    mixout.set_p_(layer, p)
    assert mixout.save_state(layer)["p"] == 0.5
    with pytest.raises(ValueError, match="expected p in"):
        mixout.Mixout(p + 1)


def test_a_lazy_model_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3), nn.Dropout(0.1))
    for method in (Mixout(0.5), mixout.AnchorDecay(0.1)):
        with pytest.raises(mixout.MixoutError, match=r"'1' \(LazyLinear\) has no weights yet.* run one forward pass"):
            mixout.apply_(model, method)
    assert [type(m) for m in model] == [nn.Linear, nn.LazyLinear, nn.Dropout]
    assert model[2].p == 0.1
    model(torch.ones(1, 4))
    assert mixout.coverage(mixout.apply_(model, Mixout(0.5))).mixed == ("0", "1")


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(mixout.MixoutError, match=r"inference_mode.*call it outside"):
        mixout.apply_(nn.Sequential(nn.Linear(4, 4)), Mixout(0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixout.Anchor(dtype="bfloat16"), r"dtype as a torch\.dtype or None, got 'bfloat16'"),
        (lambda: mixout.fisher(nn.Linear(2, 2), torch.ones(1, 2)), r"got one Tensor; pass \[batch\]"),
        (lambda: mixout.fisher(nn.Linear(2, 2), {"input": torch.ones(1, 2)}), r"got one dict; pass \[batch\]"),
        (lambda: mixout.Where(include=3), "regular expressions, got 3"),
        (lambda: mixout.Where(exclude=["a", 3]), "regular expressions, got 3"),
    ],
)
def test_arguments_of_another_type_are_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_decay_of_frozen_weights_alone_is_told():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    mixout.apply_(model, "anchor_decay(radius=0.1)", where=mixout.ALL)
    model[1].requires_grad_(False)
    with pytest.warns(mixout.FrozenLayersWarning, match=r"none of the 2 .* requires a gradient"):
        mixout.apply_(mixout.remove_(model), "anchor_decay(radius=0.1)", where=mixout.ALL)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda model: mixout.apply_("bert", "mixout(0.5)"),
            TypeError,
            "as a torch.nn.Module, got str",
        ),
        (lambda model: mixout.apply_(model, "lora(8)"), ValueError, "get_peft_model, then call apply_"),
        (lambda model: mixout.apply_(model, "interpolate(0.5)"), ValueError, "interpolate_(model, 0.5, start) after"),
        (lambda model: mixout.apply_(model, "auto"), ValueError, 'in Python write "anchor_decay(radius=0.005)"'),
        (
            lambda model: mixout.apply_(model, "mixout(0.5)", where=nn.Linear),
            TypeError,
            "write mixout.Where(types=Linear)",
        ),
        (
            lambda model: mixout.apply_(model, "mixout(0.5)", where="enocder"),
            mixout.NothingMixedError,
            "names are 0, 1 and",
        ),
        (lambda model: mixout.MixOut, AttributeError, "did you mean 'Mixout'?"),
        (lambda model: mixout.integrations.nothing, AttributeError, "no attribute 'nothing'"),
    ],
)
def test_what_a_newcomer_tries_is_answered_with_what_to_do(call, error, says):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.raises(error, match=re.escape(says)):
        call(model)


def test_an_adapter_to_a_trainer_is_loaded_at_its_first_use():
    assert mixout.integrations.ddp.__name__ == "mixout.integrations.ddp"
