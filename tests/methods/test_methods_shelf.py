"""Every method on a classifier, a regression and a causal language model, whole and with LoRA: it trains, it leaves a
plain model, and its start is the one that was kept apart."""

import pytest
import torch
import transformers

import mixout
from mixout import AnchorDecay, GradientMask, Mixconnect, Mixout, OutputAnchor
from mixout.methods import Dropconnect
from mixout.optim import MoFO

pytestmark = pytest.mark.filterwarnings("ignore::mixout.DecayStrengthWarning")  # few steps, which must show

CONFIG = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
IDS = torch.randint(0, 30, (4, 6), generator=torch.Generator().manual_seed(0))
LABELS = {"classes": torch.tensor([0, 1, 2, 0]), "values": torch.tensor([0.1, -1.0, 2.0, 0.5]), "text": IDS}
METHODS = {
    "mixout": Mixout(0.5),
    "period": Mixout(0.5, every=2),
    "one mask": Mixout(0.5, every="run"),
    "moving anchor": Mixout(0.5, every=2, anchor_ema=0.9),
    "mixconnect": Mixconnect(0.5),
    "dropconnect": Dropconnect(0.2),
    "gradient mask": GradientMask(0.5),
    "layer sampling": GradientMask(0.5, unit="layer", every=2),
    "decay": AnchorDecay(radius=0.004),
    "relative": AnchorDecay(radius=0.2, relative=True),
    "selective": AnchorDecay(1.0, selective=True),
    "EWC": "fisher",
    "KL": OutputAnchor(1.0),
    "hidden": OutputAnchor(1.0, on="hidden"),
    "MoFO": "plain",
}
# Decaying A and B is no decay of W - u = s B A, the frozen base cannot move, and what is masked of A are its columns.
REFUSED = {"moving anchor", "mixconnect", "dropconnect", "gradient mask", "layer sampling", "decay", "relative", "EWC"}


def build(kind):
    torch.manual_seed(1)
    if kind == "text":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=2, **CONFIG))
    config = transformers.BertConfig(num_labels=3 if kind == "classes" else 1, **CONFIG)
    return transformers.BertForSequenceClassification(config)


def adapted(kind):
    peft = pytest.importorskip("peft")
    names = ["q_proj", "v_proj"] if kind == "text" else ["query", "value"]
    return peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=names), build(kind))


def train(model, method, batch):
    hidden = isinstance(method, OutputAnchor) and method.on == "hidden"
    optimizer = (MoFO if method == "plain" else torch.optim.AdamW)(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(5):
        outputs = model(**batch, output_hidden_states=hidden)
        loss = outputs.loss
        if isinstance(method, OutputAnchor):
            loss = loss + mixout.output_penalty(model, batch, outputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.isfinite()


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.sweep)], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("name", METHODS)
def test_the_shelf(name, kind, lora):
    method, batch, make = METHODS[name], {"input_ids": IDS, "labels": LABELS[kind]}, adapted if lora else build
    model, start = make(kind), make(kind)
    if method == "fisher":
        method = AnchorDecay(radius=0.004, weights=mixout.fisher(model, [batch]))
    if lora and name in REFUSED:
        with pytest.raises((ValueError, mixout.MixoutError), match=r"adapter|LoRA"):
            mixout.apply_(model, method)
        assert not [module for module in model.modules() if hasattr(module, "_mixed")]
        return
    mixout.apply_(model.train(), method)
    train(model, method, batch)
    moved = {n: p for (n, p), u in zip(model.named_parameters(), start.parameters(), strict=True) if not p.equal(u)}
    assert moved
    assert not lora or all("lora_" in n for n in moved if n.startswith(("bert.", "model.")))

    # What is saved is a plain model: it computes the same without this library.
    plain = make(kind)
    plain.load_state_dict(model.state_dict())
    ask = {"input_ids": IDS}
    with torch.no_grad():
        trained = model.eval()(**ask).logits
        torch.testing.assert_close(trained, plain.eval()(**ask).logits, rtol=1e-5, atol=1e-6)

    if name in ("decay", "relative"):
        used = mixout.radius_used(model)
        assert used
        for n, share in used.items():
            u = start.get_parameter(n).double()
            radius = 0.004 if name == "decay" else 0.2 * u.square().mean().sqrt().item()
            assert share * radius == pytest.approx((moved[n] - u).abs().max().item(), rel=1e-3)
            assert share < 1.1
    if name == "hidden":
        with torch.no_grad():
            outputs, base = (one.eval()(**ask, output_hidden_states=True) for one in (model, start))
        expected = (outputs.hidden_states[-1] - base.hidden_states[-1]).square().mean()
        torch.testing.assert_close(mixout.output_penalty(model, ask, outputs), expected, rtol=1e-4, atol=1e-9)
    if name in ("MoFO", "gradient mask", "layer sampling", "dropconnect") or (lora and not isinstance(method, Mixout)):
        return  # which keep no start
    mixout.interpolate_(model, 0.0)
    assert any(model.get_parameter(n).equal(start.get_parameter(n)) for n in moved)
    assert max(mixout.distance(model).by_layer.values()) < 1e-6
