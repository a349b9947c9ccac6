"""OutputAnchor against two separate models and the divergence written out; values and gradients."""

import copy
import gc
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import mixout
from mixout import Mixout, OutputAnchor, seeds, watch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),  # peft asks for it
]
CONFIG = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}


def encoder():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=30, num_labels=3, **CONFIG))


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=11, num_key_value_heads=2, **CONFIG))


def gpt():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config)  # tied embeddings, Conv1D, biases


IDS = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(5))
PROMPTED = IDS.clone()
PROMPTED[:, :2] = -100
PROMPTED[2, 4:] = -100
MASK = torch.ones_like(IDS)
MASK[2, 4:] = 0
BATCHES = {
    encoder: {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1, 2])},
    llama: {"input_ids": IDS, "attention_mask": MASK, "labels": PROMPTED},
    gpt: {"input_ids": IDS, "attention_mask": MASK},
}


@torch.no_grad()
def moved(model):
    """Every trained parameter, norms and biases too."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


def rows(make, logits):
    """Which predictions count, written out for these batches."""
    if make is encoder:
        return logits
    shifted = logits[:, :-1]
    return shifted[PROMPTED[:, 1:] != -100] if make is llama else shifted[MASK[:, 1:] == 1]


def divergence(make, direction, now, then):
    now, then = (rows(make, one).double().softmax(-1) for one in (now, then))
    p, q = (then, now) if direction == "forward" else (now, then)
    return (p * (p.log() - q.log())).sum(-1).mean()


def penalty_and_gradients(model, batch, penalty, **options):
    model.zero_grad()
    outputs = model(**batch, **options)
    value = penalty(outputs)
    value.backward()
    return value.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found[0].double(), expected[0].double(), rtol=tolerance, atol=tolerance)
    assert found[1].keys() >= expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=10 * tolerance, msg=name)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("make", list(BATCHES), ids=lambda make: make.__name__)
@pytest.mark.parametrize("beside", [[], [Mixout(0.5)], [mixout.AnchorDecay(radius=0.1)]], ids=str)
def test_it_is_the_divergence_from_a_second_model(make, direction, beside):
    """In eval mode, so that the passes are the same; the start is a copy of the model that is kept apart."""
    batch, base = BATCHES[make], make().eval()
    model = mixout.apply_(make().eval(), [OutputAnchor(0.3, direction=direction), *beside])
    moved(model)
    oracle = mixout.remove_(copy.deepcopy(model))
    with torch.no_grad():
        then = base(**batch).logits
    expected = penalty_and_gradients(oracle, batch, lambda out: 0.3 * divergence(make, direction, out.logits, then))
    found = penalty_and_gradients(model, batch, lambda out: mixout.output_penalty(model, batch, out))
    assert expected[0] > 0.001
    assert_same(found, expected)


@pytest.mark.parametrize("make", [encoder, llama], ids=lambda make: make.__name__)
def test_hidden_states_where_the_head_is_new(make):
    batch, base = BATCHES[make], make().eval()
    model = mixout.apply_(make().eval(), OutputAnchor(0.3, on="hidden"))
    moved(model)
    with torch.no_grad():
        then = base(**batch, output_hidden_states=True).hidden_states[-1]

    def distance(out):
        return 0.3 * (out.hidden_states[-1] - then)[MASK == 1].pow(2).mean()

    oracle = mixout.remove_(copy.deepcopy(model))
    expected = penalty_and_gradients(oracle, batch, distance, output_hidden_states=True)
    found = penalty_and_gradients(
        model, batch, lambda out: mixout.output_penalty(model, batch, out), output_hidden_states=True
    )
    assert expected[0] > 0.001
    assert_same(found, expected)
    head = {"classifier", "lm_head"} & {name for name in mixout.methods.output.held(model)}
    assert not head
    with pytest.raises(TypeError, match="output_hidden_states=True"):
        mixout.output_penalty(model, batch, model(**batch))


def choices():
    torch.manual_seed(0)
    model = transformers.BertForMultipleChoice(transformers.BertConfig(vocab_size=30, **CONFIG))
    ids, mask = torch.stack([IDS, IDS + 1], 1), torch.stack([MASK, MASK], 1)
    return model, {"input_ids": ids, "attention_mask": mask}, mask.flatten(0, 1)


def encoder_decoder(kind, **batch):
    torch.manual_seed(0)
    config = transformers.T5Config(
        d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=11, decoder_start_token_id=0
    )
    attended = MASK.flip(1)[:, :4]
    if not batch:
        batch = {"decoder_input_ids": IDS[:, 2:], "decoder_attention_mask": attended}
    return kind(config), {"input_ids": IDS, "attention_mask": MASK, **batch}, attended


LABELS = IDS[:, 2:].where(MASK.flip(1)[:, :4] == 1, -100)


@pytest.mark.parametrize(
    "make",
    [
        choices,
        lambda: encoder_decoder(transformers.T5Model),
        lambda: encoder_decoder(transformers.T5ForConditionalGeneration),
        lambda: encoder_decoder(transformers.T5ForConditionalGeneration, labels=LABELS),
    ],
    ids=["several rows an example", "decoder", "tied weights", "labels"],
)
def test_hidden_states_of_attended_tokens_count_whatever_the_model_encodes(make):
    model, batch, attended = make()
    base = copy.deepcopy(model).eval()
    mixout.apply_(model.eval(), OutputAnchor(0.3, on="hidden"))
    moved(model)
    outputs, then = (one(**batch, output_hidden_states=True) for one in (model, base))
    last = [getattr(out, "decoder_hidden_states", None) or out.hidden_states for out in (outputs, then)]
    expected = 0.3 * (last[0][-1] - last[1][-1])[attended == 1].pow(2).mean()
    assert expected > 0.001
    torch.testing.assert_close(mixout.output_penalty(model, batch, outputs), expected)


def test_with_prompts_of_peft_the_answers_of_tokens_count():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(gpt(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).eval()
    model.base_model.requires_grad_(True)
    mixout.apply_(model, OutputAnchor(1.0))
    with torch.no_grad():
        base = model(**BATCHES[gpt]).logits
        moved(model.base_model)
        outputs = model(**BATCHES[gpt])
    law, start = (rows(gpt, one[:, 2:]).double().log_softmax(-1) for one in (outputs.logits, base))
    expected = (start.exp() * (start - law)).sum(-1).mean()
    assert expected > 1e-3
    assert mixout.output_penalty(model, BATCHES[gpt], outputs).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_training_pass_is_compared_with_the_start_in_eval_mode():
    """Dropout and masks belong to the model that learns, not to the start; each module's mode is as before."""
    batch, base = BATCHES[encoder], encoder().eval()
    model = mixout.apply_(encoder().train(), [OutputAnchor(1.0), Mixout(0.5)])
    moved(model)
    model.bert.embeddings.eval()
    flags = [module.training for module in model.modules()]
    outputs = model(**batch)
    state = torch.get_rng_state()
    found = mixout.output_penalty(model, batch, outputs)
    assert torch.get_rng_state().equal(state)
    assert [module.training for module in model.modules()] == flags
    with torch.no_grad():
        expected = divergence(encoder, "forward", outputs.logits, base(**batch).logits)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=1e-6)
    assert found.requires_grad


