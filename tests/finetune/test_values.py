"""Labels far from 0 are learned in standard units, and the model answers in the labels' own."""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import WORDS

from mixout.errors import InputError
from mixout.finetune.course import Course
from mixout.finetune.predict import predict
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune
from mixout.finetune.values import Units
from mixout.study.analysis.runs import Restart
from mixout.study.identity import Inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def folder(place: Path, unit=1.0, offset=0.0) -> str:
    """A value a word: its number, from 0 to 7, in another unit. Values of the training rows have mean 3.5."""
    place.mkdir()
    for name, rows in (("train", 48), ("dev", 16)):
        with (place / f"{name}.csv").open("w", newline="") as file:
            texts = [(f"{WORDS[k % 8]} {WORDS[(k // 8) % 8]}", repr(offset + unit * (k % 8))) for k in range(rows)]
            csv.writer(file).writerows([("text", "label"), *texts])
    return str(place)


SPREAD = statistics.pstdev(range(8))


@pytest.mark.parametrize(
    "changes", [{"interpolate": (0.5,)}, {"method": "mixout(0.5)+anchor_decay(0.1)", "patience": 2, "keep_best": True}]
)
def test_far_labels_are_learned_as_standard_ones(settings, tmp_path, changes):
    """A run on labels that have mean 0 and standard deviation 1 is the oracle."""
    near = folder(tmp_path / "near", 1 / SPREAD, -3.5 / SPREAD)
    runs = []
    for name, task in (("a", near), ("b", folder(tmp_path / "far", 1000.0, -50_000.0))):
        runs.append(finetune(settings(task=task, metric="pearson", epochs=20.0, **changes), tmp_path / name))
    standard, far = runs
    assert "labels" not in standard.chosen
    assert far.chosen["labels"].startswith(
        "labels are learned as (label + 4.65e+04) / 2291, and losses here are of that"
    )
    assert far.scores == pytest.approx(standard.scores, rel=1e-4)
    for entries in ("evaluations", "training"):  # the record is in the labels' own units
        found = [entry.loss / (1000 * SPREAD) ** 2 for entry in getattr(far, entries)]
        assert found == pytest.approx([entry.loss for entry in getattr(standard, entries)], rel=1e-3)
    expected = -46_500 + 1000 * SPREAD * np.array(standard.predictions)
    assert far.predictions == pytest.approx(expected.tolist(), rel=1e-4)
    for one, other in zip(far.interpolated, standard.interpolated, strict=True):
        assert one["loss"] / (1000 * SPREAD) ** 2 == pytest.approx(other["loss"], rel=1e-3)
    # What is saved needs nothing of ours.
    said = predict(tmp_path / "b", tmp_path / "far" / "dev.csv", tmp_path / "p.csv")
    [pearson] = re.findall(r"pearson ([\d.]+)", str(said))
    assert float(pearson) == pytest.approx(far.scores["pearson"], abs=1e-3)  # of numbers near -46,500 in float32
    with (tmp_path / "p.csv").open() as file:
        answers = [float(row["prediction"]) for row in csv.DictReader(file)]
    assert answers == pytest.approx(far.predictions, rel=1e-5)


@pytest.mark.parametrize(("unit", "offset", "stays"), [
    (1.0, 0.1, True), (0.1, 0.0, True), (1.0, -8.1, True),
    (1.0, 2.1, False), (2.0, -7.1, False), (0.01, 0.0, False), (1e6, 0.1, False),
])  # fmt: skip
def test_labels_near_0_stay_as_they_are(settings, tmp_path, unit, offset, stays):
    run = finetune(
        settings(task=folder(tmp_path / "task", unit, offset), epochs=1.0), tmp_path / "run", keep_model=False
    )
    assert ("labels" not in run.chosen) is stays


def test_a_head_without_bias_takes_the_scale_alone(settings, small_model, tmp_path, tiny_bert):
    from transformers import AutoTokenizer

    model = small_model("gpt2")
    model.transformer.save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "gpt2")
    far = folder(tmp_path / "far", 1000.0, 50_000.0)
    run = finetune(settings(task=far, model=str(tmp_path / "gpt2"), metric="pearson", epochs=20.0), tmp_path / "run")
    assert run.chosen["labels"].startswith("labels are learned as label / 5.355e+04")
    assert run.scores["pearson"] > 0.6
    assert statistics.fmean(run.predictions) == pytest.approx(53_500, rel=0.05)
    predict(tmp_path / "run", Path(far) / "dev.csv", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        assert [float(row["prediction"]) for row in csv.DictReader(file)] == pytest.approx(run.predictions, rel=1e-4)


def test_values_that_no_scale_fits_are_refused(settings, tmp_path):
    with pytest.raises(InputError, match="expected labels up to 1e150, got 7e\\+300"):
        finetune(settings(task=folder(tmp_path / "far", 1e300), metric="pearson"), tmp_path / "run")


def test_a_head_that_was_trained_keeps_its_units(settings, tmp_path):
    far = folder(tmp_path / "far", 1000.0, 50_000.0)
    first = finetune(settings(task=far, metric="pearson"), tmp_path / "first")
    chosen = settings(task=far, metric="pearson", model=str(tmp_path / "first"), max_steps=1, learning_rate=1e-9)
    again = finetune(chosen, tmp_path / "again")
    assert "labels" not in again.chosen
    assert again.predictions == pytest.approx(first.predictions, rel=1e-3)


def test_a_run_that_was_cut_off_goes_on_in_its_units(settings, tmp_path, monkeypatch):
    chosen = settings(task=folder(tmp_path / "far", 1000.0, 50_000.0), metric="pearson", save=5)
    whole = finetune(chosen, tmp_path / "whole")
    step = Course.on_step_end

    def stopping(self, args, state, control, **kwargs):
        step(self, args, state, control, **kwargs)
        if state.global_step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Course, "on_step_end", stopping)
        with pytest.raises(KeyboardInterrupt):
            finetune(chosen, tmp_path / "cut")
    again = finetune(chosen, tmp_path / "cut", resume=True)
    assert (again.predictions, again.chosen) == (whole.predictions, whole.chosen)


def test_a_head_that_is_drawn_anew_has_no_units(settings, tmp_path):
    far = folder(tmp_path / "far", 1000.0, 50_000.0)
    finetune(settings(task=far, metric="pearson"), tmp_path / "first")
    again = settings(task=far, metric="pearson", model=str(tmp_path / "first"), reinit_layers=1)
    assert "labels" in finetune(again, tmp_path / "again", keep_model=False).chosen


def test_labels_that_float32_cannot_tell_apart_are_refused(settings, tmp_path):
    far = folder(tmp_path / "far", 1.0, 1.7e9)
    with pytest.raises(InputError, match=r"got mean 1.7e\+09 and standard deviation 2.29129; subtract a number"):
        finetune(settings(task=far, metric="pearson"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_0_1_is_another_one_where_units_changed(tmp_path, tiny_bert):
    near, far_away = (folder(tmp_path / name, unit, 0.1) for name, unit in (("near", 1.0), ("far", 1000.0)))
    former = []
    for task in (near, far_away):
        run = Settings(model=tiny_bert, task=task, metric="pearson", learning_rate=1e-3, method="plain", max_length=16)
        former.append(Inputs().planned(Restart(task="t", method="plain", restart=0), run, check=False).former)
    assert [bool(ids) for ids in former] == [True, False]


def test_nothing_is_settled_where_labels_stay():
    head = torch.nn.Linear(2, 1)
    before = head.weight.clone()
    assert Units().settle_(head, record := object()) is record  # type: ignore[arg-type]
    assert head.weight.equal(before)
