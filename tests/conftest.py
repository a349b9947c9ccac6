"""A pretrained model and a task that are small enough for every test: random weights, made-up sentences."""

from __future__ import annotations

import copy
import csv
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import pickle
import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is. All else stays as the profile of this machine has it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

WORDS = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me", "no", "ru", "sa") for b in ("ta", "vi", "po", "ne")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(autouse=True, scope="module")
def unscanned() -> None:
    """What lives before a file's tests is left out of collections: a Trainer makes one a run, in 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights are the same whatever ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second thread, and lose a lot to it where tests run side by side."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports whose figures are made and not drawn, which takes most of their time. Tests of the report draw them."""
    from matplotlib.figure import Figure

    def save(figure: Figure, target: Any, **options: Any) -> None:
        if isinstance(target, Path):
            target.touch()
        else:
            target.write("<svg/>")

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture(params=["deepcopy", "pickle", "file"])
def duplicate(request) -> Callable[[Any], Any]:
    """A way in which models are copied."""
    import torch

    def through_pickle(model: Any) -> Any:
        return pickle.loads(pickle.dumps(model))

    def through_file(model: Any) -> Any:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {"deepcopy": copy.deepcopy, "pickle": through_pickle, "file": through_file}[request.param]


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process, and refuses others; arguments of a Trainer add to them."""
    from accelerate.state import AcceleratorState

    kept = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    os.environ.update(kept)


class _Nothing(type):
    """A class without content, which has any attribute: another of its kind."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of classes without content, by the names that torchvision has."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if self.covers(name) else None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = lambda name: getattr(_Nothing(module.__name__, (), {}), name)

    @staticmethod
    def covers(name: str) -> bool:
        return name.partition(".")[0] == "torchvision"


@pytest.fixture(scope="session")
def timm() -> types.ModuleType | None:
    """timm, or None. Its vision transformers take nothing from torchvision but the import.

    torchvision is built for one build of torch, and beside another it breaks transformers as well, so it is not among
    what the tests ask for. Nobody else sees that something by its name was there for a moment.
    """
    if importlib.util.find_spec("timm") is None:
        return None
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("timm")
    finder = _Torchvision()
    sys.meta_path.append(finder)
    try:
        return importlib.import_module("timm")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if finder.covers(name)]:
            del sys.modules[name]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a BERT body without a head, 2 layers, 16 wide; its tokenizer has one token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(config).save_pretrained(folder)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with train.csv (42 rows) and dev.csv (20): the class is which of two words occurs."""
    folder = tmp_path_factory.mktemp("task") / "words"
    folder.mkdir()
    draw = random.Random(0)
    for name, rows in (("train", 42), ("dev", 20)):
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["text", "label"])
            for row in range(rows):
                words = draw.sample(WORDS[2:], draw.randint(2, 9))
                words.insert(draw.randrange(len(words)), WORDS[row % 2])
                writer.writerow([" ".join(words), ("first", "second")[row % 2]])
    return str(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a Llama, 2 layers, 16 wide; its tokenizer has one token a word and begins a text with ``<s>``.

    As many of its kind it has no padding token, and an end token that it does not write itself.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    names = ["<s>", "</s>", "<unk>", *WORDS]
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
    # What a run must hand on, and what the configuration of the model does not say.
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    model.save_pretrained(folder)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with train.txt (30 documents), dev.txt (11) and other.txt (9), whose words follow another rule."""
    folder = tmp_path_factory.mktemp("text") / "prose"
    folder.mkdir()
    draw = random.Random(0)
    for name, count, step in (("train", 30, 1), ("dev", 11, 1), ("other", 9, 5)):
        documents = []
        for _ in range(count):
            first = draw.randrange(len(WORDS))
            documents.append(" ".join(WORDS[(first + step * k) % len(WORDS)] for k in range(draw.randint(2, 29))))
        (folder / f"{name}.txt").write_text("\n\n".join(documents) + "\n")
    return str(folder)


@pytest.fixture
def study_file(tiny_bert: str, tiny_task: str, tmp_path) -> str:
    """A study file: two methods and two restarts of the tiny model on the tiny task, runs of six steps."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""
[study]
name = "tiny"
restarts = 2
baseline = "dropout(0.0)"
[settings]
model = {tiny_bert!r}
max_length = 32
epochs = 1
batch_size = 8
learning_rate = 1e-2
save = "no"
[[task]]
name = {tiny_task!r}
label = "words"
[[method]]
name = "dropout(0.0)"
[[method]]
name = "mixout(.5)"
"""
    )
    return str(path)
