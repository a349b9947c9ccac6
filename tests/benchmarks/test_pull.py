"""benchmarks/pull.py on a tiny model, against transformers alone."""

from __future__ import annotations

import csv

import pytest
import torch
import transformers

import pull
from mixout.finetune import data
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def test_loss_and_distance_are_those_of_the_run(tiny_bert, tiny_task, tmp_path):
    settings = Settings(
        model=tiny_bert, task=tiny_task, max_length=32, learning_rate=1e-2, epochs=2.0, batch_size=8,
        method="dropout(0.0)", save="no", train_size=30, subset_seed=3,
    )  # fmt: skip
    finetune(settings, tmp_path / "run", keep_model=True)
    rows = list(pull.rows(settings, tmp_path / "run", 6))
    assert [(row["texts"], row["p"]) for row in rows] == [
        (t, p) for t in ("trained on", "not trained on") for p in pull.PS
    ]

    trained = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    start = transformers.AutoModel.from_pretrained(tiny_bert)
    moved = {
        name: (layer.weight - start.get_submodule(name).weight).square().sum().item()
        for name, layer in trained.base_model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert rows[0]["squared_distance"] == pytest.approx(sum(moved.values()), rel=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    task = data.subset(data.load(settings), settings)
    for at, part in ((0, task.train), (5, task.dev)):
        batch = tokenizer(list(part.text[:24]), padding=True, truncation=True, max_length=32, return_tensors="pt")
        loss = trained(**batch, labels=torch.tensor(part.label[:24])).loss.item()
        assert [row["loss"] for row in rows[at : at + 5]] == pytest.approx([loss] * 5, rel=1e-5)
    # In proportion to p / (2 (1 - p)).
    assert rows[4]["predicted"] == pytest.approx(81 * rows[0]["predicted"])


def test_the_table_is_written(tiny_bert, tmp_path):
    pull.main(["--model", tiny_bert, "--masks", "3", "--epochs", "0.1", "--output", str(tmp_path / "pull.csv")])
    with (tmp_path / "pull.csv").open() as handle:
        assert len(list(csv.DictReader(handle))) == 10
