"""A checkpoint of a run that would become the anchor."""

from __future__ import annotations

import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers

import mixout
from mixout.finetune.settings import Settings
from mixout.finetune.train import finetune


@pytest.fixture
def checkpoint(tiny_bert, tmp_path) -> Path:
    """What the Trainer leaves after 7 steps, as far as it matters here."""
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        model.pooler.dense.weight.add_(1.0)
    model.save_pretrained(tmp_path / "checkpoint-7")
    (tmp_path / "checkpoint-7" / "trainer_state.json").write_text("{}")
    return tmp_path / "checkpoint-7"


@pytest.mark.parametrize("anchor", [None, mixout.Anchor(device="cpu")], ids=["", "kept elsewhere"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_of_a_run_does_not_silently_become_the_anchor(checkpoint, nested, anchor):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    model = torch.nn.Sequential(model) if nested else model
    with pytest.warns(mixout.FineTunedAnchorWarning, match=r"of a run, .*checkpoint-7.*pass anchor=") as caught:
        mixout.apply_(model, mixout.Mixout(0.5), anchor=anchor)
    assert caught[0].filename == __file__
    assert mixout.coverage(model).mixed


def test_nobody_is_warned_without_cause(checkpoint, tiny_bert):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The pretrained model, into which a Trainer loads the checkpoint later; the checkpoint on purpose; no anchor.
        mixout.apply_(transformers.AutoModel.from_pretrained(tiny_bert), mixout.Mixout(0.5))
        fine_tuned = transformers.AutoModel.from_pretrained(checkpoint)
        mixout.apply_(fine_tuned, mixout.Mixout(0.5), anchor=checkpoint)
        assert mixout.distance(fine_tuned).total == 0
        mixout.apply_(transformers.AutoModel.from_pretrained(checkpoint), mixout.Mixout(0.5), anchor=tiny_bert)
        mixout.apply_(transformers.AutoModel.from_pretrained(checkpoint), mixout.methods.Dropconnect(0.5))
        # Adapters, whose base is what they are put on.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # of peft
        config = peft.LoraConfig(target_modules=["query"])
        for method in (
            mixout.OutputAnchor(1.0, on="hidden"),
            mixout.AnchorDecay(1.0, selective=True),
            mixout.Mixout(0.5),
        ):
            adapted = peft.get_peft_model(transformers.AutoModel.from_pretrained(checkpoint), config)
            mixout.apply_(adapted, method)


def test_what_a_trainer_saved_at_its_end_does_not_silently_become_the_anchor(tiny_bert, tmp_path):
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True)
    trainer = transformers.Trainer(transformers.AutoModel.from_pretrained(tiny_bert), arguments)
    trainer.save_model(str(tmp_path / "final"))
    model = transformers.AutoModel.from_pretrained(tmp_path / "final")
    with pytest.warns(mixout.FineTunedAnchorWarning, match=r"of a run, .*training_args\.bin") as caught:
        mixout.apply_(model, mixout.Mixout(0.5))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = transformers.AutoModel.from_pretrained(tmp_path / "final")
        mixout.apply_(again, mixout.Mixout(0.5), anchor=tmp_path / "final")


def test_a_folder_of_mixout_finetune_is_known_and_a_run_that_begins_there_says_so(tiny_bert, tiny_task, tmp_path):
    pytest.importorskip("scipy", reason="the library alone is installed")
    options = {"task": tiny_task, "max_steps": 1, "epochs": None, "save": "no", "evaluate": "end", "max_length": 16}
    finetune(Settings(model=tiny_bert, **options), tmp_path / "first")
    model = transformers.AutoModel.from_pretrained(tmp_path / "first")
    with pytest.warns(mixout.FineTunedAnchorWarning, match=r"of a run, .*record\.json"):
        mixout.apply_(model, mixout.Mixout(0.5))
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", mixout.FineTunedAnchorWarning)
        finetune(Settings(model=str(tmp_path / "first"), **options), tmp_path / "second", report=lines.append)
    assert any("first is the model of a run (record.json lies there)" in line for line in lines)
