"""coverage: shares counted by hand."""

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout


def test_shares_of_parameters_and_flops_by_hand():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Dropout(0.1), nn.Conv1d(3, 2, 5), nn.Embedding(7, 3))
    coverage = mixout.coverage(mixout.apply_(model, Mixout(0.9), where="0"))
    # 4*3+3, 3+3, 3*2*5+2, 7*3 parameters; 12 and 30 multiply-adds per position
    assert coverage.mixed == ("0",)
    assert coverage.plain == ("1", "3", "4")
    assert coverage.bypassed == ()
    assert coverage.parameters_mixed == pytest.approx(12 / (15 + 6 + 32 + 21))
    assert coverage.flops_mixed == pytest.approx(12 / 42)
    assert coverage.dropouts == ()
    assert [layer.parameters for layer in coverage.layers] == [15, 6, 32, 21]


def test_everything_that_can_be_mixed():
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(2, 2, 3), nn.Embedding(7, 3))
    coverage = mixout.coverage(mixout.apply_(model, Mixout(0.9), where=lambda *_: True))
    assert coverage.mixed == ("0", "1", "2")
    assert coverage.parameters_mixed == pytest.approx((12 + 36 + 21) / (15 + 38 + 21))
    assert coverage.flops_mixed == 1.0


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    coverage = mixout.coverage(mixout.apply_(model, Mixout(0.9)))
    assert coverage.parameters_mixed == pytest.approx(9 / 15)  # 9 shared weights and two biases of 3


def test_a_weight_that_is_mixed_in_one_of_its_two_uses():
    """Tied to an embedding that is not mixed: the parameter itself is one, and it is mixed where the head reads it."""
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    coverage = mixout.coverage(mixout.apply_(model, Mixout(0.9)))
    assert coverage.mixed == ("1",)
    assert coverage.parameters_mixed == pytest.approx(15 / 20)


def test_raw_parameters_and_stacked_experts_are_reported():
    """Trap: XLNet's raw parameters; stacked MoE experts."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(4, 3, 8))

    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.position_embeddings = nn.Parameter(torch.zeros(1, 4, 8))

    model = nn.Sequential(nn.Linear(3, 3), Experts(), Position())
    coverage = mixout.coverage(mixout.apply_(model, Mixout(0.9), where="0"))
    assert coverage.bypassed == ("1",)
    assert "gate_up_proj" in coverage.layers[1].reason
    assert coverage.plain == ("2",)
    assert coverage.flops_mixed == pytest.approx(9 / (9 + 96))


def test_the_table_names_methods_layers_and_dropouts():
    model = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.1), nn.LSTMCell(4, 1))
    coverage = mixout.coverage(mixout.apply_(model, Mixout(0.9), keep_dropout=True))
    text = str(coverage)
    assert text.startswith("mixout(0.9): 1 layer mixed, ")
    assert "dropout still on: 1.p = 0.1" in text
    assert "LSTMCell" in text
    assert "out of reach" in text
    assert coverage.methods == "mixout(0.9)"
    assert [str(site) for site in coverage.dropouts] == ["1.p = 0.1"]
    several = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.1), nn.Dropout(0.2), nn.Dropout(0.3))
    text = str(mixout.coverage(mixout.apply_(several, Mixout(0.9), where="0", keep_dropout=True)))
    assert text.splitlines()[-1] == "  3 dropouts still on: 1.p = 0.1 ... 3.p = 0.3"


def test_methods_that_mix_nothing_report_so_without_an_error():
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)), mixout.methods.Dropout(0.3))
    coverage = mixout.coverage(model)
    assert coverage.mixed == ()
    assert coverage.parameters_mixed == coverage.flops_mixed == 0.0
    assert [str(site) for site in coverage.dropouts] == ["1.p = 0.3"]


def test_shares_of_a_model_without_parameters_are_zero():
    assert (
        mixout.coverage(mixout.apply_(nn.Sequential(nn.Dropout(0.1)), mixout.methods.Plain())).parameters_mixed == 0.0
    )


def test_what_mixes_nothing_is_told_too():
    """How many weights decay, and how far the farthest has gone; a report never raises."""
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    mixout.apply_(model, mixout.AnchorDecay(radius=0.5), where=mixout.ALL)
    with torch.no_grad():
        model[2].weight[0, 0] += 0.25
    assert mixout.coverage(model).held == (
        "2 weights decay (18 numbers); the farthest is at 0.50 of its radius: 2.weight",
    )
    assert mixout.coverage(model).held[0] in str(mixout.coverage(model))
    assert mixout.coverage(model).held[0] in mixout.coverage(model)._repr_html_()
    model[0].weight = nn.Parameter(torch.zeros(5, 4))  # resized
    assert mixout.coverage(model).held == ("2 weights decay (26 numbers)",)
    mixout.apply_(mixout.remove_(model), mixout.AnchorDecay(1.0, selective=True), where=mixout.ALL)
    assert mixout.coverage(model).held == ("2 weights decay (26 numbers)",)
    mixout.apply_(mixout.remove_(model), mixout.OutputAnchor(1.0), where=mixout.ALL)
    assert mixout.coverage(model).held == ("answers are held by 6 anchored parameters",)
    assert mixout.coverage(mixout.remove_(model)).held == ()


@pytest.mark.parametrize("dry", [True, False])
def test_a_decay_is_told_as_what_it_is(dry):
    """Not as layers that are left out: it reaches the embedding too."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    method = mixout.AnchorDecay(radius=0.01)
    report = mixout.coverage(model, method) if dry else mixout.coverage(mixout.apply_(model, method))
    assert report.decayed == ("0", "1")
    assert report.plain == ("2",)
    assert str(report).startswith("anchor_decay(radius=0.01): 2 weights decay (32 numbers)")
    assert ("farthest" in str(report)) is not dry
    assert "left out" not in str(report)
    if dry:
        with pytest.raises(mixout.NotAppliedError):
            mixout.state(model)


def test_a_head_that_may_be_new_is_told_where_the_model_does_not_name_its_body(tiny_llama):
    transformers = pytest.importorskip("transformers")
    hint = "does not say which layers are new"
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for method in ("mixout(0.5)", "anchor_decay(radius=0.005)"):
        assert hint in str(mixout.coverage(model, method))
        assert hint not in str(mixout.coverage(model, method, where=r"^0"))
    assert hint not in str(mixout.coverage(model, "plain"))
    named = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert hint not in str(mixout.coverage(named, "mixout(0.5)"))
