"""The life of a PEFT model under mixout: choose, train, merge, save, resume, remove."""

import copy
import pickle

import pytest
import torch
import transformers
from lora_model import IDS, QUERY, bert, logits, lora, train

import mixout
from mixout import AnchorDecay, Mixout, OutputAnchor
from mixout.anchor import digest
from mixout.methods.optimizer_hooks import targets

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # peft asks transformers by an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def test_apply_mixes_every_adapter_of_the_body_and_nothing_else():
    model = lora()
    keys, plain = list(model.state_dict()), logits(model)
    mixout.apply_(model, Mixout(0.5))
    found = mixout.coverage(model)
    assert len(found.mixed) == 4
    assert all(name.endswith((".query.lora_A.default", ".value.lora_A.default")) for name in found.mixed)
    reasons = {layer.name: layer.reason for layer in found.layers}
    assert reasons[f"{QUERY}.base_layer"] == "base of an adapter"
    assert reasons[f"{QUERY}.lora_B.default"] == "the other factor of a mixed adapter"
    assert reasons[QUERY.replace("query", "key")] == "frozen, and without an adapter"
    assert reasons["base_model.model.classifier.modules_to_save.default"].startswith("left out by default")
    assert not found.dropouts  # lora_dropout too
    assert list(model.state_dict()) == keys
    assert torch.equal(logits(model), plain)
    with torch.no_grad():
        assert not torch.equal(model.train()(input_ids=IDS).logits, plain)
    mixout.remove_(model)
    assert model.get_submodule(f"{QUERY}.lora_dropout.default").p == 0.1
    assert type(model.get_submodule(f"{QUERY}.lora_A.default")) is torch.nn.Linear


def test_a_period_ends_where_only_the_other_factors_are_trained():
    """LoRA-FA: the mixed factor A is frozen."""
    model = mixout.apply_(lora(), Mixout(0.5, every=2)).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(input_ids=IDS).logits.sum().backward()
        optimizer.step()
    assert model.get_submodule(f"{QUERY}.lora_A.default")._mixed.mixing.period.steps == 3


def test_no_anchor_is_copied():
    model = mixout.apply_(lora(), Mixout(0.5))
    assert mixout.measure.anchored_weights(model) == {}


@pytest.mark.parametrize(
    ("where", "count"),
    [("paper", 4), (r"layer\.0\..*query$", 1), (lambda name, m: name.endswith("value") and m.in_features == 16, 2)],
)
def test_where_sees_the_adapted_layer_under_its_own_name(where, count):
    model = mixout.apply_(lora(), Mixout(0.5), where=where)
    assert len(mixout.coverage(model).mixed) == count


def test_the_papers_layers_are_mixed_in_every_adapter_and_the_others_in_none():
    """All linear layers have two adapters; the paper leaves out the feed-forward block's first layer."""
    model = lora(target_modules="all-linear", lora_dropout=0.0)
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    mixout.apply_(model, Mixout(0.5), where="paper")
    for active, passive in (("default", "other"), ("other", "default")):
        model.set_adapter(active)
        found = mixout.coverage(model)
        assert len(found.mixed) == 2 * 5 + 1  # two blocks without their intermediate layers; the pooler
        assert all(name.endswith(f".lora_A.{active}") for name in found.mixed)
        reasons = {layer.name: layer.reason for layer in found.layers}
        assert reasons[f"{QUERY}.lora_A.{passive}"] == "its adapter is not active"
        for name, module in model.named_modules():
            if name.endswith(f".lora_B.{active}"):
                torch.nn.init.normal_(module.weight, std=0.1)
        model.zero_grad()
        model.train()(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        masked = {
            name.removesuffix(".weight")
            for name, parameter in model.named_parameters()
            if "lora_A" in name and parameter.grad is not None and bool((parameter.grad == 0).all(dim=0).any())
        }
        assert masked == set(found.mixed)


def test_a_fully_trained_layer_of_the_body_has_an_anchor_of_its_own():
    model = lora(modules_to_save=["key"])
    mixout.apply_(model, Mixout(1.0))
    mixed = mixout.coverage(model).mixed
    copied = [name for name in mixed if name.endswith("key.modules_to_save.default")]
    assert (len(mixed), len(copied)) == (6, 2)
    key = model.get_submodule(copied[0])
    with torch.no_grad():
        before = key.train()(torch.ones(16))
        key.weight.add_(1.0)
        torch.testing.assert_close(key(torch.ones(16)), before)  # p = 1: the anchor


def test_merging_takes_the_unmasked_weights():
    model = train(mixout.apply_(lora(), Mixout(0.5)))
    layer = model.get_submodule(QUERY)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected, before, fingerprint = layer.base_layer.weight + 2 * (b @ a), logits(model), mixout.fingerprint(model)
    model.train().merge_adapter()
    torch.testing.assert_close(layer.base_layer.weight, expected)
    assert mixout.fingerprint(model) == fingerprint  # of the base as it was
    assert torch.allclose(logits(model), before, atol=1e-5)
    model.unmerge_adapter()
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=1e-5)
    assert not [m for m in merged.modules() if isinstance(m, mixout.layers.Mixed)]


