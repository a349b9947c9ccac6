"""Each of TRL's trainers for two steps: which of its passes are mixed, and what its reference model is."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from torch.nn.functional import linear

import mixout
from mixout.layers import Mixed

pytestmark = [
    pytest.mark.usefixtures("one_thread", "fresh_accelerate"),
    # Defaults of TRL's and of peft's own.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing"),
]

PROMPTS = ["the cat", "the dog", "a cat", "a dog"] * 2
GOOD, BAD = [" sat on the mat"] * 8, [" sat on the log"] * 8
PAIRS = {"prompt": PROMPTS, "chosen": GOOD, "rejected": BAD}
ROWS = {
    "SFT": {"text": [prompt + end for prompt, end in zip(PROMPTS, GOOD, strict=True)]},
    "DPO": PAIRS,
    "KTO": {"prompt": PROMPTS, "completion": (GOOD[:1] + BAD[:1]) * 4, "label": [True, False] * 4},
    "Reward": PAIRS,
    "GRPO": {"prompt": PROMPTS},
    "RLOO": {"prompt": PROMPTS},
}
SAMPLES = {"num_generations": 2, "max_completion_length": 4, "beta": 0.1}
OPTIONS = {"GRPO": SAMPLES, "RLOO": SAMPLES}


@pytest.fixture
def folder(tmp_path, example):
    """A small pretrained Llama with its tokenizer."""
    there = example("trl_sft")
    torch.manual_seed(0)
    tokenizer = there["small_tokenizer"]()
    there["small_llama"](tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def policy(folder, kind):
    if kind == "Reward":
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def trainer_for(kind, model, folder, peft_config=None, **options):
    config = getattr(trl, f"{kind}Config")(
        str(folder.parent / "out"), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, weight_decay=0.0,
        logging_strategy="no", save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, bf16=False,
        lr_scheduler_type="constant", dataloader_pin_memory=False, **OPTIONS.get(kind, {}), **options,
    )  # fmt: skip
    rewarded = {"reward_funcs": lambda completions, **_: [float(len(one)) for one in completions]}
    trainer = getattr(trl, f"{kind}Trainer")(
        model,
        args=config,
        train_dataset=Dataset.from_dict(ROWS[kind]),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        peft_config=peft_config,
        **(rewarded if kind in OPTIONS else {}),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def moved(model):
    """Let adapters change what the model computes."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data)


def passes(model):
    """Counts of (with gradients, mixed) over the passes of one layer, by its output against that of its weight."""
    seen = Counter()
    layer = next(m for n, m in model.named_modules() if n.endswith("up_proj"))

    def look(module, inputs, output):
        if hasattr(module, "base_layer"):
            base = linear(inputs[0], module.base_layer.weight)
            pairs = [(module.lora_A[name].weight, module.lora_B[name].weight) for name in module.lora_A]
            plain = (base, *(base + 2.0 * linear(linear(inputs[0], a), b) for a, b in pairs))
        else:
            plain = (linear(inputs[0], module.weight),)
        seen[torch.is_grad_enabled(), not any(torch.allclose(output, one, atol=1e-5) for one in plain)] += 1

    layer.register_forward_hook(look)
    return seen


# Twice a step: activation checkpointing, which is TRL's default, computes each pass again.
TRAINING = {(True, True): 4}
CASES = [
    ("SFT", {}, {}),
    ("DPO", {}, {}),
    ("DPO", {"precompute_ref_log_probs": True}, {(False, False): 2}),
    # The baseline of its loss: of the model that is trained, and without a gradient.
    ("KTO", {}, {(False, True): 2}),
    ("Reward", {}, {}),
]


@pytest.mark.parametrize(("kind", "options", "others"), CASES, ids=["SFT", "DPO", "DPO precomputed", "KTO", "Reward"])
def test_training_is_mixed_and_the_reference_is_the_pretrained_model(folder, kind, options, others):
    """Oracle: each output of a layer against that of its weight; the reference against the files."""
    model = mixout.apply_(policy(folder, kind), mixout.Mixout(0.5), anchor=0)
    seen, before = passes(model), {name: value.clone() for name, value in model.state_dict().items()}
    trainer = trainer_for(kind, model, folder, **options)
    trainer.train()
    assert seen == TRAINING | others
    assert not model.state_dict()["model.layers.0.mlp.up_proj.weight"].equal(
        before["model.layers.0.mlp.up_proj.weight"]
    )
    if (reference := getattr(trainer, "ref_model", None)) is not None:
        assert not any(isinstance(module, Mixed) for module in reference.modules())
        assert all(value.equal(before[name]) for name, value in reference.state_dict().items())


