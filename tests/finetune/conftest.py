"""Settings of a short run on the tiny model and task; small models of several architectures."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import WORDS

from mixout.finetune.course import Course
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune


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


MEANT = {WORDS[0]: "joy", WORDS[1]: "fear", WORDS[2]: "very good"}


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def sentences(count: int) -> list[list[str]]:
    draw = random.Random(count)
    return [draw.choices(WORDS[:6], k=draw.randint(2, 6)) for _ in range(count)]


@pytest.fixture
def moods(tmp_path) -> Path:
    """A folder of texts with a label for each of three words that occurs in them."""
    for name, count in (("train", 80), ("dev", 30)):
        rows = [
            {"text": " ".join(words), "label": [label for word, label in MEANT.items() if word in words]}
            for words in sentences(count)
        ]
        write(tmp_path / f"moods/{name}.jsonl", rows)
    return tmp_path / "moods"


@pytest.fixture
def names(tmp_path) -> Path:
    """A folder of words with tags: an entity is one word and all of another that follow it."""
    for name, count in (("train", 80), ("dev", 30)):
        rows = []
        for words in sentences(count):
            tags: list[str] = []
            for word in words:
                inside = bool(tags) and tags[-1] != "O" and word == WORDS[1]
                tags.append("B-X" if word == WORDS[0] else "I-X" if inside else "O")
            rows.append({"text": words, "label": tags})
        write(tmp_path / f"names/{name}.jsonl", rows)
    return tmp_path / "names"


def options(settings: Settings) -> list[str]:
    """The command line of ``settings``."""
    found = []
    for item in dataclasses.fields(Settings):
        value = getattr(settings, item.name)
        if value != item.default:
            several = value if isinstance(value, tuple) else (value,)
            found += [f"--{item.name.replace('_', '-')}", *map(str, several)]
    return found


def weights(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Stopped(Exception):  # noqa: N818  it is no error
    """Ends a run from within."""


def stop(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the end of ``step`` end the run, after all that happens there."""
    method = Course.on_step_end

    def stopping(self, args, state, control, **kwargs):
        method(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise Stopped

    monkeypatch.setattr(Course, "on_step_end", stopping)


def interrupted(settings: Settings, place: Path, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, step)
        with pytest.raises(Stopped):
            finetune(settings, place)
