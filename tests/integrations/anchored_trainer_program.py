"""Trains with the Trainer of docs/methods/output-anchor.md, and writes the weights: in one process, or several."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import torch
import transformers

import mixout

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "output-anchor.md"


def anchored_trainer() -> type[transformers.Trainer]:
    """The page's own class."""
    [text] = re.findall(r"```python\n(class AnchoredTrainer.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {"Trainer": transformers.Trainer, "mixout": mixout}
    exec(text, names)
    return names["AnchoredTrainer"]


def trained(kind: str, method: str, batch_size: int, accumulation: int, place: Path) -> torch.Tensor:
    """The weights after three steps of SGD on four rows each, as one vector."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "pad_token_id": 0}
    model: torch.nn.Module
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    else:
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **still))
    mixout.apply_(model, method, where="all")
    draw = random.Random(0)
    texts = [[draw.randrange(1, 40) for _ in range(6)] for _ in range(12)]
    rows = [
        {"input_ids": text, "labels": text if kind == "llama" else number % 2, "attention_mask": [1] * 6}
        for number, text in enumerate(texts)
    ]
    args = transformers.TrainingArguments(
        str(place), max_steps=3, optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", max_grad_norm=0,
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    anchored_trainer()(model, args, train_dataset=rows).train()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def main() -> None:
    """Called by the test, in each process: kind, method, folder."""
    kind, method, place = sys.argv[1:]
    weights = trained(kind, method, 2, 1, Path(place))
    if torch.distributed.get_rank() == 0:
        torch.save(weights, Path(place) / "weights.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
