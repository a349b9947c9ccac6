"""TRL: SFTTrainer needs nothing but apply_. Its small Llama and tokenizer are made here, without a network."""

import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import mixout

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog sat on the mat"] * 4


def small_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *sorted({word for text in TEXTS for word in text.split()})]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def small_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **ids))


if __name__ == "__main__":
    tokenizer = small_tokenizer()
    model = small_llama(tokenizer)  # AutoModelForCausalLM.from_pretrained(...)
    mixout.apply_(model, mixout.Mixout(0.7))
    print(mixout.coverage(model))

    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(folder, max_steps=6, per_device_train_batch_size=4, learning_rate=1e-3, weight_decay=0.0,
                         logging_steps=2, save_strategy="no", report_to="none", bf16=False)  # fmt: skip
        rows = Dataset.from_dict({"text": TEXTS})
        trainer = SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        trainer.save_model(f"{folder}/final")  # plain weights: from_pretrained loads them without mixout
