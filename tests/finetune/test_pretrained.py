from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from mixout.finetune.cache import again
from mixout.finetune.models import Loaded, load

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ("no", "yes")


def save(model: transformers.PreTrainedModel, tiny_bert: str, folder: Path) -> str:
    model.save_pretrained(folder)
    for file in Path(tiny_bert).glob("tokenizer*"):
        shutil.copy(file, folder)
    return str(folder)


def check_equal(one: Loaded, other: Loaded, folder: Path) -> None:
    """The same tensors, and, saved, the same files."""
    for kind in ("named_parameters", "named_buffers"):
        first, second = (dict(getattr(loaded.model, kind)(remove_duplicate=False)) for loaded in (one, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert all(first[name].dtype == second[name].dtype for name in first)
    assert len(list(one.model.parameters())) == len(list(other.model.parameters()))
    assert (one.new, one.source, one.sha256) == (other.new, other.source, other.sha256)
    assert one.model.training == other.model.training
    for name, loaded in (("one", one), ("other", other)):
        loaded.model.save_pretrained(folder / name)
        loaded.tokenizer.save_pretrained(folder / name)
    assert {file.name for file in (folder / "one").iterdir()} == {file.name for file in (folder / "other").iterdir()}
    for file in (folder / "one").iterdir():
        assert file.read_bytes() == (folder / "other" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama"])
def test_made_again_is_loaded_again(tiny_bert, small_model, tmp_path, name):
    body = small_model(name).base_model
    folder = save(body, tiny_bert, tmp_path / "model")
    first = load(folder, labels=("a", "b", "c"), init_seed=1)
    kept = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.add_(1.0)
    for seed in (1, 2):
        loaded = load(folder, labels=("a", "b", "c"), init_seed=seed)
        assert loaded.new
        check_equal(again(kept, init_seed=seed), loaded, tmp_path / str(seed))


def test_a_head_of_another_size_and_a_regression(tiny_bert, tmp_path):
    three = load(tiny_bert, labels=("a", "b", "c"), init_seed=0)
    three.model.save_pretrained(tmp_path / "three")
    three.tokenizer.save_pretrained(tmp_path / "three")
    for labels in (LABELS, None, ("x", "y", "z")):
        kept = load(str(tmp_path / "three"), labels=labels, init_seed=5)
        loaded = load(str(tmp_path / "three"), labels=labels, init_seed=6)
        assert bool(loaded.new) == (labels != ("x", "y", "z"))
        check_equal(again(kept, init_seed=6), loaded, tmp_path / str(labels))


def test_training_does_not_reach_what_is_kept(tiny_bert):
    kept = load(tiny_bert, labels=LABELS, init_seed=0)
    before = {name: value.clone() for name, value in kept.model.state_dict().items()}
    made = again(kept, init_seed=0)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.zero_()
    made.model.config.num_labels = 7
    assert all(torch.equal(kept.model.state_dict()[name], value) for name, value in before.items())
    assert again(kept, init_seed=0).model.config.num_labels == 2


def test_the_global_stream_is_left_alone(tiny_bert):
    kept = load(tiny_bert, labels=LABELS, init_seed=0)
    state = torch.random.get_rng_state()
    again(kept, init_seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
