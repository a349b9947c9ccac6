"""How far fine-tuning turned an encoder's mean hidden states on other text, against transformers alone."""

import dataclasses
import shutil

import pytest
import torch
import transformers

from mixout.errors import InputError
from mixout.finetune import models
from mixout.finetune.drift import Drift
from mixout.finetune.train import finetune
from mixout.study.identity import Inputs

TEXTS = ("bata dovi", "kipo", "lune meta novi bapo", "ruta sane dota " * 20)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def other(tmp_path):
    (tmp_path / "other.txt").write_text("\n\n".join(TEXTS))
    return tmp_path / "other.txt"


def means(folder, length):
    """Of one text at a time, so that there is no padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = [model(**tokenizer(t, return_tensors="pt", truncation=True, max_length=length)) for t in TEXTS]
    return torch.stack([output.last_hidden_state[0].mean(0) for output in outputs])


def test_the_record_says_how_far_the_body_turned(settings, tiny_bert, other, tmp_path):
    record = finetune(settings(original=str(other), method="mixout(0.5)"), tmp_path / "run")
    before, after = means(tiny_bert, 32), means(tmp_path / "run", 32)
    expected = torch.nn.functional.cosine_similarity(before, after).mean()
    assert record.scores["original_similarity"] == pytest.approx(float(expected), abs=1e-5)
    assert 0.0 < record.scores["original_similarity"] < 0.999
    assert record.fingerprints["original"]


def test_looking_changes_nothing(settings, other, tmp_path):
    """Neither the run, but for the one score, nor the identity of runs without such text."""
    plain = finetune(settings(), tmp_path / "plain")
    looked = finetune(settings(original=str(other)), tmp_path / "looked")
    assert "original_similarity" not in plain.scores
    assert (looked.predictions, looked.training, looked.distance) == (plain.predictions, plain.training, plain.distance)
    assert looked.evaluations == plain.evaluations
    inputs, moved = Inputs(), other.with_name("elsewhere.txt")
    shutil.copy(other, moved)
    changed = other.with_name("changed.txt")
    changed.write_text(TEXTS[0])
    found = [inputs.identity(settings(original=str(path))) for path in (other, moved, changed)]
    assert found[0] == found[1]
    assert len({inputs.identity(settings()), *found}) == 3


def test_the_model_stays_as_it_was(tiny_bert):
    loaded = models.load(tiny_bert, labels=("no", "yes"), init_seed=0)
    loaded.model.train()
    drift = Drift(loaded, TEXTS, 32)
    assert loaded.model.training
    assert drift.scores()["original_similarity"] == pytest.approx(1.0, abs=1e-12)
    with torch.no_grad():
        loaded.model.base_model.encoder.layer[-1].output.LayerNorm.weight.neg_()
        loaded.model.base_model.encoder.layer[-1].output.LayerNorm.bias.neg_()
    assert drift.scores()["original_similarity"] == pytest.approx(-1.0, abs=1e-12)
    assert Drift(loaded, (), 32).scores() == {}


def test_a_body_that_is_no_encoder_of_text_is_refused(tiny_bert):
    loaded = models.load(tiny_bert, labels=("no", "yes"), init_seed=0)

    class Silent(transformers.BertForSequenceClassification):
        @property
        def base_model(self):
            return lambda **_: ()

    model = Silent(loaded.model.config)
    with pytest.raises(InputError, match="expected a text encoder for original"):
        Drift(dataclasses.replace(loaded, model=model), TEXTS, 32)


def test_a_file_that_is_not_there_is_refused_before_anything_is_written(settings, tmp_path):
    with pytest.raises(InputError, match="expected original as a file"):
        finetune(settings(original=str(tmp_path / "none.txt")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
