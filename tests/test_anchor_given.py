"""Anchors that are given: a state dict, a model, files, 0; and what they must hold."""

import json

import pytest
import torch

import mixout
from body_and_head import Body, WithHead, anchors, fresh
from mixout import AnchorDecay, Mixout

safetensors_torch = pytest.importorskip("safetensors.torch")


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
            self.handle = original(*args, **options)

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
