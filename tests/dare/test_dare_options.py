"""What ``mixout dare`` takes besides MODEL: another base, another task, other files; against transformers alone."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from mixout.cli import main
from mixout.dare import curve
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def dare(model, folder, *words):
    """The ends of the interpolation, u and w, and the first row of the table."""
    assert main(["dare", str(model), "--rates", "--interpolate", "0", "1", *words, "--output-dir", str(folder)]) == 0
    with (folder / "dare.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    found = {row["removed"]: float(row["score"]) for row in rows}
    return found["1.0"], found["0.0"], rows[0]


def read(path, **options):
    with path.open() as handle:
        return list(csv.DictReader(handle, **options))


@torch.no_grad()
def accuracy(model, folder, rows, *texts, labels):
    """Knows nothing of mixout."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    right = 0
    for row in rows:
        inputs = tokenizer(*(row[text] for text in texts), truncation=True, max_length=32, return_tensors="pt")
        right += labels[int(model.eval()(**inputs).logits.argmax())] == row["label"]
    return right / len(rows)


def classifier(folder):
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.fixture
def other_base(trained, tiny_bert, tmp_path):
    """A body that knows the task already, near the run's: its end is not at chance, as that of the usual base is."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_bert, folder)
    body = transformers.AutoModel.from_pretrained(trained)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    body.save_pretrained(folder)
    return folder


def test_another_anchor_is_the_end_without_the_delta(trained, other_base, tiny_task, tmp_path):
    rows = read(Path(tiny_task) / "dev.csv")
    by_hand = classifier(trained)
    by_hand.base_model.load_state_dict(transformers.AutoModel.from_pretrained(other_base).state_dict())
    expected = accuracy(by_hand, trained, rows, "text", labels=("first", "second"))
    anchor, tuned, row = dare(trained, tmp_path / "other", "--anchor", str(other_base))
    usual, same, usual_row = dare(trained, tmp_path / "usual")
    assert anchor == pytest.approx(expected)
    assert anchor > usual + 0.2
    assert tuned == same == pytest.approx(Record.read(trained).score)
    assert row["anchor"] != usual_row["anchor"]
    assert row["weights"] == usual_row["weights"]


def test_another_task_of_the_same_labels_scores(trained, tiny_task, tmp_path):
    rows = read(Path(tiny_task) / "dev.csv")
    turned = [row | {"label": "first" if n % 3 else row["label"]} for n, row in enumerate(rows)]
    folder = tmp_path / "turned"
    folder.mkdir()
    for name in ("train", "dev"):
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["text", "label"])
            writer.writeheader()
            writer.writerows(turned)
    expected = accuracy(classifier(trained), trained, turned, "text", labels=("first", "second"))
    _, tuned, row = dare(trained, tmp_path / "out", "--task", str(folder))
    assert tuned == pytest.approx(expected)
    assert tuned != pytest.approx(Record.read(trained).score)
    assert row["task"] == str(folder)


@pytest.fixture(scope="module")
def of_glue(tiny_bert, tiny_task, tmp_path_factory):
    """A run on RTE, whose files are made up and lie in a folder that is gone by now; and their rows."""
    place = tmp_path_factory.mktemp("glue")
    names = {"first": "entailment", "second": "not_entailment"}
    for name in ("train", "dev"):
        rows = read(Path(tiny_task) / f"{name}.csv")
        (place / "RTE").mkdir(exist_ok=True)
        with (place / "RTE" / f"{name}.tsv").open("w") as handle:
            handle.write("index\tsentence1\tsentence2\tlabel\n")
            for n, row in enumerate(rows):
                half = len(row["text"].split()) // 2
                words = row["text"].split()
                handle.write(f"{n}\t{' '.join(words[:half])}\t{' '.join(words[half:])}\t{names[row['label']]}\n")
    chosen = Settings(
        model=tiny_bert, task="RTE", data_dir=str(place), max_length=32, learning_rate=1e-2, epochs=4.0, batch_size=8,
        method="dropout(0.0)", save="no",
    )  # fmt: skip
    finetune(chosen, place / "run")
    (place / "RTE").rename(place / "moved")
    return place


def test_other_files_of_glue_are_found_where_they_are_now(of_glue, tmp_path, capsys):
    assert main(["dare", str(of_glue / "run"), "--output-dir", str(tmp_path / "none")]) == 2
    assert "RTE" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    here = tmp_path / "RTE"
    shutil.copytree(of_glue / "moved", here)
    lines = (here / "dev.tsv").read_text().splitlines()
    (here / "dev.tsv").write_text("\n".join(lines[:14]) + "\n")  # fewer than in training, to tell them apart
    rows = read(here / "dev.tsv", delimiter="\t")
    labels = ("entailment", "not_entailment")
    expected = accuracy(classifier(of_glue / "run"), of_glue / "run", rows, "sentence1", "sentence2", labels=labels)
    _, tuned, row = dare(of_glue / "run", tmp_path / "out", "--data-dir", str(tmp_path))
    assert tuned == pytest.approx(expected)
    assert row["task"] == "RTE"


def test_files_of_glue_for_another_task_are_refused(trained, tmp_path, capsys):
    words = ["--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert main(["dare", str(trained), *words]) == 2
    assert "expected --data-dir only with a GLUE task" in capsys.readouterr().err


def test_a_language_model_is_refused_before_it_is_read(tiny_llama, tiny_text, tmp_path, monkeypatch, capsys):
    chosen = Settings(
        task_type="causal-lm", model=tiny_llama, task=tiny_text, max_length=12, epochs=1.0, batch_size=8,
        method="dropout(0.0)", save="no",
    )  # fmt: skip
    finetune(chosen, tmp_path / "run")
    monkeypatch.setattr(curve, "models", None)
    monkeypatch.setattr(curve, "load_task", None)
    capsys.readouterr()
    assert main(["dare", str(tmp_path / "run"), "--output-dir", str(tmp_path / "out")]) == 2
    assert "expected a run whose model gives labels, got" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
