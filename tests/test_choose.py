"""Choosing: its files against a real run, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from tests.finetune.conftest import interrupted
from transformers import LlamaConfig

import mixout.choose.run as running
import mixout.choose.runs as estimating
from mixout.choose import choose, search
from mixout.cli import main
from mixout.errors import InputError
from mixout.finetune import models
from mixout.finetune.cache import Cache
from mixout.finetune.defaults import WIDER
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import files
from mixout.finetune.train import finetune
from mixout.study import executors
from mixout.study.identity import Inputs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def settings(tiny_bert, tiny_task):
    def build(**changes):
        values = {"model": tiny_bert, "task": tiny_task, "max_length": 32, "batch_size": 8, "max_steps": 2}
        return Settings(**values | {"method": "plain"} | changes)

    return build


@pytest.fixture
def quick(settings, tmp_path, monkeypatch):
    """Runs that train nothing: their scores follow from their settings. And where files are read, in order."""
    template = finetune(settings(), tmp_path / "template", keep_model=False)
    events = []
    read = files.read

    def stub(settings, folder, **_):
        events.append("run")
        key = f"{settings.method}{settings.learning_rate}{settings.seed}{Path(settings.task).name}"
        score = 0.5 + sum(key.encode()) % 50 / 100
        size = len((Path(settings.task) / "dev.jsonl").read_text().splitlines())
        record = replace(template, settings=settings, score=score, scores={"accuracy": score}, predictions=(0,) * size)
        folder.mkdir(parents=True)
        record.write(folder)

    def final(settings, folder, **options):
        if folder.name == "model":
            events.append("final")
        return finetune(settings, folder, **options)

    load = models.load
    monkeypatch.setattr(models, "load", lambda *args, **options: events.append("weights") or load(*args, **options))
    monkeypatch.setattr(files, "read", lambda path, *kinds: events.append(path.name) or read(path, *kinds))
    monkeypatch.setattr(executors, "finetune", stub)
    monkeypatch.setattr(running, "finetune", final)
    monkeypatch.setattr(search, "RATES", (1.0, 2.0))
    monkeypatch.setattr(search, "RATES_OF_METHOD", (1.0,))
    monkeypatch.setattr(search, "REPEATS", 1)
    return events


def test_a_table_becomes_a_model_and_a_report(quick, settings, tmp_path):
    lines = []
    choice = choose(settings(), output_dir=tmp_path / "out", budget="1h", methods=["mixout(.5)"], report=lines.append)
    # The dev file was not opened before the final training.
    assert quick.index("final") < quick.index("dev.csv")
    # For the checks; for all runs and the estimate of their time, where classes are numbers; for the final training.
    assert quick.count("weights") == 3
    runs = list(csv.DictReader((tmp_path / "out/choose.csv").read_text().splitlines()))
    assert len(runs) == choice.runs == quick.count("run") == len([line for line in lines if line.startswith("[")])
    best = [row for row in choice.table if row.verdict == "chosen"]
    scores = [float(r["accuracy"]) for r in runs
              if (r["method"], float(r["learning_rate"])) == (choice.method, choice.learning_rate)]  # fmt: skip
    assert best[0].mean == pytest.approx(np.mean(scores))
    record = Record.read(choice.model)
    assert (record.settings.method, record.settings.learning_rate) == (choice.method, choice.learning_rate)
    assert record.train_size == 42
    assert choice.dev == record.scores
    card, report = (path.read_text() for path in (choice.model / "README.md", tmp_path / "out/report.md"))
    assert choice.sentence in card
    assert choice.sentence in report
    assert (tmp_path / "out/choose.png").stat().st_size > 5000
    assert "left] " in lines[2]
    assert "best so far" in lines[2]
    # Called again: nothing is trained.
    before = (choice.model / "model.safetensors").stat().st_mtime_ns
    quick.clear()
    again = choose(settings(), output_dir=tmp_path / "out", budget="1h", methods=["mixout(.5)"])
    assert again == choice
    assert not {"run", "final"} & {*quick}
    assert (choice.model / "model.safetensors").stat().st_mtime_ns == before
    # With another dev file the scores of the model are others, and no run is.
    own = tmp_path / "own"
    shutil.copytree(settings().task, own)
    (own / "dev.csv").write_text("\n".join((own / "dev.csv").read_text().splitlines()[:12]))
    moved = choose(settings(task=own), output_dir=tmp_path / "out", budget="1h", methods=["mixout(.5)"])
    assert "run" not in quick
    assert Record.read(moved.model).dev_size == 11
    assert moved.dev == Record.read(moved.model).scores


@pytest.fixture
def scored(quick, monkeypatch):
    """As ``quick``, with scores by method; answers are right as often in the same rows."""

    def by(scores):
        stub = executors.finetune

        def run(settings, folder, **options):
            stub(settings, folder, **options)
            score = scores(settings, int(Path(settings.task).name[-1]))
            labels = [
                json.loads(line)["label"] for line in (Path(settings.task) / "dev.jsonl").read_text().splitlines()
            ]
            right = round(score * len(labels))
            answers = tuple(label if at < right else 1 - label for at, label in enumerate(labels))
            record = replace(Record.read(folder), score=score, scores={"accuracy": score}, predictions=answers)
            record.write(folder)

        monkeypatch.setattr(executors, "finetune", run)

    return by


def test_a_choice_whose_final_training_learns_nothing_gives_way_to_the_default(scored, settings, tmp_path, monkeypatch):
    scored(lambda settings, _: 1.0 if settings.method.startswith("mixout") else 0.5)
    whole, trained = running.finetune, []

    def final(settings, folder, **options):
        record = whole(settings, folder, **options)
        trained.append(settings.method)
        if settings.method.startswith("mixout"):
            last = replace(record.training[-1], loss=0.7)
            record = replace(record, training=(*record.training[:-1], last), verdict="it has hardly learned: so")
        else:
            record = replace(record, verdict="", training=(replace(record.training[-1], loss=0.1),))
        record.write(folder)
        return record

    monkeypatch.setattr(running, "finetune", final)
    lines = []
    choice = choose(settings(), output_dir=tmp_path, budget="1h", methods=["mixout(0.5)"], report=lines.append)
    assert trained == ["mixout(0.5)", "plain"]
    assert Record.read(choice.model).settings.method == choice.method == "plain"
    assert choice.table[0].candidate.method == "plain"
    assert choice.sentence.startswith("The default, plain at 5e-4, is kept: mixout(0.5) at ")
    assert "was ahead, but its training on all rows failed" in choice.sentence
    assert (choice.expected.value, choice.default, choice.gain.value) == pytest.approx((0.5, 0.5, 0), abs=0.05)
    assert any("the default is trained in its place" in line for line in lines)
    again = choose(settings(), output_dir=tmp_path, budget="1h", methods=["mixout(0.5)"])
    assert trained == ["mixout(0.5)", "plain"]
    assert again == choice


def test_a_choice_that_its_own_estimate_calls_worse_gives_way_to_the_default(scored, settings, tmp_path):
    """Mixout is ahead in all three judged parts; without the first of them dropout is, which is poor there."""
    scores = {"mixout(0.5)": (0.6, 0.6, 0.8, 0.8, 0.5), "dropout(0.0)": (0.6, 0.6, 0.1, 0.7, 0.7)}
    scored(lambda settings, part: scores.get(settings.method, (0.5,) * 5)[part])
    lines = []
    choice = choose(settings(), output_dir=tmp_path, budget="1h", methods=[*scores], report=lines.append)
    assert choice.method == Record.read(choice.model).settings.method == "plain"
    [line] = [line for line in lines if "was ahead, but" in line]
    assert line.startswith("mixout(0.5) at ")
    assert "is worse than the default, by -" in line
    assert choice.sentence.startswith(f"The default, plain at 5e-4, is kept: {line}. Expect accuracy ")
    assert choice.expected.value == choice.default
    assert "Each part was answered by the default," in (tmp_path / "report.md").read_text()


def test_too_few_runs_to_choose_by_are_told_and_the_default_is_scored_in_all_its_judged_parts(
    scored, settings, tmp_path, monkeypatch
):
    scored(lambda settings, part: 0.5)
    made, run = [], search.Search._run

    def some(self, candidate, split, until):
        """Time for eight runs: the last judged part is the default's alone."""
        if len(made) == 8 and split not in self.runs.get(candidate, ()):
            return False
        ran = run(self, candidate, split, until)
        made.append((candidate, split)) if (candidate, split) not in made else None
        return ran

    monkeypatch.setattr(search.Search, "_run", some)
    choice = choose(settings(), output_dir=tmp_path, budget="1h", methods=["mixout(0.5)", "dropout(0.0)"])
    assert choice.sentence.startswith(
        "The default, plain at 5e-4, is kept: with 8 runs nothing can be chosen, it takes"
    )
    judged = [split for candidate, split in made if str(candidate) == "plain at 5e-4" and split[0] in search.JUDGED]
    folder = tmp_path / "parts"
    sizes = [len((folder / f"part-{part}" / "dev.jsonl").read_text().splitlines()) for part, _ in judged]
    assert judged
    assert choice.judged_rows == sum(sizes)
    assert choice.expected.value == choice.default


