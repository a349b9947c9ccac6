"""``mixout dare`` on a run of the tiny model: its ends, what is refused, and going on."""

import csv
import json

import pytest
import torch
import transformers

from mixout.cli import main
from mixout.dare import curve
from mixout.finetune.record import Record

pytestmark = pytest.mark.usefixtures("one_thread")


def scores(folder):
    with (folder / "dare.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    return rows, {(row["curve"], float(row["removed"]), row["seed"]): float(row["score"]) for row in rows}


def test_the_ends_are_the_fine_tuned_model_and_the_anchor_under_its_head(trained, tiny_bert, tmp_path, capsys):
    words = ["dare", str(trained), "--rates", "0", "0.5", "1", "--interpolate", "0", "1", "--draws", "2"]
    assert main([*words, "--output-dir", str(tmp_path)]) == 0
    rows, found = scores(tmp_path)
    record = Record.read(trained)
    for curve_name in ("element", "input"):
        assert found[curve_name, 0.0, "0"] == pytest.approx(record.score)
    assert found["interpolation", 0.0, ""] == pytest.approx(record.score)
    # By hand: the base model's body, the run's head.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(trained)
    body = transformers.AutoModel.from_pretrained(tiny_bert)
    kept = {name for name, _ in model.named_parameters() if name in record.new_parameters}
    own = {name: value for name, value in model.state_dict().items() if name in kept}
    model.base_model.load_state_dict(body.state_dict())
    model.load_state_dict(own, strict=False)
    subject = curve.load(str(trained), anchor=None, task=None, data_dir=None)
    subject.loaded.model.load_state_dict(model.state_dict())
    expected = curve.score(subject)
    assert expected != record.score
    assert found["interpolation", 1.0, ""] == found["element", 1.0, "0"] == pytest.approx(expected)
    assert sum(row["removed"] == "0.5" for row in rows) == 4
    assert rows[0]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "curve" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"dare.csv", "dare.png", "dare.svg"}


def test_an_interrupted_command_goes_on(trained, tmp_path, monkeypatch, capsys):
    words = ["dare", str(trained), "--rates", "0.5", "--interpolate", "--draws", "2", "--output-dir", str(tmp_path)]
    real, asked = curve.score, []

    def stopping(subject):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(subject)

    monkeypatch.setattr(curve, "score", stopping)
    assert main(words) == 130
    _, first = scores(tmp_path)
    assert len(first) == 2
    assert main(words) == 0
    assert "2 scores are there already, 2 to go" in capsys.readouterr().err
    _, found = scores(tmp_path)
    assert len(found) == 4
    assert found.items() >= first.items()
    fresh = tmp_path / "fresh"
    assert main([*words[:-1], str(fresh)]) == 0
    assert scores(fresh)[1] == found


def test_scores_of_another_model_are_not_mixed_in(trained, tmp_path, capsys):
    words = ["dare", str(trained), "--rates", "0", "--interpolate", "--unit", "element", "--output-dir", str(tmp_path)]
    assert main(words) == 0
    path = tmp_path / "dare.csv"
    path.write_text(path.read_text().replace("dropout(0.0)", "mixout(0.7)"))
    assert main(words) == 2
    assert "expected scores of method 'dropout(0.0)', got some of 'mixout(0.7)'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rates", "1.2"], "expected rates in [0, 1], got 1.2"),
        (["--interpolate", "-0.5"], "expected interpolate in [0, 1], got -0.5"),
        (["--draws", "0"], "expected draws as a whole number >= 1, got 0"),
        (["--rates", "--interpolate"], "got none; give --rates"),
        (["--task", "docstrings"], "expected a task with the model's labels"),
        (["--anchor", "./nowhere"], "no such folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(trained, tmp_path, words, message, capsys):
    assert main(["dare", str(trained), *words, "--output-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_record_is_refused(tiny_bert, tmp_path, capsys):
    assert main(["dare", tiny_bert, "--output-dir", str(tmp_path / "out")]) == 2
    assert "expected a folder that mixout finetune wrote" in capsys.readouterr().err


def test_an_anchor_of_another_shape_is_refused(trained, tiny_bert, tmp_path, capsys):
    other = tmp_path / "other"
    config = json.loads((trained / "config.json").read_text()) | {"num_hidden_layers": 1}
    model = transformers.BertModel(transformers.BertConfig(**config))
    model.save_pretrained(other)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(other)
    assert main(["dare", str(trained), "--anchor", str(other), "--output-dir", str(tmp_path / "out")]) == 2
    assert "expected an anchor that the model was fine-tuned from" in capsys.readouterr().err
