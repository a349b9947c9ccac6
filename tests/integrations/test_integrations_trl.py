"""SFTTrainer with nothing but apply_, on the small Llama of the example."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import mixout

pytestmark = [
    pytest.mark.usefixtures("one_thread", "fresh_accelerate"),
    # A default of TRL's own.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated"),
]


def test_masks_in_training_the_plain_model_in_evaluation_plain_weights_on_disk(tmp_path, example, dropped_columns):
    there = example("trl_sft")
    torch.manual_seed(0)
    tokenizer = there["small_tokenizer"]()
    model = there["small_llama"](tokenizer)
    keys = set(model.state_dict())
    mixout.apply_(model, mixout.Mixout(0.5))
    steps = dropped_columns(model)
    args = SFTConfig(
        str(tmp_path), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, weight_decay=0.0, bf16=False,
        logging_strategy="no", save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    rows = Dataset.from_dict({"text": there["TEXTS"]})
    trainer = SFTTrainer(model, args=args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()

    assert len(steps) == 4
    assert steps[0].keys() == set(mixout.coverage(model).mixed)
    assert len(steps[0]) == 14
    for name in steps[0]:
        patterns = [step[name] for step in steps]
        share = sum(map(sum, patterns)) / (4 * len(patterns[0]))
        assert 0.3 < share < 0.7, name  # p = .5; 128 draws or more
        assert len(set(patterns)) == 4, name

    trainer.save_model(str(tmp_path / "final"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    assert type(loaded.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert set(model.state_dict()) == keys
    assert all(value.equal(model.state_dict()[name]) for name, value in loaded.state_dict().items())
    batch = tokenizer(there["TEXTS"][:3], padding=True, return_tensors="pt", return_token_type_ids=False)
    assert loaded(**batch).logits.equal(model.eval()(**batch).logits)

    # The loss of the plain model, by hand: over all tokens, each text closed by the end token.
    total, count = 0.0, 0
    with torch.no_grad():
        for text in there["TEXTS"]:
            ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
            scores = loaded(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
            total -= scores.gather(1, ids[0, 1:, None]).sum().item()
            count += ids.shape[1] - 1
    found = trainer.evaluate()["eval_loss"]
    assert math.isclose(found, total / count, rel_tol=2e-2)  # the mean over batches of unequal length
    assert trainer.evaluate()["eval_loss"] == found
