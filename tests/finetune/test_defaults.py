"""The rule for what nobody names, against values written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.finetune.conftest import interrupted

from mixout.errors import InputError
from mixout.finetune import defaults
from mixout.finetune.record import Record
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Split, Task
from mixout.finetune.train import finetune
from mixout.study.identity import Inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def of_classes(count: int, rows: int = 500) -> Task:
    split = Split(text=("a",) * rows, label=tuple(row % count for row in range(rows)))
    names = tuple(f"class {number}" for number in range(count))
    return Task(train=split, dev=split, name="t", labels=names, metrics=("f1",), metric="f1", source="")


def of_width(width: int, **more: object) -> torch.nn.Module:
    model = torch.nn.Module()
    model.config = SimpleNamespace(hidden_size=width, **more)
    return model


@pytest.mark.parametrize(
    ("layers", "rows", "method"),
    [
        (1, 100, "anchor_decay(radius=0.02)"),
        (5, 399, "anchor_decay(radius=0.02)"),
        (6, 100, "anchor_decay(radius=0.005)"),
        (24, 100, "anchor_decay(radius=0.005)"),
        (0, 100, "anchor_decay(radius=0.005)"),
        (None, 100, "anchor_decay(radius=0.005)"),
        ({"vision": 2}, 100, "anchor_decay(radius=0.005)"),  # as Lxmert has them
        (3, 400, "anchor_decay(radius=0.01)+dropout(0.0)"),
    ],
)
def test_few_layers_go_farther_each(layers, rows, method):
    chosen, why = defaults.complete(Settings(), of_width(384, num_hidden_layers=layers), of_classes(2, rows))
    assert (chosen.method, chosen.learning_rate) == (method, 1e-4)
    assert ("layer" in why["method"]) == (method == defaults.SHALLOW)


@pytest.mark.parametrize(
    ("width", "method", "low", "high"),
    [
        # MiniLM, BERT-base and its relatives, BERT-large; models of seven billion parameters; the smallest BERTs.
        (384, "plain", 1e-4, 1e-4),
        (768, "plain", 2e-5, 5e-5),
        (1024, "plain", 1.9e-5, 2.1e-5),
        (4096, "plain", 5e-6, 5e-6),
        (16, "plain", 5e-4, 5e-4),
        # Masked gradients make shorter steps: about twice the rate at .7, four times at .9.
        (384, "mixout(0.7)", 2e-4, 2.2e-4),
        (384, "mixout(0.9)+anchor_decay(0.1)", 3.8e-4, 4.1e-4),
        (384, "gradient_mask(0.7)", 2e-4, 2.2e-4),
        (384, "mixout(0.0)", 1e-4, 1e-4),
        (384, "mixout(0.7, gradient=dense)", 1e-4, 1e-4),
        (384, "dropout(0.5)", 1e-4, 1e-4),
        (384, "dropconnect(0.5)", 1e-4, 1e-4),
    ],
)
def test_learning_rates(width, method, low, high):
    rate, reason = defaults.learning_rate(Settings(method=method), of_width(width), of_classes(2))
    assert low <= rate <= high
    assert f"{width:,}" in reason


@pytest.mark.parametrize(
    ("classes", "rows", "method", "rate"),
    [
        (2, 500, "anchor_decay(radius=0.01)+dropout(0.0)", 1e-4),
        (7, 500, "anchor_decay(radius=0.01)+dropout(0.0)", 1e-4),
        (8, 500, "anchor_decay(radius=0.04)+dropout(0.0)", 4e-4),
        (150, 500, "anchor_decay(radius=0.04)+dropout(0.0)", 4e-4),
        (54, 200, "anchor_decay(radius=0.04)+dropout(0.0)", 4e-4),
    ],
)
def test_many_classes_take_weights_farther(classes, rows, method, rate):
    chosen, why = defaults.complete(Settings(), of_width(384), of_classes(classes, rows))
    assert (chosen.method, chosen.learning_rate) == (method, rate)
    said = [reason for reason in (why["method"], why["learning_rate"]) if f"{classes} classes" in reason]
    assert len(said) == (2 if classes > 7 else 0)
    for named in ("plain", "anchor_decay(radius=0.003)", "lora(8)"):  # a method that is named stays as it is
        given, _ = defaults.complete(Settings(method=named), of_width(384), of_classes(classes, rows))
        assert given.method == named
        assert given.learning_rate == (1e-3 if "lora" in named else rate)
    for rows in (100, 500):
        tagged = Split(text=(("a", "b"),) * rows, label=((0, 1),) * rows)
        words = {"name": "t", "labels": ("B-X", "O"), "metrics": ("entity_f1",), "metric": "entity_f1", "source": ""}
        chosen, why = defaults.complete(
            Settings(task_type="token-classification"), of_width(384), Task(train=tagged, dev=tagged, **words)
        )
        assert (chosen.method, chosen.learning_rate) == ("anchor_decay(radius=0.04)+dropout(0.0)", 4e-4)
        assert "for tags of words" in why["method"]
        assert "for tags of words" in why["learning_rate"]
    values = replace(of_classes(2), labels=None)
    assert defaults.complete(Settings(), of_width(384), values)[0].learning_rate == 1e-4


def test_the_width_without_a_config():
    model = torch.nn.Module()
    model.get_input_embeddings = lambda: torch.nn.Embedding(5, 48)
    assert defaults.width_of(model) == 48


@pytest.mark.parametrize("rows", [3, 20, 64, 100, 199, 200, 400, 1000, 2490, 8551, 20_000, 67_349, 400_000])
def test_steps_are_neither_too_few_nor_too_many(rows):
    batch = defaults.batch_size(rows)
    epochs = defaults.epochs(rows, math.ceil(rows / batch))
    steps = math.ceil(rows / batch) * epochs
    assert epochs == 30 or steps >= defaults.STEPS
    assert epochs == 1 or epochs * rows <= defaults.MOST_ROWS
    assert epochs >= 3 or rows > 30_000


def test_a_run_says_and_records_what_it_chose(settings, tmp_path):
    lines: list[str] = []
    chosen = settings(learning_rate=None, epochs=None, batch_size=None, train_size=12, evaluate="end")
    record = finetune(chosen, tmp_path / "out", report=lines.append)
    assert (record.settings.learning_rate, record.settings.batch_size, record.settings.epochs) == (5e-4, 8, 30.0)
    assert record.steps == 60
    assert list(record.chosen) == ["learning_rate", "batch_size", "epochs"]
    assert set(record.chosen.values()) <= set(lines)
    assert record.chosen["batch_size"] == "batch size 8: for 12 rows"
    assert Record.read(tmp_path / "out") == record
    # Named, it is the same run: also by its digest.
    named = settings(learning_rate=5e-4, epochs=30.0, batch_size=8, train_size=12, evaluate="end")
    again = finetune(named, tmp_path / "again")
    assert again.chosen == {}
    assert (again.digest, again.predictions, again.distance) == (record.digest, record.predictions, record.distance)


def test_what_is_named_stays(settings, tmp_path):
    record = finetune(settings(learning_rate=None, epochs=0.5), tmp_path / "out")
    assert list(record.chosen) == ["learning_rate"]
    assert (record.settings.epochs, record.settings.batch_size) == (0.5, 8)


def test_a_language_model_counts_pieces_of_text_and_may_move_farther(causal, tmp_path):
    lines: list[str] = []
    chosen = causal(batch_size=None, epochs=None, method=None, evaluate="end")
    record = finetune(chosen, tmp_path / "out", report=lines.append)
    assert "pieces of text" in record.chosen["batch_size"]
    assert record.settings.method == "anchor_decay(radius=0.025)"
    assert record.chosen["method"].startswith("method anchor_decay(radius=0.025): the default for language models")
    assert record.chosen["method"] in lines


def test_sgd_has_no_rule(settings, tmp_path):
    with pytest.raises(InputError, match="--learning-rate 1e-2"):
        finetune(settings(optimizer="sgd", learning_rate=None), tmp_path / "out")
    assert not (tmp_path / "out").exists()


DECAY = "anchor_decay(radius=0.005)"


@pytest.mark.parametrize(
    ("rows", "given", "chosen"),
    [
        (399, "auto", DECAY),
        (400, "auto", defaults.WIDER),
        (400, None, defaults.WIDER),
        (1000, " anchor_decay ", DECAY),
        (1000, DECAY, DECAY),
        (1000, "plain", "plain"),
    ],
)
def test_with_more_rows_the_default_may_go_farther_and_has_no_dropout(rows, given, chosen):
    split = Split(text=("a",) * rows, label=(0, 1) * (rows // 2) + (0,) * (rows % 2))
    words = {"name": "t", "labels": ("no", "yes"), "metrics": ("f1",), "metric": "f1", "source": ""}
    settings, why = defaults.complete(Settings(method=given), of_width(384), Task(train=split, dev=split, **words))
    assert settings.method == chosen
    assert ("method" in why) == (given in ("auto", None))  # what was named was not chosen for anybody
    if "method" in why:
        assert why["method"].startswith(f"method {chosen}: {'from' if rows >= 400 else 'below'} 400 rows")


@pytest.mark.parametrize(("given", "told"), [("auto", True), ("anchor_decay(radius=0.025)", False)])
def test_a_language_model_is_told_of_the_default_that_nobody_named(given, told):
    split = Split(text=("a b",) * 500, label=())
    task = Task(name="t", train=split, dev=split, labels=None, metrics=("perplexity",), metric="perplexity", source="")
    settings = Settings(method=given, task_type="causal-lm", epochs=1, learning_rate=1e-4, batch_size=8)
    settings, why = defaults.complete(settings, of_width(384), task)
    assert settings.method == "anchor_decay(radius=0.025)"
    assert ("method" in why) == told


@pytest.mark.filterwarnings("ignore::mixout.DecayStrengthWarning")
def test_a_run_says_and_keeps_what_was_chosen(settings, tmp_path, monkeypatch):
    """Also where it is cut off and goes on, and where the same run is named in full."""
    monkeypatch.setattr(defaults, "MANY", 40)
    chosen, said = settings(method="auto", save=4), []
    interrupted(chosen, tmp_path / "out", 9)
    record = finetune(chosen, tmp_path / "out", resume=True, report=said.append)
    assert record.settings.method == defaults.WIDER == "anchor_decay(radius=0.01)+dropout(0.0)"
    assert record.chosen["method"].startswith(f"method {defaults.WIDER}: from 40 rows on")
    assert record.coverage["dropouts_on"] == 0
    named = replace(chosen, method=record.settings.method)
    assert Inputs().identity(chosen) == Inputs().identity(named) != Inputs().identity(replace(chosen, method=DECAY))
    whole = finetune(named, tmp_path / "whole")
    assert (whole.predictions, whole.training[-1].loss) == (record.predictions, record.training[-1].loss)