def test_at_the_start_there_is_nothing_to_pay():
    for make, batch in BATCHES.items():
        model = mixout.apply_(make().eval(), OutputAnchor(1.0))
        found = penalty_and_gradients(model, batch, lambda out, m=model, b=batch: mixout.output_penalty(m, b, out))
        assert abs(found[0]) < 1e-6
        assert all(gradient.abs().max() < 1e-6 for gradient in found[1].values())


def test_accumulated_batches_are_one_batch():
    """With count, the number of predictions in all of them, as the Trainer divides its loss."""
    batch = BATCHES[llama]
    model = moved(mixout.apply_(llama().eval(), OutputAnchor(0.3)))
    whole = penalty_and_gradients(model, batch, lambda out: mixout.output_penalty(model, batch, out))
    count = (PROMPTED[:, 1:] != -100).sum()
    model.zero_grad()
    total = 0.0
    for row in range(3):
        part = {key: value[row : row + 1] for key, value in batch.items()}
        value = mixout.output_penalty(model, part, model(**part), count=count)
        value.backward()
        total += value.detach()
    assert_same((total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}), whole)


def test_outputs_without_a_gradient_are_refused_in_training():
    model = moved(mixout.apply_(llama().train(), OutputAnchor(0.3)))
    with torch.no_grad():
        outputs = model(**BATCHES[llama])
        assert mixout.output_penalty(model, BATCHES[llama], outputs) > 0  # an evaluation in this mode
    with pytest.raises(mixout.MixoutError, match="outputs with a gradient in training"):
        mixout.output_penalty(model, BATCHES[llama], outputs)