def test_a_dropout_that_the_model_has_is_plain_fine_tuning_and_is_left_out(quick, settings, tmp_path):
    """To the bit: as candidates beside plain they would be the same runs twice."""
    losses = {
        method: [
            entry.loss for entry in finetune(settings(method=method), tmp_path / method, keep_model=False).training
        ]
        for method in ("plain", "dropout(0.1)", "dropout(0.0)")
    }
    assert losses["plain"] == losses["dropout(0.1)"] != losses["dropout(0.0)"]
    lines, both = [], ["dropout(0.0)", "dropout(0.1)"]
    choice = choose(settings(), output_dir=tmp_path / "out", budget="1h", methods=both, report=lines.append)
    assert {row.candidate.method for row in choice.table} == {"plain", "dropout(0.0)"}
    assert any(line.startswith("dropout(0.1) is not tried beside plain") for line in lines)


def test_the_time_of_a_run_is_estimated_by_fewer_steps_than_its_head_takes_alone(settings):
    assert estimating._estimate(settings(max_steps=20, epochs=4.0, head_first=2.0, learning_rate=1e-3), Cache()) > 0


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_of_two_dropouts_the_model_has_one(tiny_llama, tmp_path, dropout):
    shutil.copytree(tiny_llama, tmp_path, dirs_exist_ok=True)
    LlamaConfig.from_pretrained(tiny_llama, attention_dropout=dropout).save_pretrained(tmp_path)
    inputs = Inputs()
    same = [one for one in search.METHODS if inputs.is_plain(Settings(model=str(tmp_path), method=one))]
    assert same == [f"dropout({dropout})"]


