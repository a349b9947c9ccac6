"""Does an installed mixout work? To be run by the Python that has it, outside the repository's ``src``.

    python -I tools/smoke.py          # torch alone: transformers must not be importable
    python -I tools/smoke.py "[hf]"   # with the extra: the Trainer and the command line as well

``tools/wheel.py`` runs it in environments that hold the declared dependencies and nothing else.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import mixout


def library() -> None:
    """A training step with every kind of method, and back to a plain model."""
    torch.manual_seed(0)
    first = nn.Linear(8, 16)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 2))
    names = list(model.state_dict())
    batch = torch.randn(4, 8)
    for method in ("mixout(0.5)", "anchor_decay(radius=0.1)", "gradient_mask(0.5)"):
        mixout.apply_(model, method, where=mixout.ALL)
        start = first.weight.detach().clone()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
        model(batch).square().mean().backward()
        optimizer.step()
        expect(not torch.equal(first.weight, start), f"{method} to train")
        mixout.remove_(model)
    expect(list(model.state_dict()) == names, "the names of a plain model")
    expect(version("mixout") == mixout.__version__, "one version")
    expect(command("--version") == f"mixout {mixout.__version__}", "mixout --version")


def transformers() -> None:
    """The Trainer, and ``mixout finetune``, with a model of a few numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
    )

    from mixout.integrations.huggingface import attach_

    config = BertConfig(vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "bad": 5}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    model = BertForSequenceClassification(config)
    with tempfile.TemporaryDirectory() as folder:
        base, table = Path(folder) / "base", Path(folder) / "rows.csv"
        model.save_pretrained(base)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")  # type: ignore[no-untyped-call]
        tokenizer.save_pretrained(base)
        mixout.apply_(model, mixout.Mixout(0.5))
        rows = [{"input_ids": [2, 4 + k % 2, 3], "labels": k % 2} for k in range(8)]
        args = TrainingArguments(str(Path(folder) / "run"), max_steps=2, report_to="none")
        trainer = Trainer(model, args, train_dataset=rows)
        attach_(trainer)
        trainer.train()
        expect(mixout.distance(model).total > 0, "the Trainer to train")
        table.write_text(
            "text,label\n" + "".join(f"{['good', 'bad'][k % 2]} {k},{k % 2}\n" for k in range(40)), encoding="utf-8"
        )
        out = Path(folder) / "out"
        command("finetune", "--task", str(table), "--model", str(base), "--epochs", "1", "--output-dir", str(out))
        expect((out / "record.json").exists(), "a record of mixout finetune")


def command(*words: str) -> str:
    """What ``mixout`` prints."""
    done = subprocess.run([sys.executable, "-I", "-m", "mixout", *words], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"mixout {' '.join(words)} to end well, got: {done.stderr}")
    return done.stdout.strip()


def expect(holds: bool, what: str) -> None:
    """End where something does not hold."""
    if not holds:
        sys.exit(f"expected {what}")


if __name__ == "__main__":
    extra = sys.argv[1] if len(sys.argv) > 1 else ""
    place = Path(mixout.__file__)
    expect("site-packages" in place.parts, f"the installed mixout, got {place}")
    library()
    if extra:
        transformers()
    else:
        expect(importlib.util.find_spec("transformers") is None, "no transformers beside torch alone")
    print(f"mixout{extra} {version('mixout')} works with torch {torch.__version__}")
