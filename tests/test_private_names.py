"""Private names of torch: each one that the library reads is there, and only mixout/_torch.py reads any."""

import ast
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mixout
from mixout import _torch

LIBRARY = Path(mixout.__file__).parent
OTHERS = ("cli", "finetune", "study")
# Attributes of torch's objects, which no import gives away.
ATTRIBUTES = {
    "_extensions_data",
    "_fsdp_param_group",
    "_fsdp_param_groups",
    "_get_default_store",
    "_get_fsdp_state",
    "_init_extensions",
    "_is_fsdp_managed_module",
    "_local_tensor",
    "_module_info",
    "_training_state",
    "_use_post_forward_mesh",
}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """A process group of this process alone."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meet = tmp_path_factory.mktemp("group") / "meet"
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def sharded(one_rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def test_exporting():
    class Seen(nn.Module):
        def forward(self, x):
            return x + (1 if _torch.exporting() else 2)

    x = torch.zeros(1)
    assert [torch.compile(Seen(), backend="eager", fullgraph=True)(x).item(), Seen()(x).item()] == [2, 2]
    # A strict export of torch 2.7 cannot be told from compilation.
    for strict in (False,) if torch.__version__.startswith("2.7.") else (False, True):
        assert torch.export.export(Seen(), (x,), strict=strict).module()(x).item() == 1


def test_is_observed():
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    assert not _torch.is_observed()
    with Watch():
        assert _torch.is_observed()


def test_in_backward():
    found = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda _: found.append(_torch.in_backward()))
    found.append(_torch.in_backward())
    x.sum().backward()
    assert found == [False, True]


def test_in_functional_transform():
    found = [_torch.in_functional_transform()]
    torch.func.vmap(lambda x: (found.append(_torch.in_functional_transform()), x)[1])(torch.ones(2))
    assert found == [False, True]


def test_is_batched():
    found = [_torch.is_batched(torch.ones(2))]
    torch.func.vmap(lambda x: (found.append(_torch.is_batched(x)), x)[1])(torch.ones(2))
    assert found == [False, True]


def test_key_value_store(one_rank):
    _torch.key_value_store().set("mixout/test", "seen")
    assert _torch.key_value_store().get("mixout/test") == b"seen"


def test_local_tensor_is_the_one_that_fsdp_asks(sharded):
    weight = sharded[0].weight
    assert _torch.local_tensor(weight) is _torch.local_tensor(weight)
    assert _torch.local_tensor(weight).equal(weight.full_tensor())


def test_managed_by_fsdp(sharded):
    assert _torch.managed_by_fsdp(sharded[0])
    assert not _torch.managed_by_fsdp(nn.Linear(2, 2))


@pytest.mark.parametrize("forward_first", [False, True])
def test_hooks_are_found_before_and_after_a_first_forward(sharded, forward_first):
    asked = []

    def before(mesh, outer_size, outer_stride, module, mp_policy):
        asked.append(module)
        return (_torch.local_tensor(module._parameters["weight"]) * 2,), None

    def after(gathered, metadata, param_dtype, *, out=None):
        return None if out is not None else (gathered[0], gathered)

    layer, x = sharded[0], torch.ones(1, 4)
    if forward_first:
        sharded(x)
        sharded.reshard()
    local = _torch.local_tensor(layer.weight)
    local.fsdp_pre_all_gather, local.fsdp_post_all_gather = before, after
    assert _torch.look_for_hooks(sharded, layer.weight)
    assert not _torch.look_for_hooks(sharded, nn.Parameter(torch.ones(1)))
    whole, bias = layer.weight.full_tensor().detach(), layer.bias.full_tensor().detach()
    found = []
    layer.register_forward_hook(lambda _module, _inputs, output: found.append(output.detach()))
    sharded(x)
    assert asked == [layer]
    torch.testing.assert_close(found[0], nn.functional.linear(x, 2 * whole, bias))


def private_names(tree):
    """Names with a leading underscore that are reached from torch, and attributes that only torch's objects have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for name in [*node.module.split("."), *(alias.name for alias in node.names)]:
                if name.startswith("_"):
                    yield f"{node.module}.{name}"
        # torch documents its _foreach operations.
        if isinstance(node, ast.Attribute) and node.attr[0] == "_" and not node.attr.startswith(("__", "_foreach_")):
            root = ast.unparse(node)
            if node.attr in ATTRIBUTES or root.split(".")[0] in ("torch", "dist"):
                yield root
        if isinstance(node, ast.Constant) and node.value in ATTRIBUTES:
            yield node.value


def test_only_one_file_reads_private_names():
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        name = path.relative_to(LIBRARY)
        if name.parts[0] not in OTHERS and (names := sorted(set(private_names(ast.parse(path.read_text()))))):
            found[str(name)] = names
    assert len(found.pop("_torch.py")) >= 8
    assert found == {}