def test_an_interrupted_call_goes_on(quick, settings, tmp_path, monkeypatch):
    stub = executors.finetune

    def interrupted(*args, **options):
        if quick.count("run") == 4:
            raise KeyboardInterrupt
        stub(*args, **options)

    monkeypatch.setattr(executors, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        choose(settings(), output_dir=tmp_path / "one", budget="1h", methods=[])
    monkeypatch.setattr(executors, "finetune", stub)
    one = choose(settings(), output_dir=tmp_path / "one", budget="1h", methods=[])
    trained = quick.count("run")
    other = choose(settings(), output_dir=tmp_path / "other", budget="1h", methods=[])
    assert trained == one.runs == quick.count("run") - trained
    assert (one.method, one.learning_rate, one.sentence) == (other.method, other.learning_rate, other.sentence)


def test_all_rows_of_a_single_file_are_trained_on(quick, settings, tiny_task, tmp_path, monkeypatch, capsys):
    table = tmp_path / "own.csv"
    table.write_text((Path(tiny_task) / "train.csv").read_text().replace("text,label", "review,stars"))
    columns = ["--text-column", "review", "--label-column", "stars"]
    words = ["choose", str(table), *columns, "--model", settings().model, "--max-length", "32", "--max-steps", "2"]
    assert main([*words, "--budget", "1h", "--methods", "dropout(0.1)", "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "dev rows" not in printed
    record = Record.read(tmp_path / "out/model")
    assert record.train_size == 42
    assert record.labels == ("first", "second")
    assert printed.endswith(f"\nanswers for new rows: mixout predict {tmp_path / 'out/model'} FILE\n")
    # The model knows the columns of the file.
    assert (record.settings.text_column, record.settings.label_column) == ("review", "stars")
    assert main(["predict", str(tmp_path / "out/model"), str(table), "--output", str(tmp_path / "p.csv")]) == 0
    assert "42 predictions" in capsys.readouterr().out
    # What the model scores on its own training rows is not told as a result, and they are called as the user does.
    card = ModelCard.load(tmp_path / "out/model/README.md")
    assert card.data.eval_results is None
    assert f"{record.score:.4f}" not in card.content
    assert "tiny-bert on own.csv\n" in card.text
    assert "- Data: The user's file own.csv. 42 training examples.\n" in card.text
    monkeypatch.setattr(estimating, "_estimate", lambda *_: 10.0)
    quick.clear()
    assert main([*words, "--budget", "22s", "--output-dir", str(tmp_path / "none")]) == 2
    assert "for one run and the final training, about 23 s, got 22 s; 12 min would try" in capsys.readouterr().err
    assert not {"run", "final"} & {*quick}
    assert not (tmp_path / "none").exists()
    # In a table with semicolons, what 1.050 means is asked at the start.
    labels = ["1.050", "2.831", "758"] * 20
    table.write_text("review;stars\n" + "".join(f"{row};{label}\n" for row, label in enumerate(labels)))
    assert main([*words, "--budget", "22s", "--output-dir", str(tmp_path / "none")]) == 2
    assert "note: own: the label '1.050' is read as 1.05; if its dot" in capsys.readouterr().err


def test_text_that_a_method_measures_is_the_same_in_all_runs(quick, settings, tiny_task, tmp_path):
    """A decay whose importance is measured on the training rows is another method."""
    chosen = settings(original=f"{tiny_task}/dev.csv", method="anchor_decay(1, fisher=3)")
    choose(chosen, output_dir=tmp_path / "out", budget="1h", methods=["anchor_decay(2, fisher=3)"])
    runs = [Record.read(path.parent).settings for path in (tmp_path / "out").rglob("record.json")]
    assert len({one.method for one in runs if "fisher" in one.method}) == 2
    assert {one.original for one in runs if "fisher" in one.method} == {chosen.original}
    # A method that measures does not make another run of plain fine-tuning.
    plain = settings(original=f"{tiny_task}/dev.csv")
    for methods in ([], ["anchor_decay(1, fisher=3)"]):
        choose(plain, output_dir=tmp_path / "two", budget="1h", methods=methods)
    runs = [Record.read(path.parent).settings for path in (tmp_path / "two/ledger").rglob("record.json")]
    places = [(one.method, one.learning_rate, one.seed, one.task) for one in runs]
    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("changes", "rows", "budget", "said"),
    [
        ({}, 30, "1h", "at least 40 training rows to choose by, got 24|at least 40 .* got 30"),
        ({}, 60, "1h", "different texts of each class, one for each part, got 3 of 'rare'"),
        ({"keep_best": True}, 60, "1h", "no patience and no keep_best"),
        ({"task_type": "causal-lm"}, 60, "1h", "labelled texts to choose by"),
        ({}, 60, "soon", "a budget such as 90s, 30m or 2h, got 'soon'"),
        ({}, 1, "1h", "at least 2 different labels"),
        ({"original": "nowhere.txt", "epochs": 1.0, "learning_rate": 1e-3}, 60, "1h", "nowhere.txt"),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(settings, tmp_path, monkeypatch, changes, rows, budget, said):
    lines = [{"text": f"text {number}", "label": ("rare" if number < 3 else "often")} for number in range(rows)]
    table = tmp_path / "own.jsonl"
    table.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(executors, "finetune", None)
    monkeypatch.setattr(running, "finetune", None)
    with pytest.raises(InputError, match=said):
        choose(settings(task=str(table), **changes), output_dir=tmp_path / "out", budget=budget)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("label", "said"), [("{}0", "choose --metric spearman$"), ("{} kg", "if '10 kg' is a value, write")]
)
def test_values_that_would_be_classes_say_so(settings, tmp_path, label, said):
    table = tmp_path / "own.csv"
    table.write_text("text,label\n" + "".join(f"{row},{label.format(row)}\n" for row in range(10, 70)))
    with pytest.raises(InputError, match=rf"or leave the class out; .*{said}"):
        choose(settings(task=str(table)), output_dir=tmp_path / "out")


@pytest.fixture
def untrained(settings, monkeypatch):
    """Lets nothing be trained."""
    monkeypatch.setattr(executors, "finetune", None)
    monkeypatch.setattr(running, "finetune", None)
    return settings


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("made", ["notes", "model", "start", "linked start", "finished run", "unfinished run"])
def test_a_model_of_the_users_own_is_not_taken_away(untrained, settings, tmp_path, made):
    model, changes = tmp_path / "out/model", {}
    if made == "notes":
        model.mkdir(parents=True)
        (model / "mine.txt").write_text("x")
    elif made == "finished run":
        finetune(settings(), model)
    elif made == "unfinished run":
        interrupted(settings(save=1), model, 2)
    else:
        shutil.copytree(settings().model, model)
        changes = {"model": str(model)} if made == "start" else {}
    if made == "linked start":
        (tmp_path / "link").symlink_to(model)
        model.with_suffix(".id").write_text("")
        changes = {"model": str(tmp_path / "link")}
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"which (choose has not made|is the model to begin with); choose another"):
        choose(settings(**changes), output_dir=tmp_path / "out", budget="1h", methods=[])
    assert contents(tmp_path) == before


def test_a_final_training_that_was_cut_off_is_made_again(quick, settings, tmp_path, monkeypatch):
    final = running.finetune

    def stopped(settings, folder, **options):
        record = final(settings, folder, **options)
        if folder.name == "model":  # the folder looks like a run of one's own
            raise KeyboardInterrupt
        return record

    monkeypatch.setattr(running, "finetune", stopped)
    with pytest.raises(KeyboardInterrupt):
        choose(settings(), output_dir=tmp_path / "out", budget="1h", methods=[])
    monkeypatch.setattr(running, "finetune", final)
    choice = choose(settings(), output_dir=tmp_path / "out", budget="1h", methods=[])
    assert Record.read(choice.model).settings.learning_rate == choice.learning_rate


@pytest.mark.parametrize(
    "method",
    ["output_anchor(1)", "dropout(0.2)+dropout(0.3)", "lora(2)+mixconnect(0.5)", "lora(2)+anchor_decay(1)",
     "anchor_decay(1, fisher=3)", "output_anchor(1, on=hidden)", "lora(2)+mixout(0.5)"],
)  # fmt: skip
@pytest.mark.parametrize("default", [True, False])
def test_a_method_that_no_run_takes_is_refused_before_the_search(settings, tmp_path, monkeypatch, method, default):
    try:
        finetune(settings(method=method, learning_rate=1e-3), tmp_path / "run", keep_model=False)
        said = "budget"
    except InputError as error:
        said = str(error)

    def budget(*_):
        raise InputError("budget")

    monkeypatch.setattr(running, "check_budget", budget)
    changes, methods = ({"method": method}, []) if default else ({}, ["mixout(0.5)", method])
    with pytest.raises(InputError, match=f"^{re.escape(said)}"):
        choose(settings(**changes), output_dir=tmp_path / "out", budget="1h", methods=methods)


def test_a_file_is_no_folder(untrained, settings, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match=r"expected a folder as output-dir, got the file .*; choose another"):
        choose(untrained(), output_dir=tmp_path / "out", budget="1h")


def test_auto_among_the_methods_is_what_it_is_on_all_rows(quick, settings, tmp_path, monkeypatch):
    """A part has fewer rows; by these it would be another method."""
    monkeypatch.setattr("mixout.finetune.defaults.MANY", 40)
    choice = choose(settings(method="auto"), output_dir=tmp_path / "out", budget="1h", methods=["auto"])
    tried = {row.candidate.method for row in choice.table}
    assert tried == {"plain", WIDER}
