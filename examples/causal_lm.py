"""A small language model learns the prose of one library, and forgets another: plain, mixout, anchor_decay.

    python examples/causal_lm.py

Offline there is no pretrained causal language model, so one is made here: a Llama of 0.13 million parameters reads the
docstrings of scipy (the original domain), and is then fine-tuned on few docstrings of networkx (the new one). Printed
are the held-out losses of both, in nats per token. A number of one restart is no result: docs/causal-lm.md has those.

Needs ``pip install "mixout[demo]"``; takes some 15 seconds on one core.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import itertools
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

VOCABULARY = 500
SCORES = ("log_likelihood", "original_log_likelihood")
METHODS = ("plain", "mixout(0.7)", "anchor_decay(40)")


def main(*, original: int = 240, new: int = 40, dev: int = 30, epochs: float = 4.0) -> None:
    """Pretrain, fine-tune three times, print both losses; the sizes are numbers of docstrings."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_text("scipy", place / "original", train=original, dev=dev)
        write_text("networkx", place / "new", train=new, dev=dev)
        base = pretrain(place, epochs=epochs)
        print(f"{'method':<20} {'new domain':>16} {'original domain':>18}")
        for method in METHODS:
            record = adapt(place, base, method=method)
            before, after = (record.evaluations[k].scores for k in (0, -1))
            told = [f"{-before[name]:.3f} -> {-after[name]:.3f}" for name in SCORES]
            print(f"{method:<20} {told[0]:>16} {told[1]:>18}")


def write_text(library: str, place: Path, *, train: int, dev: int) -> None:
    """Write ``train.txt`` and ``dev.txt`` with as many docstrings of an installed library."""
    unique = dict.fromkeys(itertools.islice(docstrings(library), 2 * (train + dev)))
    found = list(unique)[: train + dev]
    place.mkdir()
    for name, texts in (("dev", found[:dev]), ("train", found[dev:])):
        (place / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")


def docstrings(library: str) -> Iterator[str]:
    """The prose with which docstrings begin, each in one paragraph of 100 to 250 characters; nothing is imported."""
    spec = importlib.util.find_spec(library)
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    # In the order of a hash: neighbours in a folder are alike.
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if "test" in name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            module = ast.parse((folder / name).read_bytes())
        for node in ast.walk(module):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = " ".join(inspect.cleandoc(ast.get_docstring(node) or "").split())
                if len(text) >= 100:
                    yield text[:250].rpartition(" ")[0]


def pretrain(place: Path, *, epochs: float) -> Path:
    """Make a tokenizer and a Llama from the original domain; the run is a fine-tuning of random weights."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    learner = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    core.train([str(place / "original" / "train.txt")], learner)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", model_max_length=256)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(place / "random")
    tokenizer.save_pretrained(place / "random")
    settings = Settings(
        task_type="causal-lm",
        model=str(place / "random"),
        task=str(place / "original"),
        method="plain",
        learning_rate=3e-3,
        epochs=epochs,
        batch_size=4,
        evaluate="end",
        save="no",
    )
    finetune(settings, place / "base")
    return place / "base"


def adapt(place: Path, base: Path, *, method: str, seed: int = 0, **changes: float) -> Record:
    """Fine-tune on the new domain; ``original`` is the held-out text of the old one."""
    settings = {
        "task_type": "causal-lm",
        "model": str(base),
        "task": str(place / "new"),
        "original": str(place / "original" / "dev.txt"),
        "method": method,
        "seed": seed,
        "learning_rate": 2e-3,
        "epochs": 5,
        "batch_size": 4,
        "evaluate": "end",
        "save": "no",
    }
    with tempfile.TemporaryDirectory() as folder:
        return finetune(Settings(**{**settings, **changes}), folder, keep_model=False)


if __name__ == "__main__":
    main()
