"""The pages: their code runs, their sentences are short, their numbers have a zero before the point."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import mixout
from mixout import cli
from mixout.finetune.predict import predict
from mixout.finetune.settings import Settings

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))
import sentences  # noqa: E402  a script beside the package

pytestmark = pytest.mark.usefixtures("one_thread")
PAGES = sentences.pages()
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
# Pages whose code needs several processes; the example that each shows is run by a test of its own.
RANKS = {"ddp.md", "fsdp.md", "tensor-parallel.md", "deepspeed.md"}


def blocks(page: Path) -> list[str]:
    return CODE.findall(page.read_text(encoding="utf-8"))


@pytest.fixture
def offline(monkeypatch, tmp_path, tiny_bert):
    """Names on the hub mean the tiny model; training is two steps, and eight rows are scored."""
    names = ("AutoModelForSequenceClassification", "AutoTokenizer")
    for owner in (getattr(transformers, name) for name in names):
        load = owner.from_pretrained

        def of(name, load=load, **options):
            return load(name if Path(name).is_dir() else tiny_bert, **options)

        monkeypatch.setattr(owner, "from_pretrained", of)
    arguments = transformers.TrainingArguments

    def short(*args, **options):
        return arguments(
            *args, **{"max_steps": 2, "save_strategy": "no", "report_to": "none", **options} | {"max_steps": 2}
        )

    # By name: transformers puts another module object in its own place when it is first used.
    monkeypatch.setattr("transformers.TrainingArguments", short)
    predict = transformers.Trainer.predict
    monkeypatch.setattr(transformers.Trainer, "predict", lambda trainer, rows: predict(trainer, rows[:8]))
    monkeypatch.chdir(tmp_path)


def rows(count=8, **padding):
    tokenizer = transformers.AutoTokenizer.from_pretrained("any")
    return [{**tokenizer("text " * (1 + number % 5), **padding), "labels": number % 2} for number in range(count)]


def classifier():
    return transformers.AutoModelForSequenceClassification.from_pretrained("any", num_labels=8)


def loop():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    data = [(torch.randn(5, 3), torch.randint(2, (5,))) for _ in range(3)]
    optimizer = torch.optim.AdamW(model.parameters())
    return {"model": model, "data": data, "optimizer": optimizer, "criterion": nn.functional.cross_entropy}


def trainer(**padding):
    return {
        "model": classifier(), "rows": rows(**padding), "Trainer": transformers.Trainer,
        "args": transformers.TrainingArguments("out", weight_decay=0.0),
        "tokenizer": transformers.AutoTokenizer.from_pretrained("any"),
    }  # fmt: skip


def accelerate():
    from accelerate import Accelerator

    given = loop()
    return {**given, "accelerator": Accelerator(cpu=True), "data": torch.utils.data.DataLoader(torch.randn(4, 3))}


def peft():
    from peft import LoraConfig, get_peft_model

    return {"base": classifier(), "LoraConfig": LoraConfig, "get_peft_model": get_peft_model}


def old():
    """A model, and texts that it must not forget."""
    tokenizer = transformers.AutoTokenizer.from_pretrained("any")
    batches = [tokenizer("some old text", return_tensors="pt")]
    given = {"old_texts": ["one", "two"], "old_batches": batches, **trainer(padding="max_length", max_length=8)}
    return {**given, "batches": [{**batches[0], "labels": torch.tensor([1])}]}


def interpolated():
    model = mixout.apply_(classifier(), mixout.AnchorDecay(radius=0.005))
    return {"model": model, "evaluate": lambda model: 0.0}


# What a page's code takes for granted, by the page's name; pages without an entry are whole.
GIVEN = {
    "README.md": lambda: {"rows": rows()},
    "huggingface.md": trainer,
    "plain-loop.md": loop,
    "accelerate.md": accelerate,
    "peft.md": peft,
    "lora.md": peft,
    "head-first.md": trainer,
    "anchor-decay.md": old,
    "mixout.md": old,
    "ewc.md": old,
    "selective-decay.md": old,
    "mask-period.md": old,
    "fewer-weights.md": old,
    "forgetting.md": old,
    "output-anchor.md": old,
    "interpolation.md": interpolated,
}
# Their examples are run by tests of their own; here the code must at least be Python.
COMPILED = RANKS | {
    "causal-lm.md",
    "lightning.md",
    "trl.md",
    "sentence-transformers.md",
    "timm.md",
    "csv.md",
    "untested.md",
}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, fresh_accelerate):
    if page.name in COMPILED:
        for block in blocks(page):
            compile(block, str(page), "exec")
        return
    names = {"mixout": mixout, **GIVEN.get(page.name, dict)()}
    with torch.random.fork_rng(), contextlib.redirect_stdout(None):
        for block in blocks(page):
            exec(compile(block, str(page), "exec"), names)
    if Path("my-model").exists():
        Path("new.csv").write_text("text\nsome text\n", encoding="utf-8")
        assert predict("my-model", "new.csv", "answers.csv").startswith("1 prediction: ")


def test_sentences_are_short(capsys):
    assert sentences.main([]) == 0, capsys.readouterr().out


def test_long_sentences_are_found(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n" + "word " * 36 + "end. Short one here.\n\n```\n" + "code " * 99 + "\n```\n")
    assert sentences.main([str(page)]) == 1
    printed = capsys.readouterr().out
    assert "37 words, at most 35" in printed
    assert "in the mean, at most 18" in printed
    assert "code" not in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_numbers_begin_with_a_digit(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"(?<![\w.\d/])[-+]?\.\d+", text) == []


def commands(text: str) -> set[str]:
    """Commands of mixout, in blocks of code and in sentences; not those of version 0.1."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ *(mixout \w.*?)(?: {2,}#.*)?$", text, re.MULTILINE)
    inline = [" ".join(one.split()) for one in re.findall(r"`(mixout \w[^`]* --[^`]*)`", text)]
    return {one for one in (*lines, *inline) if one.split()[1] in cli.COMMANDS and not one.endswith("--help")}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "results" / "README.md"], ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_ones(page):
    text = page.read_text(encoding="utf-8")
    for command in commands(text):
        args = cli._parse([{"N": "3", "...": "FILE"}.get(word, word) for word in shlex.split(command)[1:]])
        for method in getattr(args, "methods", None) or [getattr(args, "method", None) or "plain"]:
            assert Settings(method=method).method
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= {*targets}
    files = re.findall(r"\b((?:benchmarks|results|src|examples|tools|tests)/[\w/.-]+\.\w+)", text)
    assert [name for name in files if "NAME" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link and link not in {"api.md", "cli.md", "study-file.md"}]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_readme_fits_on_a_screen_or_two():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90
