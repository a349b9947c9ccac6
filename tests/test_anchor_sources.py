"""What may be passed as an anchor, and what is said of the rest."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout
from mixout.errors import InputError

safetensors_torch = pytest.importorskip("safetensors.torch")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))


def anchored(source):
    model = mixout.apply_(net(1), Mixout(0.5), anchor=source)
    return {name: one.tensor for name, (_, _, one) in mixout.measure.anchored_weights(model).items()}


@pytest.mark.parametrize("name", ["x.pt", "pytorch_model.bin", "last.ckpt"])
def test_a_file_of_torch_save_is_named_as_such(name, tmp_path):
    file = tmp_path / name
    torch.save(net().state_dict(), file)
    with pytest.raises(InputError, match=r"a whole one .*anchor=torch.load\(.*weights_only=True\)") as caught:
        anchored(str(file))
    assert str(file) in str(caught.value)
    # What the message says to do.
    found = anchored(torch.load(file, weights_only=True))
    assert found["1.weight"].equal(net()[1].weight)


def test_a_file_that_was_cut_off_is_named(tmp_path):
    safetensors_torch.save_file(net().state_dict(), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(InputError, match=r"model\.safetensors.*is not, or not a whole one"):
        anchored(tmp_path)


@pytest.mark.parametrize(
    "name", ["bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2", "/no/such/folder", "~nosuchuser/m"]
)
def test_a_name_on_the_hub_is_not_downloaded(name):
    with pytest.raises(FileNotFoundError, match=f"got '{name}'.*not downloaded: load the model and pass it"):
        anchored(name)


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json"])
def test_the_hubs_cache_is_named_where_it_holds_the_model(file, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    safetensors_torch.save_file(net().state_dict(), snapshot / "model.safetensors")
    if file != "model.safetensors":
        (snapshot / "model.safetensors").rename(snapshot / "part")
        (snapshot / file).write_text(json.dumps({"weight_map": dict.fromkeys(net().state_dict(), "part")}))
    original = hub.try_to_load_from_cache
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: original(name, file, cache_dir=tmp_path))
    with pytest.raises(FileNotFoundError, match="which is here: anchor=") as caught:
        anchored("some/model")
    place = str(caught.value).partition("anchor=")[2].strip("'")
    assert Path(place) == snapshot
    assert anchored(place)["0.weight"].equal(net()[0].weight)
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    with pytest.raises(FileNotFoundError) as caught:
        anchored("some/model")
    assert "anchor=" not in str(caught.value)


def test_a_folder_without_safetensors_says_what_it_holds(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no file of weights"):
        anchored(tmp_path)
    torch.save(net().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds pytorch_model\.bin; .*torch\.load"):
        anchored(tmp_path)
    safetensors_torch.save_file(net().state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors.*by its own path"):
        anchored(tmp_path)
    assert anchored(tmp_path / "other.safetensors")["0.weight"].equal(net()[0].weight)


def test_a_path_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    safetensors_torch.save_file(net().state_dict(), tmp_path / "model.safetensors")
    assert anchored("~")["0.weight"].equal(net()[0].weight)


def test_a_checkpoint_around_a_state_dict_is_told_from_it():
    checkpoint = {"epoch": 3, "state_dict": net().state_dict(), "loops": {}}
    with pytest.raises(mixout.AnchorMismatchError, match=r"is anchor=checkpoint\['state_dict'\] meant"):
        anchored(checkpoint)
    assert anchored(checkpoint["state_dict"])["0.weight"].equal(net()[0].weight)


@pytest.mark.parametrize("source", [1, True, 0.5, [net()[0].weight], net()[0].weight], ids=str)
def test_what_is_no_source_is_refused(source):
    with pytest.raises(TypeError, match="expected anchor to be None, 0, a state dict, a path to safetensors"):
        anchored(source)


def test_arrays_are_no_tensors():
    with pytest.raises(TypeError, match=r"hold tensors, got ndarray for '0\.weight'"):
        anchored({name: tensor.numpy() for name, tensor in net().state_dict().items()})


def test_a_tied_weight_is_found_under_either_of_its_names():
    tied = net()
    tied.append(nn.Linear(5, 3))
    tied[2].weight = tied[1].weight
    state = {"0.weight": torch.ones(5, 4), "2.weight": torch.ones(3, 5)}
    model = mixout.apply_(tied, Mixout(0.5), anchor=state)
    assert model[1]._mixed.anchor is model[2]._mixed.anchor
    assert model[1]._mixed.anchor.tensor.equal(torch.ones(3, 5))


def test_an_anchor_for_a_model_on_the_meta_device_waits_where_it_is():
    start = net().state_dict()
    with torch.device("meta"):
        model = mixout.apply_(net(1), Mixout(1.0), anchor=start)
    model = model.to_empty(device="cpu")
    model.load_state_dict(net(1).state_dict())
    x = torch.randn(2, 4)
    assert model[0](x).equal(nn.functional.linear(x, start["0.weight"], model[0].bias))


def test_a_file_may_have_other_names(tmp_path):
    safetensors_torch.save_file({"other.weight": torch.zeros(5, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(mixout.AnchorMismatchError, match="load the base model and pass it"):
        mixout.apply_(net(), Mixout(0.5), anchor=tmp_path)
