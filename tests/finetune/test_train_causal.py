"""Runs of language models: what they report, against transformers alone and against other processes."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from mixout.errors import InputError
from mixout.finetune import card, models
from mixout.finetune.cache import Cache
from mixout.finetune.levels import apply_methods
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune
from mixout.layers import Mixed

pytestmark = pytest.mark.usefixtures("one_thread")

# Knows nothing of mixout: mean -log p over the words of a file and their end tokens, in windows of 12 tokens.
EVALUATE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

found = []
for folder, file in zip(sys.argv[1::2], sys.argv[2::2]):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total = count = 0
    for text in open(file).read().strip().split("\\n\\n"):
        ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
        for start in range(0, ids.shape[1] - 1, 11):
            window = ids[:, start : start + 12]
            with torch.no_grad():
                total += model(input_ids=window, labels=window).loss.item() * (window.shape[1] - 1)
            count += window.shape[1] - 1
    found.append(total / count)
print(json.dumps(found))
"""


def evaluated_elsewhere(*models_and_files: str | Path) -> list[float]:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVALUATE, *map(str, models_and_files)],
        capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    found: list[float] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.sweep
def test_losses_before_and_after_are_those_of_a_second_process(causal, tiny_llama, tiny_text, tmp_path):
    lines: list[str] = []
    record = finetune(causal(learning_rate=2e-2, epochs=3.0), tmp_path / "out", report=lines.append)
    first, last = record.evaluations[0], record.evaluations[-1]
    assert [entry.step for entry in record.evaluations] == [0, 8, 16, 24]
    pairs = [
        (model, f"{tiny_text}/{name}.txt") for model in (tiny_llama, tmp_path / "out") for name in ("dev", "other")
    ]
    losses = evaluated_elsewhere(*(part for pair in pairs for part in pair))
    for entry, dev, original in ((first, *losses[:2]), (last, *losses[2:])):
        assert entry.loss == -entry.scores["log_likelihood"] == pytest.approx(dev, rel=1e-5)
        assert entry.scores["original_log_likelihood"] == pytest.approx(-original, rel=1e-5)
    # It has learned one text, and not the other.
    assert last.loss < first.loss - 0.3
    assert last.loss < -last.scores["original_log_likelihood"] - 0.2
    assert Record.read(tmp_path / "out") == record
    assert (record.score, record.metric, record.labels) == (-last.loss, "log_likelihood", None)
    assert (record.train_size, record.dev_size, len(record.predictions)) == (30, 11, 11)
    assert record.new_parameters == ()
    assert record.fingerprints.keys() == {"anchor", "train", "dev", "weights", "original"}
    assert sum("step 0/24" in line and "training loss" not in line for line in lines) == 1
    # The files are those of a language model, whose way to generate has been handed on.
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6
    text = (tmp_path / "out" / "README.md").read_text()
    assert text == card.write(record)
    assert f"| log_likelihood | {-first.loss:.4f} | {-last.loss:.4f} |" in text
    assert all(part in text for part in ("AutoModelForCausalLM", "text-generation", "causal language model"))


def test_without_the_original_domain_there_is_one_loss(causal, tmp_path):
    record = finetune(causal(original=None, epochs=0.2), tmp_path / "out")
    assert record.scores.keys() == {"log_likelihood", "perplexity", "kl_to_base"}
    assert "original" not in record.fingerprints


