"""Architectures of transformers from small random configurations: apply, train, save, reload, remove.

BERT, GPT-2, T5, Llama and ViT in detail; then every architecture that ``tests/architectures.py`` can build, of which a
part runs by default and all with ``pytest -m "sweep or not sweep"``.
"""

import copy
import importlib.util
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import mixout
from mixout import AnchorDecay, Mixconnect, Mixout
from mixout.methods.likelihood import predicts_next

transformers = pytest.importorskip("transformers")

spec = importlib.util.spec_from_file_location("architectures", Path(__file__).with_name("architectures.py"))
architectures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(architectures)

H, F, V, L = 16, 24, 30, 2  # width, feed-forward width, vocabulary, layers
IDS = torch.arange(12).reshape(2, 6)


def bert():
    config = transformers.BertConfig(
        hidden_size=H, num_hidden_layers=L, num_attention_heads=2, intermediate_size=F, vocab_size=V
    )
    inputs = {"input_ids": IDS, "labels": torch.tensor([0, 1])}
    # query, key, value, output, intermediate, output of each layer, and the pooler
    return transformers.BertForSequenceClassification(config), inputs, 6 * L + 1, L * (4 * H * H + 2 * H * F) + H * H, L


def gpt2():
    config = transformers.GPT2Config(
        n_embd=H, n_layer=L, n_head=2, vocab_size=V, n_positions=20, bos_token_id=0, eos_token_id=1
    )
    # c_attn (H, 3H), c_proj, c_fc (H, 4H), c_proj
    return transformers.GPT2LMHeadModel(config), {"input_ids": IDS, "labels": IDS}, 4 * L, L * 12 * H * H, L


def t5():
    config = transformers.T5Config(
        d_model=H, d_kv=8, d_ff=F, num_layers=L, num_heads=2, vocab_size=V, decoder_start_token_id=0
    )
    # q, k, v, o, wi, wo in the encoder; four more for the cross attention in the decoder
    mixed, weights = 6 * L + 10 * L, L * (12 * H * H + 4 * H * F)
    return transformers.T5ForConditionalGeneration(config), {"input_ids": IDS, "labels": IDS}, mixed, weights, 2 * L


def llama():
    config = transformers.LlamaConfig(
        hidden_size=H, num_hidden_layers=L, num_attention_heads=2, num_key_value_heads=1, intermediate_size=F,
        vocab_size=V, attention_dropout=0.1,
    )  # fmt: skip
    # q, o; k, v of one head of two; gate, up, down
    weights = L * (2 * H * H + 2 * H * H // 2 + 3 * H * F)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS, "labels": IDS}, 7 * L, weights, 2 * L


def vit():
    config = transformers.ViTConfig(
        hidden_size=H, num_hidden_layers=L, num_attention_heads=2, intermediate_size=F, image_size=8, patch_size=4,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 1])}
    return transformers.ViTForImageClassification(config), inputs, 6 * L, L * (4 * H * H + 2 * H * F), L


MODELS = [bert, gpt2, t5, llama, vit]


def settings(model):
    """The configuration without what loading writes into it."""
    return {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "architectures", "dtype")}