def test_several_adapters_and_none():
    model = lora()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    mixout.apply_(model, Mixout(0.5))
    model.train()
    with torch.no_grad():
        model(input_ids=IDS)
        with model.disable_adapter():
            first, second = (model(input_ids=IDS).logits for _ in range(2))
            assert torch.equal(first, second)  # the base alone: nothing to draw
    reasons = {layer.name: layer.reason for layer in mixout.coverage(model).layers}
    assert reasons[f"{QUERY}.lora_A.other"] == "its adapter is not active"
    model.set_adapter("other")
    torch.nn.init.normal_(model.get_submodule(f"{QUERY}.lora_B.other").weight)
    with torch.no_grad():
        assert not torch.equal(model.train()(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert f"{QUERY}.lora_A.other" in mixout.coverage(model).mixed


def test_an_adapter_is_saved_and_loaded_as_a_plain_one(tmp_path):
    model = train(mixout.apply_(lora(), Mixout(0.5)))
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(bert(), tmp_path)
    torch.testing.assert_close(logits(again), logits(model))
    twin = pickle.loads(pickle.dumps(model))
    torch.manual_seed(3)
    ours = model.train()(input_ids=IDS).logits
    torch.manual_seed(3)
    torch.testing.assert_close(twin.train()(input_ids=IDS).logits, ours)


@pytest.mark.parametrize("seed", [None, 7])
def test_a_resumed_run_ends_as_an_uninterrupted_one(seed):
    torch.manual_seed(2)
    whole = mixout.apply_(lora(), Mixout(0.5), seed=seed)
    torch.manual_seed(2)
    train(whole, steps=2)
    state, weights, stream = mixout.save_state(whole), copy.deepcopy(whole.state_dict()), torch.get_rng_state()
    train(whole, steps=2)
    resumed = mixout.apply_(lora(), Mixout(0.5), seed=seed)
    resumed.load_state_dict(weights)
    mixout.load_state_(resumed, state)
    torch.set_rng_state(stream)
    train(resumed, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_base_is_hashed_once_and_known_after_a_cast(monkeypatch):
    """Lightning's bf16-true casts the module after the checkpoint was checked, a plain loop may do so before."""
    model, again = (mixout.apply_(lora(), Mixout(0.5)) for _ in range(2))
    monkeypatch.setattr("mixout.anchor._hash_bytes", None)
    mixout.load_state_(again, mixout.save_state(model.bfloat16()))
    assert mixout.fingerprint(again.double()) == mixout.fingerprint(model)


def test_with_a_seed_masks_follow_from_it_alone():
    outputs = []
    for stream in (1, 2):
        model = mixout.apply_(lora(), Mixout(0.5), seed=7).train()
        torch.manual_seed(stream)
        outputs.append(model(input_ids=IDS).logits)
    assert torch.equal(*outputs)


def test_the_selective_decay_pulls_the_factors_towards_0():
    """As in its authors' code for adapters: each factor is a weight whose anchor is 0. Oracle: the rule by hand."""
    model = mixout.apply_(lora(), AnchorDecay(1.0, selective=True))
    factors = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    decayed = mixout.methods.optimizer_hooks.targets(model)
    assert set(factors) == set(decayed)
    assert all(target.anchor.tensor is None for target in decayed.values())
    with torch.no_grad():
        for parameter in factors.values():
            parameter.fill_(1.0)
            parameter.grad = torch.ones_like(parameter)  # plain descent leads back towards 0
    before = {n: p.detach().clone() for n, p in model.named_parameters() if n not in factors}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.param_groups[0]["lr"] = -0.5  # and the step goes the other way
    optimizer.step()
    for parameter in factors.values():
        torch.testing.assert_close(parameter.detach(), torch.ones_like(parameter))  # 1.5 - (1.5 - 1) / 1.5 * 1.5
    assert all(p.equal(before[n]) for n, p in model.named_parameters() if n not in factors)
    assert mixout.measure.anchored_weights(model) == {}


@pytest.mark.parametrize(
    "method",
    [Mixout(0.5), OutputAnchor(1.0), AnchorDecay(1.0, selective=True)],
    ids=str,
)
def test_interpolation_scales_the_delta_of_every_adapter_that_a_method_acts_on(method):
    model = mixout.apply_(lora(lora_bias=True), method)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    layer = model.get_submodule(QUERY)
    x = torch.randn(3, layer.in_features)
    base, whole = layer.base_layer(x), layer.eval()(x)
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    mixout.interpolate_(model, 1.0)
    assert all(p.equal(kept[n]) for n, p in model.named_parameters())
    distance = mixout.distance(model).total
    mixout.interpolate_(model, 0.25)
    torch.testing.assert_close(layer(x), base + 0.25 * (whole - base))
    assert mixout.distance(model).total == pytest.approx(0.25 * distance)
    mixout.interpolate_(model, 0.0)
    assert layer(x).equal(base)


def test_the_distance_is_logged():
    from mixout.integrations import measures

    model = mixout.apply_(lora(), Mixout(0.5))
    assert measures(model) == {"mixout_p": 0.5, "anchor_distance": pytest.approx(mixout.distance(model).total)}
    assert measures(model)["anchor_distance"] > 0


def test_a_factor_that_is_frozen_alone_is_still_mixed():
    """LoRA-FA trains B alone: W - u = s B A is not 0, so Phi is not W."""
    model = mixout.apply_(lora(), Mixout(0.5))
    factor = model.get_submodule(f"{QUERY}.lora_A.default").requires_grad_(False)
    x = torch.ones(1, 16)
    with torch.no_grad():
        assert not factor.train()(x).equal(factor.eval()(x))


def test_the_trainer_of_transformers_needs_nothing_more(tmp_path):
    """With activation checkpointing in its reentrant form, and the callback that guards the anchor."""
    from mixout.integrations.huggingface import MixoutCallback

    model = mixout.apply_(lora(), Mixout(0.5))
    frozen = model.get_submodule(f"{QUERY}.base_layer").weight.clone()
    rows = [{"input_ids": IDS[0], "labels": torch.tensor(row % 2)} for row in range(8)]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, save_steps=2, per_device_train_batch_size=4, learning_rate=0.1,
        report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, activation_checkpointing=True,
        logging_steps=1,
    )  # fmt: skip
    before = mixout.distance(model).total
    trainer = transformers.Trainer(model, args, train_dataset=rows, callbacks=[MixoutCallback()])
    trainer.train()
    assert mixout.distance(model).total != before
    assert trainer.state.log_history[0]["anchor_distance"] != before
    assert torch.equal(model.get_submodule(f"{QUERY}.base_layer").weight, frozen)
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").exists()


def test_a_base_that_is_trained_again_under_a_later_adapter_is_mixed():
    model = peft.get_peft_model(mixout.apply_(bert(), Mixout(0.5)), peft.LoraConfig(r=2, target_modules=["query"]))
    assert not mixout.coverage(model).mixed
    model.requires_grad_(True)
    assert any(name.endswith("query.base_layer") for name in mixout.coverage(model).mixed)


@pytest.mark.parametrize("method", [Mixout(0.5), AnchorDecay(1.0)], ids=str)
def test_a_trainer_is_told_of_adapters_that_came_after_the_method(method, tmp_path):
    from mixout.integrations.huggingface import MixoutCallback

    model = peft.get_peft_model(
        mixout.apply_(bert(), method), peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    )
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True
    )
    rows = [{"input_ids": IDS[0], "labels": torch.tensor(0)}] * 2
    remedy = "add adapters, then apply_" if isinstance(method, Mixout) else "and give A and B weight_decay"
    with pytest.warns(mixout.FrozenLayersWarning, match=f"frozen by an adapter that came later; remove_, {remedy}"):
        transformers.Trainer(model, args, train_dataset=rows, callbacks=[MixoutCallback()]).train()
    reached = [row for row in mixout.coverage(model).layers if row.kind in ("mixed", "decayed")]
    assert reached == []
    assert "0 weights decay" in str(mixout.coverage(model)) or not isinstance(method, AnchorDecay)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["word_embeddings"]),
        peft.IA3Config(task_type="SEQ_CLS", target_modules=["value"], feedforward_modules=[]),
    ],
    ids=["embedding", "IA3"],
)
def test_answers_are_not_held_under_other_kinds_of_adapters_either(config):
    batch = {"input_ids": IDS}
    model = peft.get_peft_model(mixout.apply_(bert(), OutputAnchor(1.0)), config)
    with pytest.raises(mixout.MixoutError, match="got 'default', which came later"):
        mixout.output_penalty(model, batch, model(**batch))
    model = mixout.apply_(peft.get_peft_model(bert(), config), OutputAnchor(1.0)).eval()
    assert mixout.output_penalty(model, batch, model(**batch)).item() == pytest.approx(0.0, abs=1e-9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.add_(100.0)
    assert mixout.output_penalty(model, batch, model(**batch)).item() > 1e-6


def test_answers_are_not_held_under_an_adapter_that_came_later():
    """The start would be asked with the adapter on, so that nothing is ever punished."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    batch = {"input_ids": IDS}
    model = peft.get_peft_model(mixout.apply_(bert(), OutputAnchor(1.0)), config)
    with pytest.raises(mixout.MixoutError, match=r"got 'default', which came later, .*call remove_, add adapters"):
        mixout.output_penalty(model, batch, model(**batch))
    model = mixout.apply_(peft.get_peft_model(bert(), config), OutputAnchor(1.0))
    mixout.output_penalty(model, batch, model(**batch))
    model.add_adapter("second", config)
    mixout.output_penalty(model, batch, model(**batch))  # it is not active, and not trained
    model.set_adapter("second")
    with pytest.raises(mixout.MixoutError, match="got 'second', which came later"):
        mixout.output_penalty(model, batch, model(**batch))


ON_FACTORS = [OutputAnchor(1.0), AnchorDecay(1.0, selective=True)]


@pytest.mark.parametrize("method", ON_FACTORS, ids=str)
def test_the_adapter_of_a_convolution_has_a_distance(method):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    layer = model.base_model.model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    mixout.apply_(model, method, where=mixout.ALL)
    assert mixout.distance(model).total == pytest.approx(layer.get_delta_weight("default").norm().item())


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_the_distance_of_a_grouped_convolution_is_that_of_each_group():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, groups=2), torch.nn.Flatten(), torch.nn.Linear(6, 2))
    config = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    layer = peft.get_peft_model(model, config).base_model.model[0]
    mixout.apply_(model, AnchorDecay(1.0, selective=True), where=mixout.ALL)
    # What the adapter adds is linear in its input: its response to each unit input is a column of W - u.
    ones = torch.eye(4 * 9).view(-1, 4, 3, 3)
    with torch.no_grad():
        columns = layer.lora_B["default"](layer.lora_A["default"](ones)) * layer.scaling["default"]
    assert mixout.distance(model).total == pytest.approx(columns.norm().item(), rel=1e-6)


def test_a_selective_decay_reaches_every_adapter_of_an_attention_layer():
    """Those of out_proj lie within the adapted layer, which merges them: they can't be mixed."""
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2), torch.nn.Linear(8, 8))
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0", "1"]), model)
    mixout.apply_(model, AnchorDecay(1.0, selective=True), where=mixout.ALL)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" in name}
    assert len(trained) == 6
    assert set(targets(model)) == trained
    mixout.apply_(mixout.remove_(model), Mixout(0.5), where=mixout.ALL)
    assert mixout.coverage(model).mixed == ("1.lora_A.default",)


