"""Families of methods that differ in p alone."""

from __future__ import annotations

import pytest

from mixout.study.analysis.across import doses, split_p
from mixout.study.analysis.cells import summarise
from mixout.study.analysis.runs import Run


def run(restart: int = 0, method: str = "plain", **more) -> Run:
    return Run(**({"task": "RTE", "method": method, "restart": restart, "score": 0.7} | more))


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
    assert [(dose.task, dose.method, dose.values) for dose in found] == [
        ("RTE", "mixout(p)", (0.1, 0.5, 0.9)),
        ("CoLA", "mixout(p)", (0.1, 0.5, 0.9)),
    ]
    assert [cell.method for cell in found[0].cells] == ["mixout(0.1)", "mixout(0.5)", "mixout(0.9)"]


def test_factors_part_families():
    cells = summarise([run(method=f"mixout(0.{p})", factors={"lr": str(p)}) for p in (1, 5)])
    assert doses(cells) == []