@pytest.mark.parametrize("given", [True, False], ids=["adapters of the model", "adapters of the trainer"])
@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_with_adapters_the_reference_is_not_mixed(folder, kind, given):
    """TRL takes the policy without its new adapters, or with a copy of the ones that were trained before."""
    peft = pytest.importorskip("peft")
    model, config = policy(folder, kind), peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    if given:
        model = peft.get_peft_model(model, config)
        moved(model)
        model = mixout.apply_(model, mixout.Mixout(0.5))
        trainer = trainer_for(kind, model, folder)
    else:
        trainer = trainer_for(kind, model, folder, peft_config=config)
        model = mixout.apply_(trainer.model, mixout.Mixout(0.5))
        moved(model)
    seen = passes(model)
    trainer.train()
    assert seen == TRAINING | ({(False, False): 2} if kind == "DPO" else {(False, False): 4, (False, True): 2})


@pytest.mark.parametrize("attached", [False, True], ids=["alone", "attached"])
@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_policy_gradients_refuse_mixing(folder, kind, attached):
    trainer = trainer_for(kind, mixout.apply_(policy(folder, kind), mixout.Mixout(0.5)), folder)
    if attached:
        from mixout.integrations.huggingface import attach_

        attach_(trainer)
    message = rf"for TRL's '{kind.lower()}' trainer, got mixout\(0.5\).* use mixout.AnchorDecay"
    with pytest.raises(mixout.MixoutError, match=message):
        trainer.train()


def test_policy_gradients_take_masked_gradients_and_leave_the_model_to_others(folder):
    """GradientMask trains the policy that it samples from. TRL's tags stay on a model that another trainer gets."""
    from mixout.integrations.huggingface import attach_

    model = mixout.apply_(policy(folder, "GRPO"), mixout.methods.GradientMask(0.5))
    trainer = trainer_for("GRPO", model, folder)
    attach_(trainer)
    trainer.train()
    trainer = trainer_for("SFT", mixout.apply_(mixout.remove_(model), mixout.Mixout(0.5)), folder)
    attach_(trainer)
    trainer.train()
    assert mixout.distance(model).total > 0


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
@pytest.mark.filterwarnings("ignore::mixout.DecayStrengthWarning")
def test_policy_gradients_take_a_decay(folder, kind):
    """A strong one holds every matrix at its start; a scale is trained."""
    model = mixout.apply_(policy(folder, kind), mixout.AnchorDecay(1e6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = passes(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mixout.GenerationWarning)
        trainer_for(kind, model, folder).train()
    assert seen.keys() == {(True, False), (False, False)}
    after = model.state_dict()
    torch.testing.assert_close(after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    assert not after["model.norm.weight"].equal(before["model.norm.weight"])


def test_an_output_anchor_in_the_loss_of_sft(folder, monkeypatch):
    """As the page of the method says, against a second model, after two steps. TRL's own loss builds no logits."""
    own = trl.SFTTrainer.compute_loss

    class Anchored(trl.SFTTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = transformers.Trainer.compute_loss(self, model, dict(inputs), True)
            loss = loss + mixout.output_penalty(model, inputs, outputs)
            return (loss, outputs) if return_outputs else loss

    monkeypatch.setattr(trl, "SFTTrainer", Anchored)
    model, base = mixout.apply_(policy(folder, "SFT"), mixout.OutputAnchor(0.5)), policy(folder, "SFT").eval()
    trainer = trainer_for("SFT", model, folder)
    trainer.train()
    model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        paid = trainer.compute_loss(model, dict(batch)) - own(trainer, model, dict(batch))
        asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
        now, then = (one(**asked).logits[:, :-1].log_softmax(-1) for one in (model, base))
    terms = (then.exp() * (then - now)).sum(-1)[batch["labels"][:, 1:] != -100]
    assert paid.item() == pytest.approx(0.5 * terms.mean().item(), rel=1e-3)
    assert paid > 0
