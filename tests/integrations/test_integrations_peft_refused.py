"""What cannot be mixed in a PEFT model is refused or named, and adapters that come and go are told apart."""

import pytest
import torch
from lora_model import QUERY, bert, lora, train

import mixout
from mixout import AnchorDecay, GradientMask, Mixconnect, Mixout
from mixout.errors import AnchorMismatchError, NothingMixedError
from mixout.methods import Dropconnect

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # peft asks transformers by an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def test_merged_adapters_are_refused_with_the_reason():
    model = lora()
    model.merge_adapter()
    with pytest.raises(NothingMixedError, match="unmerge it first"):
        mixout.apply_(model, Mixout(0.5))


def test_another_base_is_found_on_resume():
    """Trap: the adapter was merged into the base, or the base is another checkpoint: silently another anchor."""
    state = mixout.save_state(mixout.apply_(lora(), Mixout(0.5)))
    with pytest.raises(AnchorMismatchError, match="fingerprint"):
        mixout.load_state_(mixout.apply_(lora(seed=9), Mixout(0.5)), state)


ONLY = "expected mixout with unit='input' and gradient='exact', and without anchor_ema, on LoRA layers"


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (Mixconnect(0.5), {}, ONLY),
        (Mixout(0.5, unit="element"), {}, ONLY),
        (Mixout(0.5, unit="output"), {}, ONLY),
        (Mixout(0.5, gradient="dense"), {}, ONLY),
        (Mixout(0.5, gradient="paper"), {}, ONLY),
        (Mixout(0.5, every=2, anchor_ema=0.5), {}, ONLY),
        (Dropconnect(0.5), {}, ONLY),
        (GradientMask(0.5), {}, ONLY),
        (Mixout(0.5), {"anchor": 0}, "leave anchor= out"),
        (AnchorDecay(0.1), {}, "is not a decay of W - u"),
    ],
    ids=str,
)
def test_what_lora_cannot_do_is_refused_and_leaves_the_model_plain(methods, options, message):
    model = lora()
    with pytest.raises(ValueError, match=message):
        mixout.apply_(model, methods, **options)
    assert not [m for m in model.modules() if isinstance(m, mixout.layers.Mixed)]
    assert model.get_submodule(f"{QUERY}.lora_dropout.default").p == 0.1


def test_an_initialisation_that_moves_the_base_is_refused():
    with pytest.raises(ValueError, match="init_lora_weights='pissa'"):
        mixout.apply_(lora(init_lora_weights="pissa"), Mixout(0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "DoraLinear: its weight is not u"),
        ({"target_modules": ["word_embeddings"]}, "lora.layer.Embedding is not a LoRA of a linear"),
    ],
    ids=["dora", "embedding"],
)
def test_adapters_that_are_not_mixed_say_so(options, message):
    model = lora(**options)
    where = mixout.Where(include="query|word_embeddings", types=torch.nn.Module)
    with pytest.raises(NothingMixedError, match=message):
        mixout.apply_(model, Mixout(0.5), where=where)
    train(model)  # as it was


def test_coverage_names_adapters_that_are_not_mixed_beside_those_that_are():
    model = lora(target_modules=["query", "word_embeddings"])
    found = mixout.coverage(mixout.apply_(model, Mixout(0.5)))
    assert len(found.mixed) == 2
    assert all("word_embeddings" in name for name in found.bypassed)
    assert len(found.bypassed) == 2


def test_adapters_added_to_a_mixed_model_are_found():
    model = peft.get_peft_model(
        mixout.apply_(bert(), Mixout(0.5)), peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    )
    layers = {layer.name: layer for layer in mixout.coverage(model).layers}
    found = next(layer for name, layer in layers.items() if name.endswith("0.attention.self.query.base_layer"))
    assert found.kind == "bypassed"
    assert "add adapters, then apply_" in found.reason


def reason(model, name):
    return next(layer.reason for layer in mixout.coverage(model).layers if layer.name == name)


@pytest.mark.parametrize("active", [False, True])
def test_an_adapter_that_came_after_apply_is_named(active):
    model = mixout.apply_(lora(), Mixout(0.5))
    model.add_adapter("late", peft.LoraConfig(r=2, target_modules=["query", "key"], task_type="SEQ_CLS"))
    if active:
        model.set_adapter("late")
    told = "adapter 'late' came after apply_: call remove_, then apply_"
    assert reason(model, f"{QUERY}.lora_A.late") == told
    key = QUERY.replace("query", "key")
    assert reason(model, f"{key}.lora_A.late") == told  # a layer that had no adapter at apply_
    assert (len(mixout.coverage(model).mixed) == 0) == active
    mixout.apply_(mixout.remove_(model), Mixout(0.5))
    model.set_adapter("late")
    assert f"{key}.lora_A.late" in mixout.coverage(model).mixed
    assert reason(model, f"{QUERY}.lora_B.late") == "the other factor of a mixed adapter"


def test_a_layer_that_where_leaves_out_is_not_chosen_and_not_late():
    model = mixout.apply_(lora(), Mixout(0.5), where="query")
    assert reason(model, f"{QUERY}.lora_A.default") == ""
    assert reason(model, QUERY.replace("query", "value") + ".lora_A.default") == "not chosen"


@pytest.mark.parametrize("leave", ["unload", "merge_and_unload"])
def test_the_base_that_is_left_can_be_undone(leave):
    """Its dropouts were switched off by apply_ on the model around it."""
    model = mixout.apply_(lora(), Mixout(0.5))
    base = getattr(model, leave)()
    assert not [m for m in base.modules() if isinstance(m, mixout.layers.Mixed)]
    mixout.remove_(base)
    assert {m.p for m in base.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    mixout.apply_(base.requires_grad_(True), Mixout(0.5))
    assert f"{QUERY.removeprefix('base_model.model.')}" in mixout.coverage(base).mixed
