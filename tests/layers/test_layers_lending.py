"""Layers whose forward computes with Phi: classes that users register.

Oracle: a layer that returns the weight that it reads.
"""

import pickle
import threading

import pytest
import torch
from torch import nn
from trained import moved
from transformers.pytorch_utils import Conv1D

import mixout
from mixout import Mixout


class Reader(nn.Module):
    """Gives the weight that its forward reads."""

    def __init__(self, *shape):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

    def forward(self):
        return self.table


# shape of the weight; how it is registered; the dimensions along which all weights of one input neuron lie
LAYOUTS = {
    "(out, in)": ((40, 30), {"input_dim": 1}, (0,)),
    "(in, out)": ((30, 40), {"input_dim": 0}, (1,)),
    "(expert, out, in)": ((5, 8, 30), {"input_dim": -1}, (1,)),
    "(expert, in, out)": ((5, 30, 8), {"input_dim": -2}, (2,)),
    "(out, in, kernel)": ((8, 30, 3), {"input_dim": 1}, (0, 2)),
    "(in, out, kernel)": ((30, 8, 3), {"input_dim": 0}, (1, 2)),
    "(stack, expert, out, in)": ((2, 3, 8, 30), {"input_dim": -1}, (2,)),
}
OUTPUT = {
    "(out, in)": (1,), "(in, out)": (0,), "(expert, out, in)": (2,), "(expert, in, out)": (1,),
    "(out, in, kernel)": (1, 2), "(in, out, kernel)": (0, 2), "(stack, expert, out, in)": (3,),
}  # fmt: skip


