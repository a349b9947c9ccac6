"""LoRA beside every other method and on every choice of layers: what is kept is what was scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.finetune.conftest import interrupted, same

from mixout.errors import InputError
from mixout.finetune import causal
from mixout.finetune.cache import Cache
from mixout.finetune.record import Record
from mixout.finetune.run_methods import METHODS
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")

BESIDE = [
    "mixout(0.5)", "mixout(0.5, gradient=paper)", "mixconnect(0.5)", "dropconnect(0.1)", "gradient_mask(0.5)",
    "dropout(0.1)", "anchor_decay(radius=0.005)", "anchor_decay(1, selective=true)", "anchor_decay(1, fisher=3)",
    "output_anchor(1)", "output_anchor(1, on=hidden)", "interpolate(0.5)",
]  # fmt: skip


@torch.no_grad()
def answers(place: Path, settings: Settings, record: Record) -> list[float]:
    """What transformers makes of the folder alone: classes of the dev rows, or log-likelihoods of its documents."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    task = Cache().task(settings)
    if record.labels is not None:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(place).eval()
        return [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in task.dev.text]
    model = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    found: list[list[float]] = [[] for _ in task.dev.text]
    for window in causal.encode(task.dev, tokenizer, settings.max_length):
        logits = model(torch.tensor([window["input_ids"]])).logits[0, :-1].log_softmax(-1)
        labels = window["labels"][1:]
        found[window["document"]] += [float(logits[at, one]) for at, one in enumerate(labels) if one != -100]
    return [sum(one) / len(one) for one in found]


def test_every_method_is_tried():
    assert {one.partition("(")[0] for one in BESIDE} == METHODS.keys() - {"lora", "plain"}


@pytest.mark.parametrize("method", BESIDE)
@pytest.mark.parametrize("kind", ["settings", "causal"])
def test_a_method_beside_lora_is_refused_at_once_or_kept_as_it_was_scored(kind, method, tmp_path, request):
    settings = request.getfixturevalue(kind)(method=f"lora(2)+{method}", epochs=1.0)
    try:
        record = finetune(settings, tmp_path / "out")
    except InputError:
        assert list(tmp_path.iterdir()) == []
    else:
        assert answers(tmp_path / "out", settings, record) == pytest.approx(list(record.predictions), abs=1e-4)


@pytest.mark.parametrize("save", ["no", 3])
def test_an_embedding_that_is_the_output_layer_too_is_left_alone(causal, tiny_llama, tmp_path, save):
    settings = causal(method="lora(2)", where="all", save=save)
    record = finetune(settings, tmp_path / "out")
    assert answers(tmp_path / "out", settings, record) == pytest.approx(list(record.predictions), abs=1e-4)
    before, after = (load_file(Path(place) / "model.safetensors") for place in (tiny_llama, tmp_path / "out"))
    assert "lm_head.weight" not in after
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    if save == "no":
        with pytest.raises(InputError, match="whose weight is its own"):
            finetune(causal(method="lora(2)", where="lm_head"), tmp_path / "head")
        assert not (tmp_path / "head").exists()
    else:
        interrupted(settings, tmp_path / "cut", 4)
        finetune(settings, tmp_path / "cut", resume=True)
        assert same(tmp_path / "out", tmp_path / "cut")
