"""Models by shape, built from a configuration with random weights: nothing is downloaded, and time does not care.

Batches are full: no padding, no attention mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixout.errors import InputError
from mixout.finetune.extras import needs
from mixout.methods.text import nearest


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model's shape, a batch, and in what precision to train.

    Args:
        name: what ``--case`` calls it.
        family: ``bert``, an encoder with a classifier; or ``llama``, a decoder that predicts the next token.
        width: of the residual stream.
        intermediate: width of the feed-forward blocks.
        heads: attention heads.
        key_heads: heads of keys and values; fewer than ``heads`` where they are shared.
        layers: number of layers.
        vocabulary: number of tokens that the embedding knows.
        batch: sequences in a step.
        length: tokens in a sequence.
        precision: ``fp32``; or ``bf16``, autocast over float32 weights.
        gpu: whether the case is meant for GPUs.
    """

    name: str
    family: Literal["bert", "llama"]
    width: int
    intermediate: int
    heads: int
    key_heads: int
    layers: int
    vocabulary: int
    batch: int
    length: int
    precision: Literal["fp32", "bf16"]
    gpu: bool

    @property
    def tokens(self) -> int:
        """Tokens in a step."""
        return self.batch * self.length


def _bert(name: str, width: int, heads: int, layers: int, batch: int, length: int, *, gpu: bool = False) -> Case:
    return Case(
        name=name,
        family="bert",
        width=width,
        intermediate=4 * width,
        heads=heads,
        key_heads=heads,
        layers=layers,
        vocabulary=30_522,
        batch=batch,
        length=length,
        precision="bf16" if gpu else "fp32",
        gpu=gpu,
    )


_ALL = (
    _bert("bert-base-3", 768, 12, 3, 32, 128),
    _bert("bert-base-12", 768, 12, 12, 32, 128),
    _bert("minilm", 384, 12, 6, 16, 32),
    _bert("bert-large", 1024, 16, 24, 32, 128, gpu=True),
    # The shape of Llama 3.2 1B.
    Case(
        name="llama-1b",
        family="llama",
        width=2048,
        intermediate=8192,
        heads=32,
        key_heads=8,
        layers=16,
        vocabulary=128_256,
        batch=4,
        length=1024,
        precision="bf16",
        gpu=True,
    ),
)
CASES = {case.name: case for case in _ALL}


def find(name: str) -> Case:
    """The case called ``name``.

    Raises:
        InputError: if there is none; the message names the nearest.
    """
    if name in CASES:
        return CASES[name]
    raise InputError(f"expected a case among {', '.join(CASES)}, got {name!r}{nearest(name, CASES)}")


def build(case: Case, device: torch.device | str) -> nn.Module:
    """The model of ``case`` on ``device``, float32 and in training mode; always with the same weights."""
    with needs("hf", "the models of the benchmarks"):
        from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
    shape: dict[str, Any] = {
        "vocab_size": case.vocabulary,
        "hidden_size": case.width,
        "intermediate_size": case.intermediate,
        "num_attention_heads": case.heads,
        "num_hidden_layers": case.layers,
        "max_position_embeddings": max(512, case.length),
    }
    place = torch.device(device)
    # Only the generators that are drawn from: a fake model must not touch those of a GPU.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), place:
        torch.manual_seed(0)
        model: nn.Module
        if case.family == "bert":
            model = BertForSequenceClassification(BertConfig(**shape))
        else:
            shape |= {"num_key_value_heads": case.key_heads, "tie_word_embeddings": True, "use_cache": False}
            model = LlamaForCausalLM(LlamaConfig(**shape))
    return model


def inputs(case: Case, device: torch.device | str) -> dict[str, Tensor]:
    """A batch of random tokens with labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(case.vocabulary, (case.batch, case.length), generator=generator).to(device)
    if case.family == "llama":
        return {"input_ids": tokens, "labels": tokens}
    return {"input_ids": tokens, "labels": torch.randint(2, (case.batch,), generator=generator).to(device)}
