"""The model card as the hub reads it, and what is uploaded."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from mixout.cli import main
from mixout.cli.finetune import _summary
from mixout.errors import InputError
from mixout.finetune import card, data
from mixout.finetune.record import Record
from mixout.finetune.settings import TAGS, UNSEEN, Settings
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What would be in the repository."""
    files: dict[str, bytes] = {}

    def commit(_self, _name, operations, **_options):
        for one in operations:
            source = one.path_or_fileobj
            files[one.path_in_repo] = source if isinstance(source, bytes) else Path(source).read_bytes()
        return SimpleNamespace(repo_url="https://hub.example/me/reviews")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_args, **_options: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", commit)
    return files


def test_the_hub_reads_the_scores_from_the_card(settings, tmp_path):
    record = finetune(settings(), tmp_path / "a")
    header = huggingface_hub.ModelCard.load(tmp_path / "a" / "README.md").data
    assert {one.metric_type: one.metric_value for one in header.eval_results} == {
        name: round(value, 4) for name, value in record.scores.items()
    }
    error = f"of its 20 examples alone has a standard error: accuracy {record.standard_errors['accuracy']:.4f}, "
    assert error in (tmp_path / "a" / "README.md").read_text()
    assert (header.pipeline_tag, header.library_name, header.tags) == (
        "text-classification",
        "transformers",
        ["mixout"],
    )


