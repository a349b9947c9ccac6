"""Settings of a short run on the tiny model and task; small models of several architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mixout.finetune.settings import Settings


@pytest.fixture
def settings(tiny_bert, tiny_task) -> Callable[..., Settings]:
    """Settings of a run of 2 epochs of 6 steps; the last batch has 2 of 8 examples."""

    def build(**changes) -> Settings:
        values = {"model": tiny_bert, "task": tiny_task, "max_length": 32, "learning_rate": 1e-2, "epochs": 2.0}
        return Settings(**(values | {"batch_size": 8, "method": "mixout(0.5)", "save": "no"} | changes))

    return build


@pytest.fixture
def causal(tiny_llama, tiny_text) -> Callable[..., Settings]:
    """Settings of a language model's run of 2 epochs; documents of up to 31 tokens in windows of up to 12."""

    def build(**changes) -> Settings:
        values = {"task_type": "causal-lm", "model": tiny_llama, "task": tiny_text, "max_length": 12, "epochs": 2.0}
        values |= {"original": f"{tiny_text}/other.txt", "learning_rate": 1e-2, "batch_size": 8, "save": "no"}
        return Settings(**(values | {"method": "mixout(0.5)"} | changes))

    return build


@pytest.fixture
def small_model() -> Callable[..., Any]:
    """A model for two classes with random weights, by the name of its architecture."""
    import transformers

    small = {"vocab_size": 20, "num_labels": 2}
    eight = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}

    def build(name: str, layers: int = 2) -> Any:
        if name == "bert":
            config = transformers.BertConfig(num_hidden_layers=layers, **eight, **small)
            return transformers.BertForSequenceClassification(config)
        if name == "gpt2":
            config = transformers.GPT2Config(
                n_embd=8, n_layer=layers, n_head=2, bos_token_id=1, eos_token_id=1, **small
            )
            return transformers.GPT2ForSequenceClassification(config)
        if name == "t5":
            config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=layers, num_heads=2, **small)
            return transformers.T5ForSequenceClassification(config)
        config = transformers.LlamaConfig(num_hidden_layers=layers, **eight, **small)
        return transformers.LlamaForSequenceClassification(config)

    return build
