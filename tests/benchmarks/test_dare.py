"""benchmarks/dare.py on a run of the tiny model, against transformers alone; and examples/dare_curve.py."""

import csv
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import dare
from dare import main
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")
ENDS = ["--rates", "0", "1", "--interpolate", "0", "1"]


@pytest.fixture(scope="module")
def base(tiny_bert, tmp_path_factory):
    return shutil.copytree(tiny_bert, tmp_path_factory.mktemp("dare") / "base")


@pytest.fixture(scope="module")
def trained(base, tiny_task):
    """Folder of a finished run with a score above chance, so that the ends differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    chosen = Settings(
        model=str(base), task=tiny_task, max_length=32, learning_rate=1e-2, epochs=12.0, batch_size=8,
        method="dropout(0.0)", save="no",
    )  # fmt: skip
    finetune(chosen, base.parent / "run")
    torch.set_num_threads(threads)
    return base.parent / "run"


def scores(path):
    with path.open() as handle:
        rows = list(csv.DictReader(handle))
    return {(row["curve"], float(row["removed"]), int(row["seed"])): float(row["score"]) for row in rows}


def refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def by_hand(folder, base, rows):
    """Accuracy of the base model's body under the run's head; knows nothing of mixout."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if base:
        model.base_model.load_state_dict(transformers.AutoModel.from_pretrained(base).state_dict())
        new = Record.read(folder).new_parameters
        own = transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
        model.load_state_dict({name: own[name] for name in new}, strict=False)
    tokenizer, right = transformers.AutoTokenizer.from_pretrained(folder), 0
    with torch.no_grad():
        for row in rows:
            inputs = tokenizer(row["text"], truncation=True, max_length=32, return_tensors="pt")
            right += ("first", "second")[int(model(**inputs).logits.argmax())] == row["label"]
    return right / len(rows)


def dev_rows(folder):
    with (Path(folder) / "dev.csv").open() as handle:
        return list(csv.DictReader(handle))


def test_the_ends_are_the_fine_tuned_model_and_the_anchor_under_its_head(trained, base, tiny_task, tmp_path, capsys):
    path = tmp_path / "out" / "dare.csv"
    assert main([str(trained), *ENDS, "--rates", "0", "0.5", "1", "--draws", "2", "--output", str(path)]) == 0
    found, tuned = scores(path), Record.read(trained).score
    assert found["element", 0.0, 0] == found["input", 0.0, 0] == found["interpolation", 0.0, 0] == pytest.approx(tuned)
    expected = by_hand(trained, base, dev_rows(tiny_task))
    assert expected != tuned
    assert found["interpolation", 1.0, 0] == found["element", 1.0, 0] == pytest.approx(expected)
    assert sum(removed == 0.5 for _, removed, _ in found) == 4
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "interpolation" in capsys.readouterr().out


def test_a_base_model_that_has_changed_is_refused_unless_it_is_named(trained, base, tmp_path, capsys):
    """The record holds the anchor's fingerprint; another base model gives another curve without a sign of it."""
    words, weights = [trained, *ENDS, "--output", tmp_path / "dare.csv"], base / "model.safetensors"
    before = weights.read_bytes()
    model = transformers.AutoModel.from_pretrained(base)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    model.save_pretrained(base)
    try:
        message = refused(words, capsys)
        assert "are not those that this run began with" in message
        assert str(Record.read(trained).fingerprints["anchor"])[:12] in message
        assert main([*map(str, words), "--anchor", str(base)]) == 0
    finally:
        weights.write_bytes(before)


def test_another_task_of_the_same_labels_has_its_own_scores_and_its_own_chance(
    trained, tiny_task, tmp_path, monkeypatch
):
    rows = [row | {"label": "first" if n % 3 else row["label"]} for n, row in enumerate(dev_rows(tiny_task))]
    folder = tmp_path / "turned"
    folder.mkdir()
    for name in ("train", "dev"):
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    drawn = []
    monkeypatch.setattr(dare, "draw", lambda _, chance, *__: drawn.append(chance))
    path = tmp_path / "dare.csv"
    assert main([str(trained), *ENDS, "--task", str(folder), "--output", str(path)]) == 0
    assert scores(path)["element", 0.0, 0] == pytest.approx(by_hand(trained, None, rows))
    share = sum(row["label"] == "first" for row in rows) / len(rows)
    assert drawn == [pytest.approx(share)]
    assert share != pytest.approx(Record.read(trained).chance)


def test_an_interrupted_command_goes_on_and_another_models_scores_are_not_mixed_in(
    trained, tmp_path, monkeypatch, capsys
):
    path, real, asked = tmp_path / "dare.csv", dare.Subject.score, []
    words = [str(trained), "--rates", "0.5", "--interpolate", "--draws", "2", "--output"]

    def stopping(subject):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(subject)

    monkeypatch.setattr(dare.Subject, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        main([*words, str(path)])
    first = scores(path)
    assert len(first) == 2
    assert main([*words, str(path)]) == 0
    assert main([*words, str(tmp_path / "fresh.csv")]) == 0
    assert scores(path) == scores(tmp_path / "fresh.csv")
    assert scores(path).items() >= first.items()
    path.write_text(path.read_text().replace("dropout(0.0)", "mixout(0.7)"))
    assert "has scores of method 'mixout(0.7)', not 'dropout(0.0)'" in refused([*words, path], capsys)


def test_what_cannot_be_is_refused(trained, tiny_bert, tmp_path, capsys):
    other = tmp_path / "other"
    config = json.loads((trained / "config.json").read_text()) | {"num_hidden_layers": 1}
    transformers.BertModel(transformers.BertConfig(**config)).save_pretrained(other)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(other)
    out = ["--output", tmp_path / "out" / "dare.csv"]
    (tmp_path / "file").touch()
    for words, message in (
        ([trained, "--rates", "1.2", *out], "expected --rates and --interpolate in [0, 1]"),
        ([trained, "--task", "docstrings", *out], "expected a task with the model's labels"),
        ([trained, "--anchor", "./nowhere", *out], "no such folder"),
        ([trained, "--anchor", other, *out], "expected an anchor that the model was fine-tuned from"),
        ([tiny_bert, *out], "expected a folder that mixout finetune wrote"),
    ):
        assert message in refused(words, capsys)
        assert not (tmp_path / "out").exists()
    assert "name another place" in refused([trained, *ENDS, "--output", tmp_path / "file" / "dare.csv"], capsys)


def test_the_example_leads_from_the_fine_tuned_model_to_its_anchor(capsys):
    example = Path(__file__).parents[2] / "examples" / "dare_curve.py"
    with torch.random.fork_rng():
        found = runpy.run_path(str(example), run_name="__main__")
    base, tuned, accuracy, curve = (found[name] for name in ("base", "tuned", "accuracy", "curve"))
    u, w = base.state_dict(), {name: value.clone() for name, value in tuned.state_dict().items()}
    expected = {0.0: accuracy(tuned), 1.0: accuracy(base)}
    tuned.load_state_dict({name: (u[name] + w[name]) / 2 for name in w})
    expected[0.5] = accuracy(tuned)
    tuned.load_state_dict(w)
    scores = curve(base, tuned)
    line = {removed: values[0] for (what, removed), values in scores.items() if what == "interpolation"}
    assert line == pytest.approx(expected, abs=0.002)  # one image of 797
    assert expected[0.0] > expected[1.0] + 0.3  # else there was nothing to drop
    assert min(scores["element", 0.5]) > max(scores["element", 0.99])
    assert all(value.equal(w[name]) for name, value in tuned.state_dict().items())
    assert "interpolation 0.5" in capsys.readouterr().out
