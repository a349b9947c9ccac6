"""Copies one use ahead, on a device whose lanes run in any order that their marks allow; and on a GPU."""

import random
import weakref

import pytest
import torch
from torch import nn

import mixout
from mixout import forms
from mixout.ops import mix
from mixout.ops.ahead import Ahead


class Device:
    """Two queues of work, of which nothing is done before :meth:`run`, and then in any order that marks allow."""

    def __init__(self):
        self.queues = {"compute": [], "copy": []}
        self.reached = set()
        self.copies = 0
        self.read = []

    def lane(self):
        return "compute"

    def mark(self, lane):
        mark = object()
        self.queues[lane].append(("mark", mark))
        return mark

    def wait(self, lane, mark):
        self.queues[lane].append(("wait", mark))

    def copy(self, source, target, after):
        self.copies += 1
        if after is not None:
            self.wait("copy", after)
        self.queues["copy"].append(("do", lambda: target.copy_(source)))
        return self.mark("copy")

    def buffer(self, nbytes):
        return torch.zeros(nbytes, dtype=torch.uint8)

    def compute_with(self, tensor):
        self.queues["compute"].append(("do", lambda: self.read.append(tensor.clone())))

    def run(self, seed):
        choose = random.Random(seed)
        while any(self.queues.values()):
            ready = [q for q in self.queues.values() if q and not (q[0][0] == "wait" and q[0][1] not in self.reached)]
            kind, what = choose.choice(ready).pop(0)
            if kind == "mark":
                self.reached.add(what)
            elif kind == "do":
                what()


def passes(device, ahead, orders):
    for backward, order in orders:
        for tensor in order:
            device.compute_with(ahead.fetch(tensor, backward=backward))


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_order_of_the_lanes_each_reading_sees_its_own_tensor(seed):
    choose = random.Random(seed)
    # Other sizes and dtypes: buffers grow, and views differ.
    kinds = [torch.float32, torch.bfloat16]
    anchors = [torch.randn(choose.randint(1, 9), 3).to(choose.choice(kinds)) for _ in range(5)]
    device = Device()
    ahead = Ahead(device)
    orders = [(False, anchors), (True, anchors[::-1])] * 3
    # Another model in between, a layer passed twice, a layer left out.
    odd = [choose.choice(anchors) for _ in range(12)]
    orders += [(False, odd), (False, anchors), (True, anchors[::-1])]
    passes(device, ahead, orders)
    device.run(seed)
    expected = [tensor for _, order in orders for tensor in order]
    assert len(device.read) == len(expected)
    assert all(a.equal(b) for a, b in zip(device.read, expected, strict=True))


def test_from_the_second_pass_on_every_copy_is_begun_one_use_ahead():
    anchors = [torch.full((2,), float(i)) for i in range(4)]
    device = Device()
    ahead = Ahead(device)
    for _ in range(2):
        passes(device, ahead, [(False, anchors), (True, anchors[::-1])])
    begun = device.copies
    ahead_of = []
    for tensor in anchors:
        ahead.fetch(tensor, backward=False)
        ahead_of.append(device.copies - begun)
    # The first two are still there from the end of backward; while the second is read the third is on its way.
    assert ahead_of == [0, 1, 2, 2]
    for tensor in anchors[::-1]:
        ahead.fetch(tensor, backward=True)
        ahead_of.append(device.copies - begun)
    assert ahead_of[4:] == [2, 3, 4, 4]


def test_anchors_that_are_gone_are_not_kept():
    device = Device()
    ahead = Ahead(device)
    anchors = [torch.ones(2), torch.ones(3)]
    passes(device, ahead, [(False, anchors), (False, anchors)])
    device.run(0)
    gone = [weakref.ref(tensor) for tensor in anchors]
    del anchors
    assert [one() for one in gone] == [None, None]
    other = torch.full((4,), 7.0)
    device.compute_with(ahead.fetch(other, backward=False))
    device.run(0)
    assert device.read[-1].equal(other)


@pytest.mark.parametrize("sparse_from", [0.0, 2.0], ids=["sparse", "dense"])
def test_a_layer_asks_for_the_same_tensor_in_each_pass(monkeypatch, sparse_from):
    """By which alone it is known what comes next: a view made anew would never be foreseen."""
    asked = []
    monkeypatch.setattr(mix, "_near", lambda anchor, _: asked.append(id(anchor)) or anchor)
    monkeypatch.setattr(forms, "SPARSE_FROM", sparse_from)
    monkeypatch.setattr(forms, "SPLIT_BELOW", 0)
    model = mixout.apply_(nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))), mixout.Mixout(0.5))
    for _ in range(2):
        model(torch.randn(4, 8, requires_grad=True)).sum().backward()
    anchors = [id(layer._mixed.anchor.tensor) for layer in model]
    assert asked == 2 * (anchors + anchors[::-1])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_many_layers_on_a_gpu_train_as_with_anchors_there():
    def train(**options):
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(12)]
        model = mixout.apply_(nn.Sequential(*layers).cuda(), mixout.Mixout(0.5), **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(512, 256).cuda()).square().mean().backward()
            optimizer.step()
        return list(model.parameters())

    for a, b in zip(train(), train(anchor_device="cpu"), strict=True):
        torch.testing.assert_close(a, b)