@pytest.mark.parametrize(
    ("method", "dora"),
    [(Mixout(0.5), False), *((method, dora) for method in ON_FACTORS for dora in (False, True))],
    ids=str,
)
def test_the_fingerprint_of_adapters_is_that_of_their_bases(method, dora):
    model, other, again = (mixout.apply_(lora(seed=seed, use_dora=dora), method) for seed in (0, 9, 0))
    assert mixout.fingerprint(model) == mixout.fingerprint(again) != mixout.fingerprint(other)
    state = mixout.save_state(model)
    with pytest.raises(mixout.AnchorMismatchError, match="fingerprint"):
        mixout.load_state_(other, state)
    mixout.load_state_(again, state)


def test_interpolation_leaves_an_adapter_that_was_not_trained():
    model = lora()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["query"]))
    layer = model.get_submodule(QUERY)
    factors = [layer.lora_B[name].weight for name in ("default", "other")]
    for factor in factors:
        torch.nn.init.normal_(factor)
    before = [factor.detach().clone() for factor in factors]
    mixout.interpolate_(mixout.apply_(model, OutputAnchor(1.0)), 0.5)
    assert factors[0].equal(0.5 * before[0])
    assert factors[1].equal(before[1])


def test_of_dora_no_distance_is_told_and_none_is_halved():
    model = mixout.apply_(lora(use_dora=True), OutputAnchor(1.0))
    torch.nn.init.normal_(model.get_submodule(QUERY).lora_B["default"].weight)
    assert f"{QUERY}.base_layer.weight" not in mixout.distance(model).by_layer
    with pytest.raises(mixout.MixoutError, match="got Dora"):
        mixout.interpolate_(model, 0.5)


