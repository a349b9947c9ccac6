"""where: presets, expressions, predicates."""

import re

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout, Where


def block():
    return nn.ModuleDict({"query": nn.Linear(4, 4), "fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})


class Model(nn.Module):
    """Body of two blocks, an output embedding inside it, a new head; as transformers marks them."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"layer": nn.ModuleList([block(), block()]), "lm_head": nn.Linear(4, 9)})
        self.embedding, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 4, 1)
        self.classifier = nn.Linear(4, 2)

    @property
    def base_model(self):
        return self.body

    def get_output_embeddings(self):
        return self.body["lm_head"]


LINEARS = [f"body.layer.{i}.{name}" for i in (0, 1) for name in ("query", "fc1", "fc2")]


def mixed(where):
    return set(mixout.coverage(mixout.apply_(Model(), Mixout(0.9), where=where)).mixed)


@pytest.mark.parametrize("where", [None, "body", mixout.BODY])
def test_the_default_is_all_linear_layers_of_the_pretrained_body(where):
    assert mixed(where) == set(LINEARS)


def test_paper_leaves_out_what_feeds_the_nonlinearity():
    assert mixed(mixout.PAPER) == mixed("paper") == {name for name in LINEARS if not name.endswith("fc1")}


def test_all_takes_heads_too():
    assert mixed(mixout.ALL) == mixed("all") == {*LINEARS, "body.lm_head", "classifier"}


def test_a_regular_expression_is_searched_in_names_of_linear_layers():
    assert mixed("query|embedding") == {"body.layer.0.query", "body.layer.1.query"}
    assert mixed(r"layer\.0\.") == set(LINEARS[:3])
    with pytest.raises(mixout.NothingMixedError, match="where='\\^conv\\$' matches no linear layer"):
        mixed(r"^conv$")


def test_types_say_which_other_layers():
    assert mixed(Where(types=nn.Embedding)) == {"embedding"}
    assert mixed(Where(include="query|embedding", types=(nn.Linear, nn.Embedding))) == {*LINEARS[::3], "embedding"}
    assert mixed(Where(types=nn.Module, exclude="layer|lm_head")) == {"embedding", "conv", "classifier"}
    with pytest.raises(TypeError, match="types= as classes of modules"):
        Where(types="Linear")


def test_include_and_exclude():
    assert mixed(Where(include="layer", exclude=r"\.0\.")) == set(LINEARS[3:])
    assert mixed(Where(include=("fc1", "fc2"), exclude=(r"\.0\.", "fc2"))) == {"body.layer.1.fc1"}
    assert mixed(Where(exclude="layer")) == {"body.lm_head", "classifier"}


def test_a_predicate_sees_name_and_module():
    assert mixed(lambda name, module: isinstance(module, nn.Conv1d)) == {"conv"}
    assert mixed(lambda name, module: name == "classifier") == {"classifier"}


def test_a_predicate_with_another_signature_is_refused():
    for bad in (lambda module, name: True, lambda name: True, lambda m, fqn: True, lambda: True):
        with pytest.raises(TypeError, match=r"expected a predicate \(name, module\) -> bool"):
            mixed(bad)


def test_a_model_without_a_marked_body_is_body_all_over():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert mixout.coverage(mixout.apply_(model, Mixout(0.9))).mixed == ("0", "1.0")


def test_bad_expressions_and_types():
    with pytest.raises(ValueError, match=r"expected a regular expression in where, got '\('"):
        Where(include="(")
    with pytest.raises(ValueError, match="expected a regular expression"):
        mixout.apply_(Model(), Mixout(0.9), where="*")
    with pytest.raises(TypeError, match=re.escape("got 5")):
        mixout.apply_(Model(), Mixout(0.9), where=5)
    with pytest.raises(ValueError, match=r"where=mixout\.Where"):
        mixout.apply_(nn.Sequential(nn.Linear(2, 2)), Mixout(0.9), where="paper")


def test_where_is_a_value():
    assert eval(repr(Where(include="a", exclude=("b",)))) == Where(include="a", exclude=("b",))


@pytest.mark.parametrize("where", ["nothing_like_this", Where(include="layer", exclude="layer"), lambda *_: False])
def test_nothing_selected_is_an_error(where):
    with pytest.raises(mixout.NothingMixedError, match="where="):
        mixout.apply_(Model(), Mixout(0.9), where=where)


def test_decay_covers_the_body_or_what_where_says():
    model = mixout.apply_(Model(), mixout.AnchorDecay(0.1))
    assert set(mixout.measure.anchored_weights(model)) == {f"{name}.weight" for name in LINEARS}
    mixout.remove_(model)
    mixout.apply_(model, mixout.AnchorDecay(0.1), where="classifier|embedding")  # a decay: all weights of these names
    assert set(mixout.measure.anchored_weights(model)) == {"classifier.weight", "embedding.weight"}


@pytest.mark.filterwarnings("ignore::mixout.LowCoverageWarning")  # of a tiny Whisper most are convolutions
@pytest.mark.parametrize("case", ["clip", "t5", "whisper"])
def test_heads_of_models_without_a_body_under_their_prefix_are_not_mixed(case):
    import transformers

    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    if case == "clip":
        vision = {**tiny, "image_size": 8, "patch_size": 4}
        config = transformers.CLIPConfig(text_config={**tiny, "vocab_size": 9}, vision_config=vision)
        model, heads = transformers.CLIPForImageClassification(config), {"classifier"}
    elif case == "t5":
        config = transformers.T5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        model, heads = transformers.T5ForQuestionAnswering(config), {"qa_outputs"}
    else:
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        config = transformers.WhisperConfig(
            vocab_size=60, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=1, **sizes
        )
        model, heads = transformers.WhisperForAudioClassification(config), {"projector", "classifier"}
    mixed = set(mixout.coverage(mixout.apply_(model, mixout.Mixout(0.5))).mixed)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert mixed == linear - heads


def test_lists_of_types_and_of_expressions_are_as_good_as_tuples():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    for several in (list, tuple):
        where = mixout.Where(include=several(["0", "1"]), types=several([nn.Linear, nn.Embedding]))
        assert mixout.coverage(model, mixout.Mixout(0.5), where=where).mixed == ("0", "1")
