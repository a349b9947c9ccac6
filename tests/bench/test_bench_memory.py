"""Bytes that autograd keeps, against what is known of single operations and of mixout's linear."""

import weakref

import pytest
import torch
from torch import nn

from mixout import functional
from mixout.bench.cases import build
from mixout.bench.memory import saved_bytes, usage
from mixout.bench.plan import Plan
from mixout.bench.variants import PLAIN, Variant, anchors, step

pytestmark = pytest.mark.usefixtures("one_thread")


def quiet(_: str) -> None:
    pass


def test_a_storage_counts_once_and_parameters_do_not():
    x, w = torch.ones(50, 40), torch.ones(30, 40, requires_grad=True)
    two = lambda: nn.functional.linear(x, w) + nn.functional.linear(x[:25].repeat(2, 1), 2 * w)  # noqa: E731
    # x, its copy of 25 + 25 rows; 2 w is not kept, since no input needs a gradient.
    assert saved_bytes(two, [w]) == 4 * (50 * 40 + 50 * 40)
    views = lambda: nn.functional.linear(x[:1], w) + nn.functional.linear(x[1:2], w)  # noqa: E731
    assert saved_bytes(views, [w]) == 4 * 50 * 40


def test_nothing_is_left_of_what_was_measured():
    class Exponential(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.node = torch.zeros(1)
            nodes.append(weakref.ref(ctx.node))
            result = x.exp()
            ctx.save_for_backward(result)  # its own result
            return result

    nodes, w = [], torch.ones(3, 4, requires_grad=True)
    assert saved_bytes(lambda: Exponential.apply(w).sum(), [w]) == 48
    assert nodes[0]() is None


def test_usage_of_a_model(bert, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functional, "SPARSE_ON_CPU_FROM", 0.0)  # the forms of larger models: these keep no Phi
    plan = Plan(cases=(bert,), pairs=1, quick=True, compile=False, device=torch.device("cpu"))
    variants = [variant for variant in (PLAIN, *step(plan.device)) if variant.mode == "train"]
    found = {str(variant): usage(bert, variant, plan, quiet) for variant in variants}
    mixed = sum(m.weight.nbytes for n, m in build(bert, "cpu").named_modules() if isinstance(m, nn.Linear)) - 4 * 16 * 2
    plain, sparse, authors = found["dropout(0)"], found["mixout(0.9)"], found["authors(0.9)"]
    assert plain["saved"] == plain["saved+anchor"]
    assert sparse["saved"] < plain["saved"]  # thin inputs, no mask, no Phi
    for one in (sparse, authors):
        assert one["saved+anchor"] - one["saved"] == mixed
    narrow = found["mixout(0.9), bf16 anchor"]
    assert narrow["saved+anchor"] - narrow["saved"] == mixed // 2
    assert authors["saved"] == plain["saved"] + 2 * mixed  # the mask and Phi


def test_on_a_gpu_anchors_in_the_hosts_memory_are_compared_too():
    places = {device: [variant.anchor for variant in step(torch.device(device))] for device in ("cpu", "cuda")}
    assert places["cuda"].count("host") == 1
    assert [place for place in places["cuda"] if place != "host"] == places["cpu"]


def test_anchors_are_found_in_either_form(bert):
    for method in ("mixout", "authors"):
        model = Variant(method=method, p=0.5).install_(build(bert, "cpu"))
        assert len(list(anchors(model))) == 2 * 6 + 1
    assert not list(anchors(PLAIN.install_(build(bert, "cpu"))))
