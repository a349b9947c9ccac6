"""Distances, curves and doses, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mixout.distances import distance
from mixout.finetune.models import load
from mixout.study.analysis.cells import summarise
from mixout.study.analysis.curves import curves, distances, doses, layer_distances, split_p
from mixout.study.analysis.runs import Run


def run(restart: int = 0, method: str = "plain", **more) -> Run:
    return Run(**({"task": "RTE", "method": method, "restart": restart, "score": 0.7} | more))


def test_distances_by_layer_over_the_runs_that_know_them():
    found = distances(
        [
            run(0, distance_by_layer={"layer.1": 1.0, "layer.0": 3.0}),
            run(1, distance_by_layer={"layer.1": 2.0, "layer.0": math.nan}),
            run(2),
            run(0, "mixout(0.9)", distance_by_layer={"layer.1": 0.5}),
        ]
    )
    assert [(d.method, d.layer, d.n, d.mean) for d in found] == [
        ("plain", "layer.1", 2, 1.5),
        ("plain", "layer.0", 1, 3.0),
        ("mixout(0.9)", "layer.1", 1, 0.5),
    ]
    assert [d.sd for d in found] == [pytest.approx(0.5**0.5), None, None]


def test_a_layer_is_a_block_and_the_layers_make_up_the_whole(tiny_bert):
    whole = load(tiny_bert, labels=("no", "yes"), init_seed=0)
    pretrained = {name: p.detach() for name, p in whole.model.named_parameters() if name not in whole.new}
    draw = torch.Generator().manual_seed(0)
    pairs = {name: (p + torch.randn(p.shape, generator=draw), p) for name, p in pretrained.items()}
    moved = distance(pairs)
    found = layer_distances(moved.by_layer)
    assert list(found) == ["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler"]
    assert math.hypot(*found.values()) == pytest.approx(moved.total)
    second = torch.cat([(w - u).flatten() for name, (w, u) in pairs.items() if ".layer.1." in name])
    assert found["bert.encoder.layer.1"] == pytest.approx(float(second.norm()))


def test_curves_over_the_runs_that_were_evaluated_there():
    (found,) = curves(
        [
            run(0, evaluations=((20, 0.8), (10, 0.6))),
            run(1, evaluations=((10, 0.5), (20, math.nan), (30, 0.9))),
            run(0, "mixout(0.9)"),
        ]
    )
    assert (found.steps, found.n) == ((10, 20, 30), (2, 1, 1))
    assert found.mean == pytest.approx((0.55, 0.8, 0.9))
    assert (found.min, found.max) == ((0.5, 0.8, 0.9), (0.6, 0.8, 0.9))
    assert found.sd == (pytest.approx(0.1 / 2**0.5), None, None)


@pytest.mark.parametrize(
    ("label", "split"),
    [
        ("mixout(0.9)", ("mixout(p)", 0.9)),
        ("mixout(p=.9, unit=output)", ("mixout(p, unit=output)", 0.9)),
        ("mixout(w_pre,0.7)+wdecay(w_pre,0.01)", ("mixout(w_pre,p)+wdecay(w_pre,0.01)", 0.7)),
        ("dropout(0)", ("dropout(p)", 0.0)),
        ("dropconnect(1e-3)", ("dropconnect(p)", 1e-3)),
        ("mixout(0.9), lr x 0.32", ("mixout(p), lr x 0.32", 0.9)),
        ("anchor_decay(0.01)+mixconnect(0.5)", ("anchor_decay(0.01)+mixconnect(p)", 0.5)),
        ("gradient_mask(0.9)", ("gradient_mask(p)", 0.9)),
        ("plain, rate x sqrt(1-p), p=0.3", ("plain, rate x sqrt(1-p), p", 0.3)),
        ("dropout(0.0) at p=.3", ("dropout(0.0) at p", 0.3)),
        ("step=1", None),
        ("distance in L_p, p=2", None),
        ("mixout", None),
        ("anchor_decay(0.01)", None),
        ("plain", None),
    ],
)
def test_a_label_without_its_p(label, split):
    assert split_p(label) == split


def test_families_with_two_values_of_p_in_their_order():
    labels = ("mixout(0.9)", "dropout(0.1)", "mixout(0.1)", "plain", "mixout(0.5)")
    cells = summarise([run(method=label, task=task) for task in ("RTE", "CoLA") for label in labels])
    found = doses(cells)
    assert [(dose.task, dose.family, dose.p) for dose in found] == [
        ("RTE", "mixout(p)", (0.1, 0.5, 0.9)),
        ("CoLA", "mixout(p)", (0.1, 0.5, 0.9)),
    ]
    assert [cell.method for cell in found[0].cells] == ["mixout(0.1)", "mixout(0.5)", "mixout(0.9)"]


def test_factors_part_families():
    cells = summarise([run(method=f"mixout(0.{p})", factors={"lr": str(p)}) for p in (1, 5)])
    assert doses(cells) == []
