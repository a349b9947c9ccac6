"""Study files: what they may say, what they may not, and the one that comes with mixout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mixout.errors import InputError
from mixout.finetune.settings import Settings
from mixout.study.declaration import parse, read, shipped

GOOD = """
[study]
name = "two"
restarts = 3
[[task]]
name = "RTE"
data_dir = "glue"
[[task]]
name = "data/reviews.csv"
[[method]]
name = "mixout(.90)"
[[method]]
method = "dropout(0.1)"
epochs = 20
learning_rate = 1e-5
[[method]]
name = "plain"
label = "SGD"
optimizer = "sgd"
[factors]
learning_rate = [1e-5, 2e-5]
"""


def test_labels_and_settings():
    study = parse(GOOD.replace("learning_rate = 1e-5\n", "warmup = 0.2\n", 1))
    assert [axis.label for axis in study.tasks] == ["RTE", "reviews.csv"]
    assert study.tasks[0].settings == {"task": "RTE", "data_dir": "glue"}
    assert [axis.label for axis in study.methods] == ["mixout(0.9)", "dropout(0.1), epochs 20, warmup 0.2", "SGD"]
    assert study.methods[2].settings == {"method": "plain", "optimizer": "sgd"}
    assert (study.name, study.restarts, study.baseline) == ("two", 3, None)
    assert study.factors == {"learning_rate": [1e-5, 2e-5]}


def test_each_restart_may_have_its_own_subset():
    text = GOOD.replace("learning_rate = 1e-5\n", "", 1)
    assert not parse(text).own_subsets
    assert parse(text.replace("restarts = 3", "restarts = 3\nown_subsets = true")).own_subsets


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "", "either as a factor or as a setting"),
        ("[study]", "[stdy]", "did you mean 'study'"),
        ("restarts", "restart", "did you mean 'restarts'"),
        ("restarts = 3", "", "expected restarts under"),
        ("[factors]", "[[factors]]", r"\[factors\] as a table"),
        ("[[task]]", "[task]", "does not parse"),
        ('name = "RTE"', 'name = "RTE"\ntask = "RTE"', r"\[\[task\]\] 1: expected one name, got name and task"),
        ('name = "RTE"', "", r"\[\[task\]\] 1: expected one name, got none"),
        ('name = "RTE"', 'nme = "RTE"\nname = "RTE"', r"\[\[task\]\] 1: expected a setting, got 'nme'.*'name'"),
        ("mixout(.90)", "mixuot(.90)", r"\[\[method\]\] 1: method: .*did you mean 'mixout'"),
        ("mixout(.90)", "mixout(1.5)", r"\[\[method\]\] 1: .*1.5"),
        ("epochs", "epoch", r"\[\[method\]\] 2: .*did you mean 'epochs'"),
        ("epochs = 20", "seed = 3", r"\[\[method\]\] 2: .*restart k has seed k"),
        ('"sgd"', '"sgdm"', r"\[\[method\]\] 3: .*did you mean 'sgd'"),
        ('label = "SGD"', "label = 3", "label of a method as text, got 3"),
        ("restarts = 3", "restarts = 3\ntitle = 7", "expected title as text, got 7"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, old, new, said):
    path = tmp_path / "study.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_baseline_without_the_settings_that_are_part_of_its_label():
    text = GOOD.replace("learning_rate = 1e-5\n", "", 1).replace(
        "restarts = 3", 'restarts = 3\nbaseline = "dropout(0.1)"'
    )
    with pytest.raises(InputError, match=r"got 'dropout\(0.1\)'; did you mean 'dropout\(0.1\), epochs 20'\?"):
        parse(text)


def test_a_study_on_the_base_of_another():
    text = """
