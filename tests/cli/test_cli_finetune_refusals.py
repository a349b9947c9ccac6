"""What a command line or file of options cannot mean is said in words that lead on, before anything is done."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from tests.finetune.conftest import interrupted

from mixout.cli import main
from mixout.errors import InputError
from mixout.finetune import run_methods
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune
from mixout.methods import parse

pytestmark = pytest.mark.usefixtures("one_thread")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a command line, in one line on stderr."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"mixout: error: [^\n]+\n", printed.err)
    return printed.err


@pytest.fixture
def tiny(tiny_bert, tiny_task) -> Settings:
    return Settings(
        model=tiny_bert, task=tiny_task, max_length=32, epochs=1.0, learning_rate=1e-3, batch_size=8, save=2
    )


def test_a_run_that_goes_on_takes_no_recipe(tiny, tmp_path, capsys):
    interrupted(tiny, tmp_path / "out", 3)
    for recipe in ("paper", "auto"):
        assert "--resume without --recipe" in refused(
            ["finetune", "--resume", str(tmp_path / "out"), "--recipe", recipe], capsys
        )
    (tmp_path / "run.yaml").write_text("recipe: paper")
    words = ["finetune", "--resume", str(tmp_path / "out"), "--config", str(tmp_path / "run.yaml")]
    assert "--resume without --recipe" in refused(words, capsys)


def test_a_finished_run_is_said_to_be_finished(tiny, tmp_path, capsys):
    finetune(tiny, tmp_path / "out")
    said = refused(["finetune", "--resume", str(tmp_path / "out")], capsys)
    assert re.search(r"to resume, got a finished one; answers for new rows: mixout predict \S+ FILE\n$", said)


@pytest.mark.parametrize("name", ["config", "resume", "print_config", "print-config"])
@pytest.mark.parametrize("value", ["x", "true", "[]", ""])
def test_a_file_holds_settings_alone(name, value, tmp_path, capsys, seen):
    (tmp_path / "run.yaml").write_text(f"seed: 1\n{name}: {value}\n")
    said = refused(["finetune", "--config", str(tmp_path / "run.yaml")], capsys)
    assert f"got {name!r}; write --{name.replace('_', '-')} on the command line" in said


@pytest.mark.parametrize("name", ["interpolate", "report_to"])
def test_an_empty_list_is_none(name, seen, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({name: [], "seed": 3}))
    main(["finetune", "--config", str(tmp_path / "run.yaml")])
    assert seen[0][0] == Settings(seed=3)


@pytest.mark.parametrize("text", [None, "a: [", "[1]", "seed: x", "sed: 1"])
def test_a_config_is_named_once(text, tmp_path, capsys, seen):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    assert refused(["finetune", "--config", str(path)], capsys).count("run.yaml") == 1


def test_data_behind_a_switch_is_told_where_to_stand(capsys, seen):
    for switch in ("--multi-label", "--keep-best", "--gradient-checkpointing"):
        assert "got 'moods.csv'; if it is DATA, put it before" in refused(["finetune", switch, "moods.csv"], capsys)


def test_no_logger_by_the_name_that_transformers_has(tmp_path, seen):
    main(["finetune", "--report-to", "none"])
    (tmp_path / "run.yaml").write_text("report_to: none")
    main(["finetune", "--config", str(tmp_path / "run.yaml")])
    assert [settings.report_to for settings, *_ in seen] == [(), ()]


@pytest.mark.parametrize("name", [*run_methods.METHODS])
@pytest.mark.parametrize("form", ["{}()", "dropout(0.2)+{}"])
def test_the_example_of_a_method_is_accepted(name, form):
    for reader in (parse, run_methods.parse):
        try:
            reader(form.format(name))
        except ValueError as error:
            for example in re.findall(r'for example "([^"]+)"', str(error)):
                assert example.startswith(f"{name}(")
                run_methods.parse(example)


@pytest.mark.parametrize("method", ["plain+mixout(0.7)", "lora(2)+plain", "plain+plain"])
def test_plain_is_no_part_of_a_sum(method):
    with pytest.raises(InputError, match="expected plain alone"):
        Settings(method=method)
    assert Settings(method=" plain ").method == "plain"


@pytest.mark.parametrize(
    "words",
    [
        ["--max-length", "1000"], ["--reinit-layers", "9"], ["--head-first", "2", "--epochs", "1"],
        ["--where", "nosuch", "--method", "mixout"], ["--class-weights", "balanced", "--metric", "spearman"],
        ["--label-smoothing", "0.1", "--metric", "spearman"],
    ],
)  # fmt: skip
def test_a_config_that_cannot_run_is_not_printed(words, tiny, tmp_path, capsys):
    rows = "".join(f"bata {'dota ' * (row % 4)},{row % 3}\n" for row in range(30))
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    words = ["finetune", str(tmp_path), "--model", tiny.model, "--max-length", "32", *words]
    said = refused([*words, "--print-config"], capsys)
    assert said == refused([*words, "--output-dir", str(tmp_path / "out")], capsys)


@pytest.mark.parametrize(
    "name", ["plain", "😀", "отзывы", "数据", "a: b #c", 'say "x"', "1e5", "back\\slash", "é\u0301"]
)
def test_a_printed_config_keeps_every_name(name, tiny, tiny_task, tmp_path, capsys, seen):
    place = tmp_path / name
    place.symlink_to(tiny_task)
    words = ["finetune", str(place), "--model", tiny.model, "--max-length", "32", "--text-column", "text"]
    assert main([*words, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["task"] == str(place)
    (tmp_path / "run.yaml").write_text(printed, encoding="utf-8")
    assert main(["finetune", "--config", str(tmp_path / "run.yaml")]) == 130
    assert seen[0][0].task == str(place)


def test_a_test_file_is_held_against_the_training_data(tiny, tmp_path, capsys, seen):
    """With every column that an answer needs, or not at all: before the training, not after it."""
    rows = "".join(f"bata,dota,{row % 2}\n" for row in range(20))
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text(f"text,text_pair,label\n{rows}")
    (tmp_path / "one.csv").write_text("text\nbata\n")
    (tmp_path / "own.csv").write_text("text,text_pair,prediction\nbata,dota,x\n")
    (tmp_path / "two.csv").write_text("text,text_pair\nbata,dota\n")
    words = ["finetune", str(tmp_path), "--model", tiny.model, "--output-dir", str(tmp_path / "out"), "--test"]
    assert "a column 'text_pair'" in refused([*words, str(tmp_path / "one.csv")], capsys)
    assert "no column 'prediction'" in refused([*words, str(tmp_path / "own.csv")], capsys)
    assert seen == []
    assert main([*words, str(tmp_path / "two.csv")]) == 130


def test_every_option_stands_in_the_group_of_its_kind(capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    group = capsys.readouterr().out.partition("\nmodel and data:")[2].partition("\n\n")[0]
    options = set(re.findall(r"--[a-z-]+", "\n".join(re.findall(r"^  --.*", group, re.MULTILINE))))
    read = {"multi_label", "assistant_only_loss", "text_column", "pair_column", "label_column", "task", "task_type"}
    assert {f"--{name.replace('_', '-')}" for name in read} <= options


def test_a_place_for_answers_is_looked_for_first(tiny, tiny_task, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    finetune(tiny, tmp_path / "out")
    rows = str(Path(tiny_task) / "dev.csv")
    monkeypatch.setattr("mixout.finetune.predict._outputs", lambda *_: pytest.fail("it was computed before"))
    for output in (tmp_path / "nowhere/p.csv", tmp_path, tmp_path / "out/record.json/p.csv", Path(rows)):
        said = refused(["predict", str(tmp_path / "out"), rows, "--output", str(output)], capsys)
        assert f"as output, got {str(output)!r}" in said
    (tmp_path / "out/record.json").write_text("{")
    said = refused(["predict", str(tmp_path / "out"), rows, "--output", str(tmp_path / "p.csv")], capsys)
    assert f"{tmp_path / 'out' / 'record.json'}: expected a record" in said


@pytest.mark.parametrize(
    "words",
    [
        "finetune {} --output-dir out", "finetune docstrings --model {} --output-dir out", "predict {} new.csv",
        "choose docstrings --model {} --output-dir out", "choose {} --output-dir out", "finetune SST-2 --data-dir {}",
        "finetune docstrings --config {}", "finetune docstrings --original {}", "study run {}", "study report {}",
    ],
)  # fmt: skip
def test_a_home_that_does_not_exist_is_named(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = refused([word.format("~nosuchuser/file") for word in words.split()], capsys)
    assert "~nosuchuser/file" in said
