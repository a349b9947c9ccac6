"""Choosing: the order of runs against schedules by hand, its scores by simulation, its files against a real run."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mixout.choose.run as running
from mixout.choose import choose, parts, search, verdict
from mixout.choose.search import Candidate, Search, Trained
from mixout.cli import main
from mixout.errors import InputError
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Split, Task, files
from mixout.finetune.train import finetune
from mixout.study import executors

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 1e-4
DEFAULT = Candidate("anchor_decay(radius=0.005)", RATE)


def quality(candidate: Candidate) -> float:
    """Higher for mixout, and at twice the rate."""
    return 0.8 + 0.05 * ("mixout(0.7)" in candidate.method) - 0.02 * abs(math.log2(candidate.rate / (2 * RATE)))


def trainer(score=quality, seconds=10.0):
    """Runs without noise; each may be made once only."""
    made = Counter()

    def train(candidate, part, repeat):
        made[candidate, part, repeat] += 1
        assert made[candidate, part, repeat] == 1
        return Trained(score=score(candidate), predictions=(), seconds=seconds)

    return train


def through(budget=1e9, methods=search.METHODS, **options):
    found = Search(trainer(**options), budget, DEFAULT)
    return found, found.through(methods, lambda _: RATE)


def test_each_round_doubles_the_runs_of_the_better_half():
    found, ranked = through()
    assert ranked[0] == Candidate("mixout(0.7)", 2 * RATE)
    assert DEFAULT in ranked
    searched = {one: {split for split in runs if split[0] in search.SEARCHED} for one, runs in found.runs.items()}
    of_plain = {one.rate / RATE: len(splits) for one, splits in searched.items() if one.method == "plain"}
    # Five rates in one run each, three in two, two in four; of the best plain one more are judged.
    assert of_plain[0.25] == of_plain[0.5] == 1
    assert of_plain[4.0] >= 2
    assert of_plain[1.0] == 4
    assert of_plain[2.0] >= 4
    # Rates of the other methods lie around the best one of plain fine-tuning.
    assert {one.rate / RATE for one in found.runs if one.method == "dropout(0.1)"} == {1.0, 2.0, 4.0}
    judged = {one for one, runs in found.runs.items() if any(part in search.JUDGED for part, _ in runs)}
    assert judged == set(ranked)
    assert all(len(found.runs[one]) >= search.REPEATS * len(search.JUDGED) for one in ranked)


@pytest.mark.parametrize("runs", [3, 8, 20, 40, 70])
def test_the_budget_is_kept_with_the_final_training(runs):
    found, ranked = through(budget=10.0 * runs)
    final = 10.0 * parts.PARTS / (parts.PARTS - 1)
    assert found.spent + final <= found.budget
    assert found.spent == 10.0 * found.made
    # It is used, unless everything was tried.
    assert found.spent + final + 10.0 * (len(ranked) + 1) > found.budget or runs == 70
    assert ranked


def test_an_interrupted_search_takes_the_same_way_again():
    noise = np.random.default_rng(0).normal(0, 0.05, 10_000)
    known: dict = {}

    def train(candidate, part, repeat):
        key = candidate, part, repeat
        if key not in known:
            if len(known) == stop:
                raise KeyboardInterrupt
            known[key] = Trained(score=noise[hash(key) % 10_000], predictions=(), seconds=7.0 + part)
        return known[key]

    stop = None
    whole = Search(train, 400.0, DEFAULT).through(search.METHODS, lambda _: RATE)
    ways, known = dict(known), {}
    for stop in (0, 5, 17, 18, 30):  # noqa: B007  train() reads it
        with pytest.raises(KeyboardInterrupt):
            Search(train, 400.0, DEFAULT).through(search.METHODS, lambda _: RATE)
    stop = None
    assert Search(train, 400.0, DEFAULT).through(search.METHODS, lambda _: RATE) == whole
    assert [*known] == [*ways]


def test_the_nested_score_is_not_the_luck_of_the_best(monkeypatch):
    # All candidates answer 70 % of all rows right, but each its own rows in every run: 1.0 or 0.4 of the time.
    monkeypatch.setattr(verdict, "_RESAMPLES", 2)
    own, nested, covered = [], [], 0
    for seed in range(80):
        draw = np.random.default_rng(seed)
        labels = tuple(draw.integers(0, 2, 100).tolist())
        rows = Split(text=tuple(map(str, range(100))), label=labels)
        task = Task(name="t", train=rows, dev=rows, labels=("a", "b"), metrics=("accuracy",), metric="accuracy",
                    source="")  # fmt: skip
        split = [list(range(part, 100, 5)) for part in range(5)]
        right: dict = {}

        def train(candidate, part, repeat, draw=draw, labels=labels, split=split, right=right):
            odds = right.setdefault(candidate, draw.choice([0.4, 1.0], 100))[split[part]]
            good = draw.random(20) < odds
            answers = np.where(good, np.array(labels)[split[part]], 1 - np.array(labels)[split[part]])
            return Trained(score=good.mean(), predictions=tuple(answers.tolist()), seconds=1.0)

        found = Search(train, 1e9, DEFAULT)
        ranked = found.through(search.METHODS, lambda _: RATE)
        value, _, _, judged = verdict.expected(found, ranked, task, split)
        assert judged == 60
        own.append(found.mean(ranked[0], [*found.runs[ranked[0]]]))
        nested.append(value.value)
        covered += value.low <= 0.7 <= value.high
    error = np.std(nested) / math.sqrt(80)
    assert np.mean(own) > 0.73
    assert np.mean(own) - 0.7 > 4 * np.std(own) / math.sqrt(80)
    assert abs(np.mean(nested) - 0.7) < 3 * error < 0.03
    assert covered >= 72


def test_what_cannot_be_told_apart():
    found = Search(trainer(lambda _: 0.5), 1e9, DEFAULT)
    worse, other = Candidate("worse", RATE), Candidate("other", RATE)
    jitter = (0.0, 0.01, -0.01, 0.02, -0.02)
    for one, gap in ((worse, -0.2), (other, 0.0)):
        found.runs[one] = {
            (part, 0): Trained(score=0.8 + gap + jitter[part - (one == other)], predictions=(), seconds=1.0)
            for part in range(5)
        }
    found.runs[DEFAULT] = {(part, 0): Trained(score=0.8, predictions=(), seconds=1.0) for part in range(5)}
    rows = {row.candidate: row for row in verdict.table(found, DEFAULT)}
    assert [rows[one].verdict for one in (DEFAULT, other, worse)] == ["chosen", "cannot be told apart", "lower"]
    # Student's t interval by hand, widened by sqrt(1 + 5/4): t(0.975, 4) = 2.776.
    half = 2.776445 * np.std(jitter, ddof=1) / math.sqrt(5) * 1.5
    assert rows[worse].difference.high == pytest.approx(-0.2 + half, abs=1e-6)


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

    monkeypatch.setattr(files, "read", lambda path: events.append(path.name) or read(path))
    monkeypatch.setattr(executors, "finetune", stub)
    monkeypatch.setattr(running, "finetune", final)
    monkeypatch.setattr(verdict, "_RESAMPLES", 9)
    monkeypatch.setattr(search, "RATES", (1.0, 2.0))
    monkeypatch.setattr(search, "RATES_OF_METHOD", (1.0,))
    monkeypatch.setattr(search, "REPEATS", 1)
    return events


def test_a_table_becomes_a_model_and_a_report(quick, settings, tmp_path):
    lines = []
    choice = choose(settings(), output_dir=tmp_path / "out", budget="1h", methods=["mixout(.5)"], report=lines.append)
    # The dev file was not opened before the final training.
    assert quick.index("final") < quick.index("dev.csv")
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
    # The model knows the columns of the file.
    assert (record.settings.text_column, record.settings.label_column) == ("review", "stars")
    assert main(["predict", str(tmp_path / "out/model"), str(table), "--output", str(tmp_path / "p.csv")]) == 0
    assert "42 predictions" in capsys.readouterr().out
    # What the model scores on its own training rows is not told as a result.
    assert f"{record.score:.4f}" not in (tmp_path / "out/model/README.md").read_text().partition("## How")[0]
    monkeypatch.setattr(running, "_estimate", lambda _: 10.0)
    quick.clear()
    assert main([*words, "--budget", "22s", "--output-dir", str(tmp_path / "none")]) == 2
    assert "for one run and the final training, about 23 s, got 22 s; 12 min would try" in capsys.readouterr().err
    assert not {"run", "final"} & {*quick}


def test_parts_hold_every_class_and_keep_equal_texts_together(tmp_path):
    texts = [f"text {number // 2}" for number in range(60)]
    labels = [number // 2 % 3 for number in range(60)]
    rows = Split(text=tuple(texts), label=tuple(labels))
    task = Task(name="t", train=rows, dev=rows, labels=("10", "9", "x"), metrics=("f1",), metric="f1", source="")
    split = parts.split(task, 0)
    assert sorted(row for part in split for row in part) == list(range(60))
    for part in split:
        assert Counter(labels[row] for row in part) == {0: 4, 1: 4, 2: 4}
        assert not {texts[row] for row in part} & {texts[row] for row in range(60) if row not in part}
    places = parts.write(task, split, tmp_path, Settings())
    loaded = files.load(places[1], columns=files.Columns(), metric="f1")
    assert loaded.dev.label == tuple(labels[row] for row in split[1])
    whole = files.load(parts.write_all(task, tmp_path, Settings()), columns=files.Columns(), metric="f1")
    assert [whole.labels[int(label)] for label in whole.train.label] == [task.labels[label] for label in labels]


@pytest.mark.parametrize(
    ("changes", "rows", "budget", "said"),
    [
        ({}, 30, "1h", "at least 40 training rows to choose by, got 24|at least 40 .* got 30"),
        ({}, 60, "1h", "different texts of each class, one for each part, got 3 of 'rare'"),
        ({"keep_best": True}, 60, "1h", "no patience and no keep_best"),
        ({"task_type": "causal-lm"}, 60, "1h", "labelled texts to choose by"),
        ({}, 60, "soon", "a budget such as 90s, 30m or 2h, got 'soon'"),
        ({}, 1, "1h", "at least 2 different labels"),
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
