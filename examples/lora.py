"""LoRA with mixout: the frozen base is the anchor, so nothing is copied and nothing but ``apply_`` is written.

    python examples/lora.py [--trainer]

A plain loop, or the Trainer of transformers; MiniLM on 64 sentences of ``docstrings``. Needs "mixout[demo]" and peft.
"""

import argparse
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

import mixout
from mixout.finetune.batches import encode
from mixout.finetune.models import load
from mixout.finetune.tasks import few_sample, load_task
from mixout.integrations.huggingface import MixoutCallback

parser = argparse.ArgumentParser()
parser.add_argument("--trainer", action="store_true")
use_trainer = parser.parse_args().trainer

task = load_task("docstrings")
loaded = load("minilm", labels=task.labels, init_seed=0)
rows = encode(few_sample(task.train, 64, 0), loaded.tokenizer, 64)
collate = DataCollatorWithPadding(loaded.tokenizer)
torch.manual_seed(0)

model = get_peft_model(loaded.model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear"))
mixout.apply_(model, mixout.Mixout(0.5))  # all that is written for mixout
print(mixout.coverage(model))

if use_trainer:
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=2, per_device_train_batch_size=16, learning_rate=2e-3, report_to="none",
            disable_tqdm=True, save_strategy="no", use_cpu=not torch.accelerator.is_available(),
        )  # fmt: skip
        Trainer(model, settings, train_dataset=rows, data_collator=collate, callbacks=[MixoutCallback()]).train()
    model.cpu()
else:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for epoch in range(2):
        losses = []
        for batch in DataLoader(rows, batch_size=16, shuffle=True, collate_fn=collate):
            loss = model.train()(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")

print(f"distance to the anchor: {mixout.distance(model).total:.3f}")
batch = collate(rows[:8])
before = model.eval()(**batch).logits
merged = mixout.remove_(model).merge_and_unload()  # a plain model, with the unmasked weights
print(f"merged, the logits move by {(merged(**batch).logits - before).abs().max():.1e}")