def test_only_completions_are_learned(causal, tmp_path):
    """One step of plain SGD is the gradient of transformers' own loss on the same tokens."""
    rows = [("bata bavi bapo", "dota dovi"), ("kita", "kivi kipo kine"), ("luta luvi", "lupo")]
    for name in ("train", "dev"):
        lines = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    chosen = causal(task=tmp_path, original=None, method="plain", optimizer="sgd", learning_rate=0.5, warmup=0.0)
    chosen = Settings(**{**json.loads(chosen.to_json()), "epochs": 1.0, "max_grad_norm": 0.0, "max_length": 32})
    finetune(chosen, tmp_path / "out")

    model = transformers.AutoModelForCausalLM.from_pretrained(chosen.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(chosen.model)
    loss = torch.zeros(())
    for prompt, text in rows:
        before, after = (tokenizer(one, add_special_tokens=False)["input_ids"] for one in (prompt, text))
        ids = torch.tensor([0, *before, *after, 1])
        logits = model(input_ids=ids[None, :-1]).logits[0]
        loss = loss + torch.nn.functional.cross_entropy(logits[len(before) :], ids[1 + len(before) :], reduction="sum")
    (loss / sum(len(text.split()) + 1 for _, text in rows)).backward()
    trained = load_file(tmp_path / "out" / "model.safetensors")
    for name, parameter in model.named_parameters():
        moved = parameter.detach() - 0.5 * parameter.grad
        torch.testing.assert_close(trained[name], moved, rtol=1e-5, atol=1e-6)


def test_accumulated_batches_weigh_every_token_alike(causal, tmp_path):
    options = {"method": "plain", "optimizer": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "epochs": 1.0}
    finetune(causal(**options), tmp_path / "whole")
    finetune(causal(**options, batch_size=2, accumulation=4), tmp_path / "parts")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_a_run_from_the_cache_is_the_run_from_the_files(causal, tmp_path):
    cache = Cache()
    finetune(causal(epochs=0.2), tmp_path / "first", cache=cache)
    finetune(causal(epochs=0.2, seed=1), tmp_path / "cached", cache=cache)
    finetune(causal(epochs=0.2, seed=1), tmp_path / "fresh")
    names = {path.name for path in (tmp_path / "fresh").iterdir()} - {"record.json", "README.md"}
    assert "generation_config.json" in names
    for name in names:
        assert (tmp_path / "cached" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name


def test_an_end_token_that_serves_as_padding_is_learned(causal, tiny_llama, tmp_path):
    """The trap of collators that mask every label equal to the padding token."""
    shutil.copytree(tiny_llama, tmp_path / "padded")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path / "padded")
    finetune(causal(epochs=0.5), tmp_path / "without")
    finetune(causal(epochs=0.5, model=tmp_path / "padded"), tmp_path / "with")
    one, other = (Record.read(tmp_path / name) for name in ("without", "with"))
    assert [entry.scores for entry in one.evaluations] == [entry.scores for entry in other.evaluations]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "without").pad_token is None


def test_where_says_whether_the_pretrained_head_is_mixed(causal, tiny_llama):
    found = {}
    for where in ("body", "paper", "all"):
        loaded = models.load_causal(tiny_llama)
        apply_methods(loaded, causal(where=where))
        network = loaded.model
        found[where] = isinstance(network.lm_head, Mixed)
        assert network.lm_head.weight is network.model.embed_tokens.weight
    assert found == {"body": False, "paper": False, "all": True}


@pytest.mark.parametrize(
    ("tied", "where", "pulled"), [(True, "body", True), (False, "body", False), (False, "all", True)]
)
def test_where_says_whether_the_pretrained_head_is_decayed(causal, tiny_llama, tied, where, pulled):
    loaded = models.load_causal(tiny_llama)
    head = loaded.model.lm_head
    if not tied:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    apply_methods(loaded, causal(method="anchor_decay(0.5)", where=where))
    before = head.weight.detach().clone()
    optimizer = torch.optim.SGD(loaded.model.parameters(), lr=1.0)
    with torch.no_grad():
        head.weight.add_(1.0)
    for parameter in loaded.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(head.weight.detach(), before + (math.exp(-0.5) if pulled else 1.0))


def test_a_loss_that_is_not_finite_is_a_diverged_run_without_a_score(causal, tmp_path):
    options = {"method": "plain", "optimizer": "sgd", "learning_rate": 1e30, "max_grad_norm": 0.0, "epochs": 0.5}
    record = finetune(causal(**options), tmp_path / "out")
    assert record.status == "diverged"
    assert math.isnan(record.score)
    assert math.isnan(Record.read(tmp_path / "out").score)
    assert record.evaluations[0].loss < 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 65}, "max_length <= 64"),
        ({"train_size": 31}, "1 to 30 documents, got 31"),
        ({"task": "docstrings"}, "folder or file with text.*'docstrings'"),
        ({"task": "./nowhere.txt"}, "nowhere.txt.*check the path"),
        ({"original": "./nowhere.txt"}, "expected original as a file"),
        ({"data_dir": "."}, "expected data_dir only with labelled text"),
        ({"label_column": "class"}, "expected label_column only with labelled text"),
        ({"head": "mixout"}, "expected head only with labelled text"),
        ({"metric": "perplexity"}, "higher is better"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(causal, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        finetune(causal(**changes), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_no_causal_language_models_are_refused(tiny_bert, tmp_path):
    with pytest.raises(InputError, match=r"got .*tiny-bert' without cls\.predictions"):
        models.load_causal(tiny_bert)
    with pytest.raises(InputError, match="causal language modelling"):
        models.load_causal(str(_broken(tiny_bert, tmp_path / "broken")))
    # All the weights are there, but every token is seen from everywhere.
    both = tmp_path / "both-ways"
    shutil.copytree(tiny_bert, both)
    config = copy.deepcopy(transformers.BertConfig.from_pretrained(tiny_bert))
    transformers.BertForMaskedLM(config).save_pretrained(both)
    with pytest.raises(InputError, match="sees the token to predict"):
        models.load_causal(str(both))


def _broken(model: str, place: Path) -> Path:
    shutil.copytree(model, place)
    (place / "model.safetensors").write_bytes(b"no weights")
    return place