def built(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize(
    "method", [Mixout(0.7), [Mixout(0.5, unit="output"), AnchorDecay(0.1)], Mixconnect(0.3)], ids=str
)
@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_apply_train_save_reload_remove(make, method, tmp_path):
    model, inputs, *_ = built(make)
    plain = model.eval()(**inputs).logits.detach()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    keys = list(model.state_dict())
    mixout.apply_(model, method)
    assert model(**inputs).logits.equal(plain)  # eval mode: bit-identical
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model.train()(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert torch.stack(losses).isfinite().all()
    assert mixout.distance(model).total > 0
    assert not any("never called" in layer.reason for layer in mixout.coverage(model).layers)
    assert list(model.state_dict()) == keys

    trained = model.eval()(**inputs).logits.detach()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again(**inputs).logits.equal(trained)
    mixout.remove_(model)
    assert model(**inputs).logits.equal(trained)
    assert [type(m) for m in model.modules()] == [type(m) for m in again.modules()]
    assert settings(model) == settings(again)


@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_coverage_by_hand(make):
    model, _, layers, weights, feeding = built(make)
    total = sum(p.numel() for p in model.parameters())
    mixout.apply_(model, Mixout(0.9))
    coverage = mixout.coverage(model)
    assert len(coverage.mixed) == layers
    assert coverage.bypassed == ()
    assert coverage.dropouts == ()
    assert coverage.parameters_mixed == pytest.approx(weights / total)
    assert sum(layer.parameters for layer in coverage.layers) == total
    mixout.remove_(model)
    mixout.apply_(model, Mixout(0.9), where="paper")
    assert len(mixout.coverage(model).mixed) == layers - feeding


def test_flops_by_hand():
    model, *_ = built(bert)
    coverage = mixout.coverage(mixout.apply_(model, Mixout(0.9)))
    mixed = L * (4 * H * H + 2 * H * F) + H * H
    assert coverage.flops_mixed == pytest.approx(mixed / (mixed + 2 * H))  # the classifier of two labels is plain
    model, *_ = built(gpt2)
    coverage = mixout.coverage(mixout.apply_(model, Mixout(0.9)))
    assert coverage.flops_mixed == pytest.approx(L * 12 * H * H / (L * 12 * H * H + H * V))  # the head is a product


@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_every_mixed_weight_learns_and_p_one_is_the_pretrained_body(make):
    model, inputs, *_ = built(make)
    mixout.apply_(model, Mixout(1.0))
    model.train()
    before = model(**inputs).logits.detach()
    with torch.no_grad():
        for name in mixout.coverage(model).mixed:
            model.get_submodule(name).weight.add_(1.0)
    assert model(**inputs).logits.equal(before)  # p = 1: the anchor, whatever the weights
    mixout.set_p_(model, 0.3)
    model(**inputs).loss.backward()
    assert all(model.get_submodule(name).weight.grad is not None for name in mixout.coverage(model).mixed)


# These change the result of a linear layer in place.
IN_PLACE = """
    data2vec-audio deberta groupvit hubert led llama4 llama4_text longformer nemotron3_5_asr nemotron_asr_streaming
    nemotron_asr_streaming_encoder roc_bert sew sew-d swin2sr swinv2 unispeech unispeech-sat wav2vec2 wav2vec2-bert
    wav2vec2-conformer wavlm
"""
FAMILIES = """
    albert bart bert big_bird bloom clip data2vec-text deberta-v2 deit dinov2 distilbert electra falcon fnet gemma2
    gpt2 gpt_neo gpt_neox gptj jamba llama mamba mbart mixtral mobilebert modernbert mpnet olmoe opt phi3 qwen2
    reformer resnet roberta segformer swin t5 vilt vit whisper xlnet
"""
BY_DEFAULT = {*IN_PLACE.split(), *FAMILIES.split()}


def tensors(output):
    """All floating point tensors in what a model returned."""
    if isinstance(output, torch.Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, dict):
        yield from tensors(list(output.values()))
    elif isinstance(output, (list, tuple)):
        for one in output:
            yield from tensors(one)


def loss(output):
    """A number that depends on all of ``output``, in a way that no normalisation makes constant."""
    return torch.stack([t.double()[t.isfinite()].sin().mean() for t in tensors(output) if t.requires_grad]).sum()


def evaluated(model, inputs):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with torch.no_grad():
        return list(tensors(model.eval()(**inputs)))


def trained(model, inputs):
    """The names of the parameters that one training pass gives a gradient."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    value = loss(model.train()(**inputs))
    value.backward()
    assert value.isfinite()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def same(first, second):
    """Whether two results are equal bit for bit."""
    pairs = zip(first, second, strict=True)
    return all(a.dtype == b.dtype and a.nan_to_num(7).equal(b.nan_to_num(7)) for a, b in pairs)


def outside_of_the_body(model):
    """The share of output layers and new heads, which are left out on purpose."""
    report, inside = mixout.coverage(model), mixout.selection.body(model)
    heads = [layer.flops for layer in report.layers if not inside(layer.name, model.get_submodule(layer.name))]
    return sum(heads) / sum(layer.flops for layer in report.layers)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in BY_DEFAULT else pytest.mark.sweep) for n in architectures.names()]
)
def test_every_architecture(name, tmp_path):
    """Oracle: the plain model, which gives the same results in evaluation and gradients to the same parameters."""
    if (reason := architectures.left_out(name)) is not None:
        pytest.skip(reason)
    model = architectures.build(name)
    inputs = architectures.inputs(model)
    plain, expected = copy.deepcopy(model), evaluated(model, inputs)
    reached = trained(plain, inputs)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", mixout.LowCoverageWarning)
        mixout.apply_(model, Mixout(0.5), where=architectures.WHERE.get(name))
    share = mixout.coverage(model).flops_mixed
    said = [w for w in caught if w.category is mixout.LowCoverageWarning]
    assert share >= 0.5 or said or outside_of_the_body(model) + share >= 0.5
    assert same(evaluated(model, inputs), expected)
    for p in (0.1, 0.9, 0.5):  # the form in which a layer is computed depends on p
        mixout.set_p_(model, p)
        model.zero_grad()
        assert trained(model, inputs) == reached
    assert [str(site) for site in mixout.coverage(model).dropouts if site.kind != "left"] == []

    after = evaluated(model, inputs)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert list(again.state_dict()) == list(model.state_dict())
    assert same(again.state_dict().values(), model.state_dict().values())
    # Not bit for bit: where a loaded weight lies in memory decides how a convolution is computed.
    torch.testing.assert_close(evaluated(again, inputs), after, rtol=1e-3, atol=1e-3, equal_nan=True)
    mixout.remove_(model)
    assert same(evaluated(model, inputs), after)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


def test_what_is_swept_by_default_is_an_architecture():
    assert [name for name in BY_DEFAULT if architectures.left_out(name) is not None] == []


def of_tokens() -> dict[str, str]:
    """The classes of transformers that predict tokens, each with its architecture."""
    auto = transformers.models.auto.modeling_auto
    mappings = [getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in ("CAUSAL_LM", "MASKED_LM", "PRETRAINING")]
    return {kind: name for mapping in mappings for name, kind in mapping.items() if isinstance(kind, str)}


@pytest.mark.sweep
@pytest.mark.usefixtures("one_thread")
def test_labels_are_paired_with_logits_as_the_own_loss_of_every_language_model_does():
    """Penalties and Fisher information count the same rows as the model's own loss, of which the two ways differ."""
    ids = torch.randint(5, 60, (2, 16), generator=torch.Generator().manual_seed(0))
    labels = ids.where(torch.arange(16) % 3 > 0, -100)
    known = set()
    for kind, name in of_tokens().items():
        configuration = architectures.CONFIG_MAPPING[name]
        try:
            overrides = architectures.OVERRIDES.get(name, {})
            torch.manual_seed(0)
            model = getattr(transformers, kind)(configuration(**architectures.small(configuration(), overrides))).eval()
            with torch.no_grad():
                outputs = model(input_ids=ids, labels=labels)
        except Exception:  # it needs other inputs, or parts that are not small
            continue
        loss, logits = outputs.get("loss"), outputs.get("logits")
        encodes = getattr(model.config, "is_encoder_decoder", False)
        if loss is None or encodes or logits is None or logits.shape[:-1] != ids.shape:
            continue
        logits = logits.float()
        in_place = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
        shifted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()
        for value, is_next in ((in_place, False), (shifted, True)):
            if abs(loss.item() - value) < 1e-4:  # some have more terms in it
                assert predicts_next(model) == is_next, kind
                known.add(kind)
    assert len(known) > 150
