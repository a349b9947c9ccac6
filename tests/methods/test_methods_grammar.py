"""Methods as text: parse and spell are inverse, and what cannot be read is told with the nearest valid name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixout import AnchorDecay, Mixconnect, Mixout, OutputAnchor
from mixout.finetune import run_methods
from mixout.methods import Dropconnect, Dropout, Plain, parse, spell
from mixout.methods.text import reaches

p = st.floats(0, 1)
gradients = st.sampled_from(["exact", "paper"])
methods = st.one_of(
    st.builds(Mixout, p, unit=st.sampled_from(["input", "output", "element"]), gradient=gradients),
    st.builds(Mixconnect, st.floats(0, 1, exclude_max=True), noise=st.sampled_from(["bernoulli", "gaussian"])),
    st.builds(Dropconnect, p, gradient=gradients),
    st.builds(Dropout, p),
    st.builds(AnchorDecay, st.floats(0, 1e30), decoupled=st.booleans()),
    st.builds(AnchorDecay, radius=st.floats(1e-30, 1e30)),
    st.builds(AnchorDecay, st.floats(0, 1e30), selective=st.booleans()),
    st.builds(OutputAnchor, st.floats(0, 1e30), direction=st.sampled_from(["forward", "reverse"])),
    st.just(Plain()),
)


@given(st.lists(methods, min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_parse_undoes_spell(several):
    assert parse(spell(several)) == tuple(several)
    assert spell(parse(spell(several))) == spell(several)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mixout(0.9)", (Mixout(0.9),)),
        ("Mixout(0.9)+AnchorDecay(radius=0.1)", (Mixout(0.9), AnchorDecay(radius=0.1))),
        ("mixout(0.7)+anchor_decay(0.01)", (Mixout(0.7), AnchorDecay(0.01))),
        ("dropout(0.1)", (Dropout(0.1),)),
        ("plain", (Plain(),)),
        ("plain()", (Plain(),)),
        ("mixout(0.9, gradient=paper)", (Mixout(0.9, gradient="paper"),)),
        (" mixout( p = .9 ) + anchor_decay(1e-2,decoupled=False) ", (Mixout(0.9), AnchorDecay(0.01, decoupled=False))),
        ("mixconnect(0.5, noise=gaussian)", (Mixconnect(0.5, noise="gaussian"),)),
        ("anchor_decay(1e+3)", (AnchorDecay(1000.0),)),
        ("anchor_decay( radius = 5e-3 )", (AnchorDecay(radius=0.005),)),
        ("mixout(1)", (Mixout(1.0),)),
    ],
)
def test_what_a_person_may_write(text, expected):
    assert parse(text) == expected


def test_the_canonical_text_leaves_out_defaults():
    assert spell(Mixout(0.9)) == "mixout(0.9)"
    assert spell([Mixout(1), AnchorDecay(0.01)]) == "mixout(1.0)+anchor_decay(0.01)"
    assert spell(AnchorDecay(radius=0.005)) == "anchor_decay(radius=0.005)"
    assert spell(Plain()) == "plain"


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("mixot(0.9)", "mixout"),
        ("mix_out(0.9)", "mixout"),
        ("drop_out(0.1)", "dropout"),
        ("dropconect(0.1)", "dropconnect"),
        ("anchordecay(0.1)", "anchor_decay"),
        ("anchor-decay(0.1)", "anchor_decay"),
        ("plian", "plain"),
        ("mixout2(0.9)", "mixout"),
    ],
)
def test_an_unknown_method_names_the_nearest(text, nearest):
    with pytest.raises(ValueError, match=rf"expected a method.*got.*did you mean '{nearest}'"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixout(0.9, gradent=paper)", "did you mean 'gradient'"),
        ("mixout(0.9, units=output)", "did you mean 'unit'"),
        ("mixout", "expected mixout with its p"),
        ("mixout()", "expected mixout with its p"),
        ("mixout(1.5)", r"expected p in \[0, 1\]"),
        ("mixout(nan)", r"expected p in \[0, 1\]"),
        ("mixout(0.9, gradient=wrong)", "expected gradient in"),
        ("mixout(0.9, 0.8)", "after the first as name=value"),
        ("anchor_decay", r"either a radius.*anchor_decay\(radius=0\.005\).*or a rate.*got neither"),
        ("anchor_decay(100, radius=0.01)", "got radius 0.01 and rate 100.0"),
        ("anchor_decay(radius=0)", "finite radius above 0, got 0.0"),
        ("anchor_decay(radius=1e-320)", "finite radius above 0"),
        ("anchor_decay(radius=inf)", "finite radius above 0, got inf"),
        ("anchor_decay(radius=wide)", "expected radius to be a number, got 'wide'"),
        ("anchor_decay(radius=0.01, decoupled=false)", "a rate with decoupled=False"),
        ("anchor_decay(radius=0.01, selective=true)", "a rate with selective=True"),
        ("anchor_decay(1, selective=true, decoupled=false)", "expected decoupled=True with selective=True"),
        ("anchor_decay(raduis=0.01)", "did you mean 'radius'"),
        ("anchor_decay(-1)", "finite rate, at least 0, got -1.0"),
        ("plain(3)", "name=value"),
        ("mixout(0.9", "expected a method such as"),
        ("mixout 0.9", "expected a method such as"),
        ("", "expected a method such as"),
        ("mixout(0.9)+", "expected a method such as"),
        ("mixout(abc)", "abc"),
        ("mixout(0.9, p=0.5)", "p"),
        ("mixout(0.9, unit=input, unit=output)", "unit"),
    ],
)
def test_what_cannot_be_read_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "far"),
    [
        ("anchor_decay(200)", ["0.005"]),
        ("mixout(0.5)+anchor_decay(radius=0.1, relative=true)", ["0.1 times its tensor's root mean square"]),
        ("anchor_decay(40, fisher=200)", ["0.025 divided by its importance"]),
        ("anchor_decay(0)", []),
        ("anchor_decay(1, decoupled=false)", []),
        ("anchor_decay(1, selective=true)", []),
        ("mixout(0.5)", []),
    ],
)
def test_a_decay_tells_how_far_it_lets_weights_go(text, far):
    methods = run_methods.parse(text)
    decay, said = spell(methods[-1]), reaches(methods)
    assert said == [f"{decay}: under Adam a weight goes about {one} from its start at most" for one in far]


@pytest.mark.parametrize("path", ["out/lr=0.1/fisher.safetensors", "a+b.safetensors", "f 1.safetensors"])
def test_paths_are_read_back_as_they_were_written(path):
    method = AnchorDecay(radius=0.005, weights=path)
    assert parse(spell(method)) == (method,)