@pytest.mark.parametrize("method", ON_FACTORS, ids=str)
def test_a_base_that_stores_no_weight_under_that_name_is_taken(method):
    class Packed(torch.nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            del self.weight
            self.register_buffer("qweight", torch.arange(16).view(4, 4))

        def forward(self, x):
            return x @ self.qweight.float().T

    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), peft.LoraConfig(r=2, target_modules=["0"]))
    layer = model.base_model.model[0]
    layer.base_layer = Packed()
    mixout.apply_(model, method, where=mixout.ALL)
    assert mixout.fingerprint(model)


@pytest.mark.parametrize("methods", [*ON_FACTORS, [Mixout(0.5), OutputAnchor(1.0)]], ids=str)
def test_each_base_is_hashed_once_whatever_acts_on_its_factors(methods, monkeypatch):
    digests = []
    monkeypatch.setattr("mixout.install.digest", lambda tensor: digests.append(tensor.data_ptr()) or digest(tensor))
    model = mixout.apply_(lora(), methods)
    bases = [p.data_ptr() for name, p in model.named_parameters() if name.endswith("base_layer.weight")]
    assert sorted(digests) == sorted(bases)


def test_the_start_of_plain_lora_is_said_to_be_its_base():
    """Its own names are no other model's, and apply_ takes the frozen base for the anchor."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    model = peft.get_peft_model(bert(), config)
    with pytest.raises(mixout.NotAppliedError, match="starts at its frozen base, which apply_ takes for the anchor"):
        mixout.interpolate_(model, 0.5)
    for ask in (lambda: mixout.interpolate_(model, 0.5, bert()), lambda: mixout.distance(model, bert())):
        with pytest.raises(mixout.AnchorMismatchError, match=r"starts at its frozen base, .*or merge the adapters"):
            ask()
    mixout.apply_(model, "mixout(0.5)")
    before = mixout.distance(model).total
    mixout.interpolate_(model, 0.5)
    assert mixout.distance(model).total == pytest.approx(before / 2, rel=1e-5)