def test_a_batch_without_a_prediction_costs_nothing():
    model = moved(mixout.apply_(llama().eval(), OutputAnchor(0.3)))
    batch = {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}
    assert mixout.output_penalty(model, batch, model(**batch)).item() == 0.0


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_activation_checkpointing_and_autocast(reentrant):
    # In torch 2.7 a model under both gets no gradients, plain or not.
    autocast = not (reentrant and torch.__version__.startswith("2.7."))
    batch = BATCHES[llama]
    results = []
    for checkpointed in (False, True):
        model = moved(mixout.apply_(llama().train(), OutputAnchor(0.3)))
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results.append(
                penalty_and_gradients(model, batch, lambda out, m=model: mixout.output_penalty(m, batch, out))
            )
    assert_same(results[1], results[0])
    base, plain = llama().eval(), mixout.remove_(model.eval())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        expected = 0.3 * divergence(llama, "forward", plain(**batch).logits, base(**batch).logits)
    torch.testing.assert_close(results[1][0].double(), expected, rtol=1e-4, atol=1e-6)


def test_with_adapters_the_start_is_the_model_without_them():
    peft = pytest.importorskip("peft")
    batch = BATCHES[llama]
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
    model = mixout.apply_(peft.get_peft_model(llama(), config), [OutputAnchor(0.3), Mixout(0.5)]).eval()
    moved(model)
    outputs = model(**batch)
    found = mixout.output_penalty(model, batch, outputs)
    with torch.no_grad(), model.disable_adapter():
        expected = 0.3 * divergence(llama, "forward", outputs.logits, model(**batch).logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    held = [a for _, one in mixout.methods.output.held(model).values() for a in one.anchors.values()]
    assert held
    assert all(anchor.tensor is None for anchor in held)  # nothing is copied


def test_where_b_is_frozen_the_start_is_the_model_at_a_of_0():
    peft = pytest.importorskip("peft")
    batch = BATCHES[llama]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(llama(), config)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.requires_grad_(False)
    mixout.apply_(model, OutputAnchor(0.3)).eval()
    outputs = model(**batch)
    found = mixout.output_penalty(model, batch, outputs)
    with torch.no_grad(), model.disable_adapter():
        expected = 0.3 * divergence(llama, "forward", outputs.logits, model(**batch).logits)
    assert expected > 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_plain_modules_and_pairs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    base = copy.deepcopy(model).eval()
    moved(mixout.apply_(model, OutputAnchor(1.0)).eval())
    x = torch.randn(6, 4)
    expected = divergence(encoder, "forward", model(x), base(x))
    for batch in (x, (x, torch.zeros(6, dtype=torch.long))):
        torch.testing.assert_close(mixout.output_penalty(model, batch, model(x)).double(), expected.double())
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(mixout.output_penalty(compiled, x, model(x)).double(), expected.double())


def test_under_ddp_it_is_that_of_the_model_within(tmp_path):
    batch, plain = BATCHES[llama], moved(mixout.apply_(llama().eval(), OutputAnchor(0.3)))
    expected = penalty_and_gradients(plain, batch, lambda out: out.loss + mixout.output_penalty(plain, batch, out))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        model = moved(mixout.apply_(llama().eval(), OutputAnchor(0.3)))
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # the anchors' pass must not upset DDP's reducer
            found = penalty_and_gradients(
                wrapped, batch, lambda out: out.loss + mixout.output_penalty(wrapped, batch, out)
            )
    finally:
        torch.distributed.destroy_process_group()
    assert_same((found[0], {n.removeprefix("module."): g for n, g in found[1].items()}), expected)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_regression_is_a_normal_law(direction):
    """KL of N(m, 1) and N(m', 1) is (m - m')^2 / 2; a softmax over one class would always be 0."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(6, 4)
    start = model(x).detach()
    moved(mixout.apply_(model, OutputAnchor(2.0, direction=direction)))
    expected = (model(x) - start).square().mean()
    torch.testing.assert_close(mixout.output_penalty(model, x, model(x)), expected)


def test_anchors_are_shared_saved_and_taken_away():
    model = encoder()
    mixout.apply_(model, [Mixout(0.5), OutputAnchor(0.1)])
    held = mixout.methods.output.held(model)
    name = "bert.encoder.layer.0.output.dense"
    assert held[name][1].anchors["weight"] is model.get_submodule(name)._mixed.anchor
    assert {f"{n}.{f}" for n, (_, one) in held.items() for f in one.anchors} == {n for n, _ in model.named_parameters()}
    state = mixout.save_state(model)
    assert state["methods"] == "mixout(0.5)+output_anchor(0.1)"
    moved(model)
    assert mixout.distance(model).by_layer["bert.embeddings.LayerNorm.bias"] > 0
    twin = copy.deepcopy(model)
    mixout.load_state_(twin, state)
    batch = BATCHES[encoder]
    twin.eval()
    model.eval()
    found = [mixout.output_penalty(one, batch, one(**batch)) for one in (model, twin)]
    assert found[0].equal(found[1])
    with pytest.raises(mixout.AnchorMismatchError):
        mixout.load_state_(mixout.apply_(mixout.remove_(twin), [Mixout(0.5), OutputAnchor(0.1)]), state)
    mixout.remove_(model)
    assert not mixout.methods.output.held(model)
    with pytest.raises(mixout.NotAppliedError, match="OutputAnchor"):
        mixout.output_penalty(model, batch, model(**batch))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": -1.0}, ValueError, "finite beta"),
        ({"beta": True}, TypeError, "beta to be a number"),
        ({"beta": 1.0, "direction": "both"}, ValueError, "direction in"),
        ({"beta": 1.0, "on": "weights"}, ValueError, "on in"),
    ],
)
def test_arguments_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        OutputAnchor(**options)


def test_what_it_cannot_anchor_is_refused():
    model = encoder().requires_grad_(False)
    with pytest.raises(mixout.NothingMixedError, match="requires a gradient"):
        mixout.apply_(model, OutputAnchor(0.1))
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    with pytest.raises(ValueError, match="init_lora_weights='pissa'"):
        mixout.apply_(peft.get_peft_model(llama(), config), OutputAnchor(0.1))


def test_what_was_frozen_at_apply_and_is_trained_later_is_refused():
    """Gradual unfreezing: the start would be computed with the trained weights."""
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(5, 4)
    model[0].requires_grad_(False)
    mixout.apply_(model, OutputAnchor(1.0))
    assert mixout.output_penalty(model, x, model(x)).item() == 0
    model[0].bias.requires_grad_(True)
    with pytest.raises(mixout.MixoutError, match=r"'0\.bias' was frozen at apply_ and is trained now"):
        mixout.output_penalty(model, x, model(x))


def stepped(model, steps, *, asked=False, other=None, scheduled=False):
    """The warnings of so many steps; ``asked``: with the penalty in the loss; ``other``: what is stepped instead."""
    optimizer, x = torch.optim.SGD((other or model).parameters(), lr=0.1), torch.ones(2, 3)
    if scheduled:
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.zero_grad()
            outputs = (other or model)(x)
            loss = outputs.square().sum()
            (loss + mixout.output_penalty(model, x, outputs) if asked else loss).backward()
            optimizer.step()
    return [(one.category, Path(one.filename).name) for one in given]


def test_a_penalty_that_nobody_adds_is_told_once(monkeypatch):
    monkeypatch.setattr(watch, "STEPS", 2)
    told = [(mixout.MissingPenaltyWarning, Path(__file__).name)]
    model = mixout.apply_(nn.Linear(3, 2), OutputAnchor(1.0))
    assert stepped(model, 1) == []
    assert stepped(model, 1) == told
    assert stepped(model, 2) == []
    assert stepped(mixout.apply_(nn.Linear(3, 2), OutputAnchor(1.0)), 3, asked=True) == []
    assert stepped(mixout.apply_(nn.Linear(3, 2), OutputAnchor(0.0)), 3) == []
    # A scheduler wraps the step.
    assert stepped(mixout.apply_(nn.Linear(3, 2), OutputAnchor(1.0)), 2, scheduled=True) == told


def test_nobody_waits_for_the_penalty_of_another_model_of_a_copy_or_after_the_end(monkeypatch):
    monkeypatch.setattr(watch, "STEPS", 2)
    model = mixout.apply_(nn.Linear(3, 2), OutputAnchor(1.0))
    assert stepped(model, 3, other=nn.Linear(3, 2)) == []
    assert stepped(copy.deepcopy(model), 3) == []
    assert stepped(pickle.loads(pickle.dumps(model)), 3) == []
    mixout.coverage(mixout.remove_(model), OutputAnchor(1.0))
    assert stepped(model, 3) == []
    mixout.apply_(model, OutputAnchor(1.0))
    del model
    gc.collect()
    assert not any(isinstance(getattr(one, "warning", None), mixout.MissingPenaltyWarning) for one in seeds._COUNTERS)