[study]
base = "demo-tie"
name = "longer"
[settings]
epochs = 9
[[method]]
name = "dropout(0.1)"
[factors]
warmup = [0.0, 0.1]
"""
    base, study = read("demo-tie"), parse(text)
    assert (study.name, study.restarts, study.baseline) == ("longer", base.restarts, base.baseline)
    assert study.settings == {**base.settings, "epochs": 9}
    assert study.tasks == base.tasks
    assert [axis.label for axis in study.methods] == ["dropout(0.1)"]
    assert study.factors == {"warmup": [0.0, 0.1]}


@pytest.mark.parametrize("base", ["demmo", "./demo.toml", 3, ["demo"]])
def test_a_base_that_does_not_come_with_mixout(base):
    with pytest.raises(InputError, match=r"base as a study that comes with mixout \(.*demo.*\), got"):
        parse(f'[study]\nname = "a"\nrestarts = 1\nbase = {base!r}\n')


def test_one_bracket_instead_of_two():
    with pytest.raises(InputError, match="two brackets"):
        parse('[study]\nname = "a"\nrestarts = 1\n[task]\nname = "RTE"\n')


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match=r"got './demo.tom'.*did you mean 'demo'"):
        read("./demo.tom")


def test_a_file_that_is_not_there_is_the_first_thing_that_is_said(tmp_path):
    with pytest.raises(InputError) as caught:
        read(tmp_path / "mine.toml")
    said = str(caught.value)
    assert said.index("there is no such file") < said.index("table1")


def test_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "windows.toml").write_text(GOOD.replace("learning_rate = 1e-5\n", "", 1), encoding="utf-8-sig")
    assert read(tmp_path / "windows.toml").name == "two"


def test_paths_begin_where_the_file_is(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "glue").mkdir(parents=True)
    (there / "data").mkdir()
    (there / "data" / "reviews.csv").touch()
    (there / "study.toml").write_text(GOOD.replace("learning_rate = 1e-5\n", "", 1))
    monkeypatch.chdir(here)
    first, second = read("../there/study.toml").tasks
    assert first.settings == {"task": "RTE", "data_dir": "../there/glue"}
    assert (second.label, second.settings) == ("reviews.csv", {"task": "../there/data/reviews.csv"})
    (there / "RTE").mkdir()  # GLUE's own folder does not make a path of the task's name
    assert read("../there/study.toml").tasks[0].settings["task"] == "RTE"
    long = GOOD.replace("learning_rate = [1e-5, 2e-5]", f'model = ["m", "minilm", "{"n" * 300}"]')
    (there / "long.toml").write_text(long)
    for name in ("m", "minilm", "rte"):
        (there / name).mkdir()
    assert read("../there/long.toml").factors == {"model": ["../there/m", "minilm", "n" * 300]}
    (there / "long.toml").write_text(long.replace('"glue"', '"rte"'))  # a task's name, but a folder here
    assert read("../there/long.toml").tasks[0].settings["data_dir"] == "../there/rte"
    (there / "glue").rmdir()  # what is not there is looked for from here
    assert read("../there/study.toml").tasks[0].settings["data_dir"] == "glue"


def test_the_file_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    study = parse(example)
    assert study.baseline == study.methods[0].label == "dropout(0.1)"
    assert study.methods[0].settings["weight_decay"] == 0.01


@pytest.mark.parametrize("beside", ["", "dropout(0.1)+"])
@pytest.mark.parametrize(("where", "radius"), [("settings", 0.025), ("task", 0.025), ("", 0.005)])
def test_a_decay_without_a_radius_has_the_usual_one_of_its_type_of_task(where, radius, beside):
    kind = 'task_type = "causal-lm"\n'
    text = (
        f'[study]\nname = "a"\nrestarts = 1\n[settings]\nepochs = 1.0\n{kind * (where == "settings")}'
        f'[[task]]\nname = "t.jsonl"\n{kind * (where == "task")}[[method]]\nname = " {beside}anchor_decay"\n'
    )
    study = parse(text)
    [task], [method] = study.tasks, study.methods
    assert method.label == f"{beside}anchor_decay"
    settings = Settings(**{**study.settings, **task.settings, **method.settings})
    assert settings.method == f"{beside}anchor_decay(radius={radius})"


def test_the_files_that_come_with_mixout_can_be_read():
    assert "demo" in shipped()
    for name in shipped():
        assert read(name).tasks
    assert [axis.label for axis in read("demo-tie").methods] == ["dropout(0.0)", "dropout(0.1)", "mixout(0.5)"]