@pytest.mark.parametrize("unit", ["input", "output", "element"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_units_by_meaning(name, unit):
    shape, options, over_outputs = LAYOUTS[name]

    class Stored(Reader):
        def forward(self):
            return self.table

    mixout.register(Stored, weight="table", **options)
    layer = mixout.apply_(Stored(*shape), Mixout(0.5, unit=unit), seed=1)
    with torch.no_grad():
        layer.table.add_(1.0)
    phi = layer()
    assert sorted(phi.unique().tolist()) == [0.0, 2.0]  # u + M / (1-p) (w - u)
    over = {"input": over_outputs, "output": OUTPUT[name], "element": ()}[unit]
    for dim in over:
        assert (phi == phi.narrow(dim, 0, 1)).all()
    free = [dim for dim in range(len(shape)) if dim not in over]
    for dim in free:
        assert not (phi == phi.narrow(dim, 0, 1)).all()
    phi.sum().backward()
    assert layer.table.grad.equal(phi.detach())  # exact: M / (1-p)


def test_packed_projections_have_a_mask_each():
    class Packed(Reader):
        def forward(self):
            return self.table

    mixout.register(Packed, weight="table", blocks=3)
    layer = mixout.apply_(Packed(60, 30), Mixout(0.5), seed=1)
    with torch.no_grad():
        layer.table.add_(1.0)
    blocks = layer().view(3, 20, 30)
    assert (blocks == blocks[:, :1]).all()
    assert len({tuple(block[0].tolist()) for block in blocks}) == 3


def test_a_dotted_name_and_a_function_register_as_a_class_and_numbers_do():
    class ByName(Reader):
        def forward(self):
            return self.table

    class ByClass(Reader):
        def forward(self):
            return self.table

    name = f"{ByName.__module__}.{ByName.__qualname__}"
    layout = mixout.layers.Layout
    assert mixout.register(name, weight=lambda layer: {"table": layout(blocks=layer.table.shape[0] // 20)}) == name
    mixout.register(ByClass, weight="table", blocks=3)
    phis = []
    for kind in (ByName, ByClass):
        layer = mixout.apply_(kind(60, 30), Mixout(0.5), seed=1)
        with torch.no_grad():
            layer.table.add_(1.0)
        phis.append(layer())
    assert phis[0].equal(phis[1])


def test_what_was_read_is_put_back():
    class Stored(Reader):
        def forward(self, fail=False):
            if fail:
                raise RuntimeError("fail")
            return self.table

    mixout.register(Stored, weight="table")
    layer = mixout.apply_(nn.Sequential(Stored(4, 3)), Mixout(1.0))
    weight = layer[0].table
    moved(layer)
    with pytest.raises(RuntimeError, match="fail"):
        layer[0](fail=True)
    assert layer[0].table is weight
    assert layer[0]().eq(0).all()
    assert layer[0].table is weight
    assert layer.eval()[0]().equal(weight)
    assert list(layer.state_dict()) == ["0.table"]
    assert mixout.distance(layer).total == pytest.approx(float(weight.detach().norm()))
    assert list(mixout.distance(layer).by_layer) == ["0.table"]
    assert type(mixout.remove_(layer)[0]) is Stored


class FromBothSides(nn.Module):
    """Reads through ``.data``, as a hand-written kernel may."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(4, 6))

    def forward(self, x):
        return x @ self.up.data.t() @ self.down.data.t()


mixout.register(
    FromBothSides, weight=("up", "down"), forward=lambda layer, up, down, x: x @ up.t() @ down.t()
)  # outside of a test, so that pickle finds the class


def test_a_forward_of_ones_own_is_given_phi():
    layer = moved(mixout.apply_(FromBothSides(), Mixout(1.0), anchor=moved(FromBothSides())))
    x = torch.randn(3, 4)
    anchors = [mixout.state(layer).anchor(name) for name in ("up", "down")]
    assert layer(x).equal(x @ anchors[0].t() @ anchors[1].t())
    twin = pickle.loads(pickle.dumps(layer))
    assert twin(x).equal(layer(x))
    assert layer.eval()(x).equal(x @ layer.up.t() @ layer.down.t())


def test_a_decorator_and_what_it_refuses():
    @mixout.register
    class Own(nn.Linear):
        def forward(self, x):
            return 2 * nn.functional.linear(x, self.weight, self.bias)

    assert mixout.coverage(mixout.apply_(nn.Sequential(Own(4, 3)), Mixout(0.5))).mixed == ("0",)
    for bad in (
        lambda: mixout.register(3),
        lambda: mixout.register(nn.Linear(1, 1)),
        lambda: mixout.register(weight=3),
    ):
        with pytest.raises(TypeError, match="expected"):
            bad()
    for options in ({"input_dim": 2}, {"blocks": 0}):
        with pytest.raises(ValueError, match="expected"):
            mixout.register(Own, **options)

    @mixout.register(weight="nothing")
    class Wrong(nn.Linear):
        pass

    with pytest.raises(mixout.NothingMixedError, match="it has no nothing, with which Wrong was registered"):
        mixout.apply_(nn.Sequential(Wrong(4, 3)), Mixout(0.5))


def test_a_subclass_without_a_forward_is_its_base_and_one_with_is_left_alone():
    class Same(nn.LSTM):
        pass

    class Other(nn.LSTM):
        def forward(self, x):
            return super().forward(x)

    model = mixout.apply_(nn.ModuleDict({"same": Same(4, 3), "other": Other(4, 3)}), Mixout(0.5), where="same|other")
    assert mixout.coverage(model).mixed == ("same",)
    assert "call mixout.register(Other) first" in str(mixout.coverage(model))


def test_a_pass_of_another_thread_mixes_the_weight_and_not_the_phi_that_is_lent():
    """With u = 0 and w = 1 each entry of Phi is 0 or 2; of a Phi that is mixed once more it would be 4."""
    conv = nn.Conv1d(64, 1, 1, bias=False)
    layer = mixout.apply_(nn.Sequential(conv), Mixout(0.5), where=mixout.Where(types=nn.Module), anchor=0)[0]
    nn.init.ones_(layer.weight)
    x, seen = torch.eye(64)[None], []
    with layer.lent({"weight": torch.full_like(layer.weight, 2.0)}):  # as in the middle of a pass
        thread = threading.Thread(target=lambda: seen.append(layer(x)))
        thread.start()
        thread.join()
    [phi] = seen
    assert {*phi.flatten().tolist()} == {0.0, 2.0}
    phi.sum().backward()
    assert layer.weight.grad.flatten().equal(phi.detach().flatten())


@pytest.mark.parametrize("every", [1, 4])
def test_a_child_whose_weight_its_registered_parent_mixes_is_not_mixed_once_more(every):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = Conv1D(4, 4)

        def forward(self, x):
            return self.proj(x)

    mixout.register(Outer, weight="proj.weight", input_dim=0)
    model = nn.Sequential(Outer())
    mixout.apply_(model, Mixout(0.5, every=every), anchor=0, where=mixout.Where(types=nn.Module))
    nn.init.ones_(model[0].proj.weight)
    phis = torch.cat([model(torch.eye(4)).detach() for _ in range(40)]) if every == 1 else model(torch.eye(4))
    assert {*phis.flatten().tolist()} <= {0.0, 2.0}
    assert phis.any()
    alone = model[0].proj(torch.eye(4))  # and where it is called by itself
    assert {*alone.flatten().tolist()} <= {0.0, 2.0}


def test_threads_do_not_leave_their_weights_behind():
    """Each pass of each thread sees a Phi, and afterwards the layer has its parameter back."""
    layer = mixout.apply_(nn.Sequential(nn.Conv1d(4, 4, 3)), Mixout(0.5), where=mixout.Where(types=nn.Module))[0]
    parameter = layer.weight
    with torch.no_grad():
        parameter.add_(torch.randn_like(parameter))
    x, plain, failures = torch.randn(1, 4, 16), [], []

    def work():
        try:
            plain.extend(layer(x).equal(nn.functional.conv1d(x, parameter, layer.bias)) for _ in range(100))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert layer.weight is parameter
    assert len(plain) == 400
    assert not any(plain)  # Phi is u or u + 2 (w - u) in each column