def answered(place: Path) -> list[dict]:
    """What the code on the card prints, from the folder itself."""
    [code] = re.findall(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
    printed: list = []
    exec(code.replace("FOLDER", str(place)), {"print": printed.extend})
    return printed


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")  # one token a word
def test_the_card_says_how_the_model_is_used(settings, causal, moods, names, tmp_path):
    """A pipeline answers as predict does: a class, several labels, a value, entities, text."""
    (tmp_path / "values").mkdir()
    for name in ("train", "dev"):
        (tmp_path / f"values/{name}.csv").write_text("text,text_pair,label\na,b,30.5\nc,d,70.5\n")
    finetune(settings(epochs=0.2), tmp_path / "a")
    assert answered(tmp_path / "a")[0]["label"] in ("first", "second")
    finetune(settings(task=moods, epochs=0.2), tmp_path / "b")
    assert {one["label"] for one in answered(tmp_path / "b")[0]} == {"joy", "fear", "very good"}
    finetune(settings(task=tmp_path / "values", epochs=0.2), tmp_path / "c")
    assert answered(tmp_path / "c")
    finetune(settings(task=names, task_type=TAGS, epochs=8.0), tmp_path / "d")
    assert {one["entity_group"] for one in answered(tmp_path / "d")} <= {"O", "X"}
    finetune(causal(epochs=0.2), tmp_path / "e")
    assert "generated_text" in answered(tmp_path / "e")[0]


def test_the_card_names_the_classes(settings, names, tmp_path):
    finetune(settings(epochs=0.2), tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    assert "\n- Training examples by class: `first` 21, `second` 21.\n" in text
    assert "\n\nf1 is that of the class `second`.\nA constant answer" in text
    assert re.search(r" on \d+ cores? of ", text)
    finetune(settings(task=names, task_type=TAGS, epochs=0.2), tmp_path / "b")
    text = (tmp_path / "b" / "README.md").read_text()
    assert re.search(r"\n- Training words by label: `B-X` \d+, `I-X` \d+, `O` \d+\.\n", text)
    assert "f1 is" not in text
    rows = [f"{word},{number}" for number in range(23) for word in (f"a{number}", f"b{number}")]
    (tmp_path / "many").mkdir()
    for name in ("train", "dev"):
        (tmp_path / f"many/{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    finetune(settings(task=tmp_path / "many", max_steps=1), tmp_path / "c")
    assert ", `19` 2, ....\n" in (tmp_path / "c" / "README.md").read_text()


def test_an_error_of_0_is_no_certainty(settings, tmp_path):
    """All 20 dev rows are right: a standard error of 0 would say that this is so for all rows."""
    record = finetune(settings(method="plain", epochs=16.0), tmp_path / "a")
    assert (record.score, record.standard_errors["accuracy"]) == (1.0, 0.0)
    assert "standard error" not in (tmp_path / "a" / "README.md").read_text()
    assert "standard error" not in _summary(record, tmp_path / "a")


def test_scores_on_training_rows_are_no_result(settings, tiny_task, tmp_path):
    for name in ("train", "dev"):
        (tmp_path / "same").mkdir(exist_ok=True)
        shutil.copy(Path(tiny_task) / "train.csv", tmp_path / f"same/{name}.csv")
    record = finetune(settings(task=tmp_path / "same"), tmp_path / "a")
    card = huggingface_hub.ModelCard.load(tmp_path / "a" / "README.md")
    assert card.data.eval_results is None
    assert f"{record.dev_size} in the dev set" not in card.text
    assert "on the rows that the model was trained on" in card.text


def test_a_language_model_has_its_own_card(causal, tmp_path):
    finetune(causal(), tmp_path / "a")
    header = huggingface_hub.ModelCard.load(tmp_path / "a" / "README.md").data
    assert header.pipeline_tag == "text-generation"
    assert "kl_to_base" in {one.metric_type for one in header.eval_results}
    lines = (tmp_path / "a" / "README.md").read_text().splitlines()
    assert len({line.count("|") for line in lines[lines.index("## Result") + 2 :] if line.startswith("|")} - {3}) == 1


def test_everything_that_is_chosen_for_a_run_is_told(settings, tmp_path):
    changes = {"max_steps": 3, "schedule": "cosine", "label_smoothing": 0.125, "patience": 7, "keep_best": True}
    finetune(settings(**changes), tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \| `(.*)` \|$", text, re.MULTILINE))
    assert {name: rows.get(name) for name in changes} == {name: str(value) for name, value in changes.items()}
    # In words elsewhere on the card, or without influence on the model.
    elsewhere = {*data.READ, "model", "train_size", "seed", "evaluate", "save", "gradient_checkpointing"}
    decide = {item.name for item in dataclasses.fields(Settings)} - elsewhere - {*UNSEEN}
    assert set(rows) == decide
    finetune(settings(), tmp_path / "b")
    assert "`None`" not in (tmp_path / "b" / "README.md").read_text()


def test_an_upload_has_no_path_of_this_machine(tiny_bert, tiny_task, tmp_path, uploads, capsys):
    words = ["finetune", "--model", tiny_bert, "--task", tiny_task, "--original", f"{tiny_task}/dev.csv"]
    words += ["--max-length", "32", "--max-steps", "1", "--save", "no", "--output-dir", str(tmp_path / "out")]
    assert main([*words, "--push-to-hub", "me/reviews", "--test", f"{tiny_task}/dev.csv"]) == 0
    assert "https://hub.example/me/reviews" in capsys.readouterr().out
    assert {"README.md", "config.json", "model.safetensors", "record.json", "tokenizer.json"} <= uploads.keys()
    assert uploads["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    # Answers to rows of one's own are nobody's business.
    assert (tmp_path / "out" / "predictions.csv").exists()
    assert "predictions.csv" not in uploads
    for name, content in uploads.items():
        if not name.endswith(".safetensors"):
            assert str(Path(tiny_bert).parent) not in content.decode(), name
            assert str(Path(tiny_task).parent) not in content.decode(), name
            assert str(tmp_path) not in content.decode(), name
    record = Record.from_json(uploads["record.json"].decode())
    assert record.settings.model == Path(tiny_bert).name
    json.loads(uploads["config.json"])


def test_a_hub_that_refuses_is_told_before_the_run(tmp_path, monkeypatch):
    def refuses(*_args, **_options):
        raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuses)
    with pytest.raises(InputError, match="hf auth login"):
        card.prepare("me/reviews")
    assert main(["finetune", "--push-to-hub", "me/reviews", "--output-dir", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_hub_that_is_not_reached(monkeypatch):
    """Trap: the hub's client raises errors of its HTTP library then, which are no OSError."""
    hub = partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9", token="hf_none")  # nothing listens there
    monkeypatch.setattr(card, "HfApi", hub)
    with pytest.raises(InputError, match=r"got 'me/reviews': .*is this machine connected to the hub\?"):
        card.prepare("me/reviews")
