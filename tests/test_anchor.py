"""The anchor: where it comes from, that it follows the weight, and that nobody else sees it."""

import copy
import json

import pytest
import torch
from torch import nn

import mixout
from mixout import AnchorDecay, Mixout

safetensors_torch = pytest.importorskip("safetensors.torch")


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.first(x))


class WithHead(nn.Module):
    """A pretrained body and a new head, marked as transformers marks them."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.body, self.head = Body(), nn.Linear(3, 2)

    @property
    def base_model(self):
        return self.body

    def get_output_embeddings(self):
        return None

    def forward(self, x):
        return self.head(self.body(x))


def fresh(kind=WithHead, seed=0):
    torch.manual_seed(seed)
    return kind()


def anchors(model):
    return {name: one.tensor for name, (_, _, one) in mixout.measure.anchored_weights(model).items()}


def test_the_default_anchor_is_the_weights_of_this_moment_and_no_alias():
    """Trap: aliasing the live parameter: the penalty is always zero."""
    model = mixout.apply_(fresh(), Mixout(0.5))
    for name, tensor in anchors(model).items():
        assert tensor.equal(model.get_parameter(name))
        assert tensor.untyped_storage().data_ptr() != model.get_parameter(name).untyped_storage().data_ptr()
        assert not tensor.requires_grad
    assert mixout.distance(model).total == 0.0
    with torch.no_grad():
        model.body.first.weight.add_(1.0)
    assert mixout.distance(model).total == pytest.approx(20**0.5)


def test_the_anchor_is_no_part_of_state_dict_parameters_or_buffers():
    """Trap: as a buffer, DDP re-broadcasts it; inside param_groups, it lands in every optimizer checkpoint."""
    model = fresh()
    keys, count = list(model.state_dict()), len(list(model.parameters()))
    mixout.apply_(model, [Mixout(0.5), AnchorDecay(0.1)])
    assert list(model.state_dict()) == keys
    assert len(list(model.parameters())) == count
    assert not list(model.buffers())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    flat = [t for state in optimizer.state_dict()["state"].values() for t in state.values()]
    assert not any(t is a for t in flat for a in anchors(model).values())
    assert set(optimizer.param_groups[0]) == set(torch.optim.AdamW(model.parameters()).param_groups[0])


@pytest.mark.parametrize("method", [Mixout(0.5), AnchorDecay(0.1), AnchorDecay(radius=0.1, relative=True)], ids=str)
@pytest.mark.parametrize(
    "move", [lambda m: m.double(), lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.to(torch.float64)]
)
def test_the_anchor_follows_to_another_dtype(method, move):
    """Trap: a plain attribute is not moved by .to(); anchor and weight in different dtypes: matmul raises."""
    model = move(mixout.apply_(fresh(), method))
    dtype = model.head.weight.dtype
    model(torch.randn(3, 4, dtype=dtype)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    mixout.distance(model)
    assert {t.dtype for t in anchors(model).values()} == {dtype}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_anchor_is_moved_to_a_gpu_once():
    """Trap: copied host-to-device on each call."""
    model = mixout.apply_(fresh(), Mixout(0.5)).cuda()
    first = dict(anchors(model))
    model(torch.randn(3, 4, device="cuda")).sum().backward()
    assert all(t.is_cuda and t is first[name] for name, t in anchors(model).items())


def test_a_weight_cast_behind_our_back_casts_the_anchor_once():
    """Trap: copied (host-to-device) on each call: after the first pass the anchor must lie beside the weight."""
    model = mixout.apply_(fresh(), Mixout(0.5))
    for parameter in model.parameters():
        parameter.data = parameter.data.double()
    model(torch.randn(3, 4, dtype=torch.float64))
    layer = model.body.first
    beside = layer._mixed.anchor.beside(layer.weight)
    assert beside.dtype == torch.float64
    model(torch.randn(3, 4, dtype=torch.float64))
    assert layer._mixed.anchor.beside(layer.weight) is beside


def test_weights_that_are_only_lent_do_not_change_the_anchor():
    model = mixout.apply_(fresh(), Mixout(0.5))
    before = {name: tensor.clone() for name, tensor in anchors(model).items()}
    lent = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    torch.func.functional_call(model, lent, torch.randn(3, 4, dtype=torch.bfloat16))
    meta = {name: p.to("meta") for name, p in lent.items()}
    torch.func.functional_call(model, meta, torch.randn(3, 4, device="meta").bfloat16())
    assert all(tensor.equal(before[name]) for name, tensor in anchors(model).items())
    assert mixout.distance(model).total == 0.0
    model(torch.randn(3, 4))


def test_a_meta_parameter_has_no_weights_to_anchor():
    with torch.device("meta"):
        model = Body()
    with pytest.raises(ValueError, match="meta device; load them first"):
        mixout.apply_(model, Mixout(0.5))


def state_of(model, tmp_path):
    return model.state_dict()


def module_of(model, tmp_path):
    return model


def file_of(model, tmp_path):
    safetensors_torch.save_file(model.state_dict(), tmp_path / "any name.safetensors")
    return tmp_path / "any name.safetensors"


def folder_of(model, tmp_path):
    safetensors_torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    return str(tmp_path)


def sharded_folder_of(model, tmp_path):
    weight_map = {}
    for i, name in enumerate(model.state_dict()):
        file = f"model-{i % 2 + 1:05}-of-00002.safetensors"
        weight_map[name] = file
    for file in set(weight_map.values()):
        part = {n: model.state_dict()[n] for n, f in weight_map.items() if f == file}
        safetensors_torch.save_file(part, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


SOURCES = [state_of, module_of, file_of, folder_of, sharded_folder_of]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", [WithHead, Body], ids=["whole", "body_only_without_the_prefix"])
def test_every_source_of_anchors(source, kind, tmp_path):
    pretrained = fresh(kind, seed=7)
    expected = pretrained.state_dict() if kind is Body else pretrained.body.state_dict()
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    model = mixout.apply_(fresh(), [Mixout(1.0), AnchorDecay(0.1)], anchor=source(pretrained, tmp_path))
    assert set(anchors(model)) == {"body.first.weight", "body.second.weight"}
    for name, tensor in anchors(model).items():
        assert tensor.equal(expected[name.removeprefix("body.")])
    with torch.no_grad():
        for parameter in pretrained.parameters():
            parameter.zero_()  # no alias of the source either
    assert all(tensor.any() for tensor in anchors(model).values())
    assert mixout.distance(model).total > 0


def test_a_body_may_be_anchored_by_a_checkpoint_of_the_whole(tmp_path):
    class Bare(Body):
        base_model_prefix = "body"

        @property
        def base_model(self):
            return self

        def get_output_embeddings(self):
            return None

    pretrained = fresh(seed=7)
    model = mixout.apply_(fresh(Bare), Mixout(0.5), anchor=file_of(pretrained, tmp_path))
    assert anchors(model)["first.weight"].equal(pretrained.body.first.weight)


def test_anchor_zero_keeps_no_copy():
    model = mixout.apply_(fresh(), Mixout(1.0), anchor=0)
    assert set(anchors(model).values()) == {None}
    assert model.body.first(torch.randn(2, 4)).equal(model.body.first.bias.expand(2, 5))
    assert mixout.distance(model).by_layer["body.first.weight"] == pytest.approx(model.body.first.weight.norm().item())


def test_missing_and_mis_shaped_names():
    state = fresh(seed=7).state_dict()
    del state["body.second.weight"]
    with pytest.raises(mixout.AnchorMismatchError, match=r"'body.second.weight'.*where="):
        mixout.apply_(fresh(), Mixout(0.5), anchor=state)
    state["body.second.weight"] = torch.zeros(5, 3)
    with pytest.raises(mixout.AnchorMismatchError, match=r"shape \(3, 5\) for 'body.second.weight', got \(5, 3\)"):
        mixout.apply_(fresh(), Mixout(0.5), anchor=state)
    # only what is anchored is asked for
    mixout.apply_(fresh(), Mixout(0.5), anchor=state, where=r"first")


def test_a_head_without_weights_in_the_anchor_is_refused(tmp_path):
    """Trap: new output head (no pretrained weights) anchored at its random initialisation."""
    path = file_of(fresh(Body, seed=7), tmp_path)
    with pytest.raises(mixout.AnchorMismatchError, match=r"head\.weight"):
        mixout.apply_(fresh(), Mixout(0.5), where="all", anchor=path)
    model = mixout.apply_(fresh(), Mixout(0.5))  # by default the head is not mixed at all
    assert "head" in mixout.coverage(model).plain
    assert "head.weight" not in anchors(model)


def test_a_safetensors_file_is_read_lazily(tmp_path, monkeypatch):
    import safetensors

    path, read = file_of(fresh(seed=7), tmp_path), []
    original = safetensors.safe_open

    class Spy:
        def __init__(self, *args, **options):
            self.inner = original(*args, **options)

        def __enter__(self):
            self.handle = self.inner.__enter__()
            return self

        def __exit__(self, *args):
            return self.inner.__exit__(*args)

        def keys(self):
            return self.handle.keys()

        def get_tensor(self, name):
            read.append(name)
            return self.handle.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Spy)
    mixout.apply_(fresh(), Mixout(0.5), anchor=path, where="second")
    assert read == ["body.second.weight"]


def test_an_anchor_in_another_dtype_is_cast():
    model = mixout.apply_(fresh(), Mixout(0.5), anchor=fresh(seed=7).double())
    assert {t.dtype for t in anchors(model).values()} == {torch.float32}


def test_the_anchor_stays_when_a_checkpoint_is_loaded():
    model = mixout.apply_(fresh(), Mixout(0.5))
    before = mixout.fingerprint(model)
    model.load_state_dict(fresh(seed=9).state_dict())
    assert mixout.fingerprint(model) == before
    assert mixout.distance(model).total > 0


def test_an_anchor_captured_after_a_fine_tuned_checkpoint_is_found():
    """Trap: captured after loading a fine-tuned checkpoint (resume): silently anchored at the fine-tuned weights."""
    model = mixout.apply_(fresh(), Mixout(0.5))
    with torch.no_grad():
        model.body.first.weight.add_(0.1)
    state, weights = mixout.save_state(model), copy.deepcopy(model.state_dict())
    json.dumps(state)  # it goes into a checkpoint
    wrong = fresh()
    wrong.load_state_dict(weights)
    mixout.apply_(wrong, Mixout(0.5))
    with pytest.raises(mixout.AnchorMismatchError, match="call apply_, and only then load the checkpoint"):
        mixout.load_state_(wrong, state)
    right = mixout.apply_(fresh(), Mixout(0.5))
    right.load_state_dict(weights)
    mixout.load_state_(right, state)
    assert mixout.distance(right).total == mixout.distance(model).total


def test_state_of_another_method_or_version_is_refused():
    model = mixout.apply_(fresh(), Mixout(0.5))
    state = mixout.save_state(model)
    with pytest.raises(mixout.MixoutError, match="version"):
        mixout.load_state_(model, {**state, "version": 99})
    with pytest.raises(mixout.MixoutError, match=r"finish a run of mixout 0\.1 with that version"):
        mixout.load_state_(model, {**state, "version": 2})
    with pytest.raises(mixout.MixoutError, match=r"mixout\(0.7\)"):
        mixout.load_state_(model, {**state, "methods": "mixout(0.7)"})
    with pytest.raises(mixout.MixoutError, match="version"):
        mixout.load_state_(model, {})


@pytest.mark.parametrize("p", [7.0, float("nan"), "0.5"])
def test_state_whose_p_is_no_probability_is_refused(p):
    model = mixout.apply_(nn.Sequential(nn.Linear(4, 3)), Mixout(0.9))
    with pytest.raises((TypeError, ValueError), match="expected p"):
        mixout.load_state_(model, {**mixout.save_state(model), "p": p})
    assert mixout.save_state(model)["p"] == 0.9
