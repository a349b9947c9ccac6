"""fisher() against closed forms, and the decay that it weighs against the equation."""

import math

import pytest
import torch
import transformers
from torch import nn

import mixout
from mixout import AnchorDecay
from mixout.methods.likelihood import predictions

ETA, RATE = 0.1, 0.5


def logistic(classes=3, inputs=4):
    torch.manual_seed(0)
    model = nn.Linear(inputs, classes).double()
    x = torch.randn(60, inputs, dtype=torch.float64)
    return model, x


def normalised(exact):
    return exact / exact.mean()


def test_the_fisher_of_a_logistic_regression_is_its_closed_form():
    """E_y (y_k - p_k)^2 x_j^2 = p_k (1 - p_k) x_j^2, the mean over x; sampled 40 times."""
    model, x = logistic()
    p = model(x).softmax(1).detach()
    exact = torch.einsum("nk,nj->kj", p * (1 - p), x**2) / len(x)
    found = mixout.fisher(model, [x] * 40, examples=40 * len(x))["weight"]
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.double(), normalised(exact), rtol=0.12, atol=0)


def test_the_empirical_fisher_is_its_closed_form():
    """(y_k - p_k)^2 x_j^2 with the labels of the data: no chance in it."""
    model, x = logistic()
    y = torch.arange(len(x)) % 3
    residual = nn.functional.one_hot(y, 3) - model(x).softmax(1).detach()
    exact = normalised(torch.einsum("nk,nj->kj", residual**2, x**2) / len(x))
    for batches in ([(x, y)], zip(x.split(7), y.split(7), strict=True)):
        found = mixout.fisher(model, batches, labels="given")["weight"]
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=0)
    assert not exact.allclose(normalised(torch.einsum("nk,nj->kj", residual, x) ** 2), rtol=0.1)


def test_the_fisher_of_a_regression_is_the_squared_slope():
    """A normal law of variance 1: E (y - mu)^2 x_j^2 = x_j^2."""
    model, x = logistic(classes=1)
    found = mixout.fisher(model, [x] * 50, examples=3000)["weight"].double()
    torch.testing.assert_close(found, normalised((x**2).mean(0, keepdim=True)), rtol=0.1, atol=0)
    y = torch.randn(60, dtype=torch.float64)
    residual = y[:, None] - model(x).detach()
    found = mixout.fisher(model, [(x, y)], labels="given")["weight"].double()
    torch.testing.assert_close(found, normalised((residual**2 * x**2).mean(0, keepdim=True)), rtol=2**-8, atol=0)


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def gpt():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    )


def test_an_encoder_and_its_batches():
    """Weights of the body alone, mean 1 over all of them; nothing of the model changes, nor torch's generator."""
    model = bert().train()
    model.bert.embeddings.eval()
    ids = torch.randint(0, 30, (5, 6))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2, 0, 1])}
    flags = [module.training for module in model.modules()]
    before, state = {n: p.detach().clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    found = mixout.fisher(model, [batch])
    assert torch.get_rng_state().equal(state)
    assert [module.training for module in model.modules()] == flags
    assert all(p.grad is None and p.equal(before[n]) for n, p in model.named_parameters())
    assert set(found) == {n for n, p in model.named_parameters() if p.dim() == 2 and not n.startswith("classifier")}
    total = sum(one.double().sum() for one in found.values()) / sum(one.numel() for one in found.values())
    assert float(total) == pytest.approx(1.0, rel=1e-3)
    again = mixout.fisher(mixout.apply_(model, mixout.Mixout(0.9)), [batch])  # in eval mode nothing is mixed
    assert all(again[name].equal(one) for name, one in found.items())
    assert not mixout.fisher(model, [batch], seed=1)["bert.pooler.dense.weight"].equal(
        found["bert.pooler.dense.weight"]
    )
    assert list(mixout.fisher(model, [batch], where=r"pooler\.dense$")) == ["bert.pooler.dense.weight"]


def test_a_causal_model_is_asked_for_the_next_token():
    """Oracle: the loss of transformers, which shifts labels itself; one of two texts has a prompt and padding."""
    model = gpt().double().eval()
    ids = torch.randint(0, 11, (2, 6))
    labels = ids.clone()
    labels[1, :3] = -100
    labels[1, 5:] = -100
    exact, weights = {}, {n: p for n, p in model.named_parameters() if p.dim() == 2}
    for row, tokens in ((0, 5), (1, 2)):
        model.zero_grad()
        (model(input_ids=ids[row : row + 1], labels=labels[row : row + 1]).loss * tokens).backward()
        for name, weight in weights.items():
            exact[name] = exact.get(name, 0) + weight.grad**2
    mean = sum(one.sum() for one in exact.values()) / sum(one.numel() for one in exact.values())
    model.zero_grad(set_to_none=True)
    found = mixout.fisher(model, [{"input_ids": ids, "labels": labels}], labels="given")
    assert found.keys() == exact.keys()
    for name, one in exact.items():
        torch.testing.assert_close(found[name].double(), one / mean, rtol=2**-7, atol=1e-12, msg=name)


_SMALL = {"vocab_size": 40, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
          "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}  # fmt: skip
_BERT = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
_XLM = {"n_words": 40, "emb_dim": 8, "n_layers": 1, "n_heads": 2}


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [
        ("XLMWithLMHeadModel", "XLMConfig", _XLM),
        ("FlaubertWithLMHeadModel", "FlaubertConfig", _XLM),
        ("XLNetLMHeadModel", "XLNetConfig", {"vocab_size": 40, "d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 8}),
        ("BartForCausalLM", "BartConfig", _SMALL),
        ("MarianForCausalLM", "MarianConfig", {**_SMALL, "pad_token_id": 0}),
        ("TrOCRForCausalLM", "TrOCRConfig", {**_SMALL, "decoder_layers": 1}),
        ("BertForMaskedLM", "BertConfig", _BERT),
        ("BertLMHeadModel", "BertConfig", {**_BERT, "is_decoder": True}),
        ("BertGenerationDecoder", "BertGenerationConfig", {**_BERT, "is_decoder": True}),
        ("OPTForCausalLM", "OPTConfig", {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "ffn_dim": 8,
                                         "num_attention_heads": 2, "word_embed_proj_dim": 8}),
    ],
)  # fmt: skip
def test_labels_are_paired_with_logits_as_the_models_own_loss_does(kind, config, options):
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()
    ids = torch.randint(5, 40, (2, 6))
    labels = ids.where(torch.rand(2, 6) < 0.6, -100)
    labels[0, 0] = -100
    with torch.no_grad():
        outputs = model(input_ids=ids, labels=labels)
    found = predictions(model, {"labels": labels}, outputs)
    assert nn.functional.cross_entropy(found.logits, found.labels).item() == pytest.approx(
        outputs.loss.item(), rel=1e-5
    )


def test_rows_of_prompts_that_peft_puts_before_the_tokens_do_not_count():
    logits, labels = torch.arange(2 * 7 * 3.0).view(2, 7, 3), torch.tensor([[-100, 2, 1, 0], [-100, -100, 1, -100]])
    for batch in ({"labels": labels}, {"attention_mask": labels != -100}):
        found = predictions(nn.Identity(), batch, logits)
        assert found.logits.equal(logits[:, 3:][labels != -100])
    assert predictions(gpt(), {"labels": labels}, logits).logits.equal(logits[:, 3:-1][labels[:, 1:] != -100])


def test_tokens_of_one_text_are_drawn_apart():
    """The output layer of a language model: sum over its tokens of p_k (1 - p_k) h_j^2, without cross terms."""
    model = gpt().double().eval()
    ids = torch.randint(0, 11, (1, 6))
    with torch.no_grad():
        hidden = model.transformer(ids).last_hidden_state[0, :-1]
        p = model(ids).logits[0, :-1].softmax(1)
    untied = nn.Linear(8, 11, bias=False).double()
    untied.weight.data.copy_(model.lm_head.weight)
    model.lm_head = untied
    exact = normalised(torch.einsum("tk,tj->kj", p * (1 - p), hidden**2))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = mixout.fisher(model, [batch] * 400, examples=400, where="^lm_head$")["lm_head.weight"].double()
    large = exact > 0.3
    torch.testing.assert_close(found[large], exact[large], rtol=0.3, atol=0)


def test_which_rows_count():
    logits = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = torch.tensor([[-100, 2, 1, 0], [-100, -100, 1, -100]])
    plain, causal = nn.Identity(), gpt()
    cases = [
        (plain, {}, logits.flatten(0, 1), None),
        (plain, {"attention_mask": mask}, logits[mask == 1], None),
        (plain, {"labels": labels}, logits[labels != -100], [2, 1, 0, 1]),
        (causal, {}, logits[:, :-1].flatten(0, 1), None),
        (causal, {"attention_mask": mask}, torch.cat([logits[0, :3], logits[1, :1]]), None),
        (causal, {"attention_mask": mask, "labels": labels}, torch.cat([logits[0, :3], logits[1, 1:2]]), [2, 1, 0, 1]),
        (nn.Sequential(causal), {"labels": labels}, torch.cat([logits[0, :3], logits[1, 1:2]]), [2, 1, 0, 1]),
    ]
    for model, batch, expected, expected_labels in cases:
        found = predictions(model, batch, {"logits": logits})
        assert found.logits.equal(expected)
        assert (found.labels is None) if expected_labels is None else found.labels.tolist() == expected_labels
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2)
    )
    assert predictions(t5, {"labels": labels}, logits).labels.tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        ([], {}, ValueError, "at least one example"),
        ([torch.zeros(2, 4, dtype=torch.float64)], {}, ValueError, "mean square is 0"),
        ([torch.ones(2, 4, dtype=torch.float64)], {"labels": "given"}, ValueError, "batches with labels"),
        ([torch.ones(2, 4, dtype=torch.float64)], {"labels": "true"}, ValueError, "'sampled' or 'given'"),
        ([(torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 3))], {}, ValueError, "multi-label"),
        ([torch.ones(2, 4, dtype=torch.float64)], {"where": "nothing"}, mixout.NothingMixedError, "check where="),
        (["a text"], {}, TypeError, "one of type str .*return_tensors='pt'"),
        ([{"input_ids": [1, 2]}], {}, TypeError, "one of type dict"),
        ([(torch.ones(2, 4), None)], {}, TypeError, "one of type tuple"),
        ([torch.tensor(1.0)], {}, TypeError, "one of type Tensor"),
        ([[1.0, 2.0]], {}, TypeError, "one of type list"),
        ([None], {}, TypeError, "one of type NoneType"),
    ],
)
def test_what_has_no_fisher(batches, options, error, message):
    with pytest.raises(error, match=message):
        mixout.fisher(logistic()[0], batches, **options)


def test_what_lies_beside_the_tensors_is_handed_on():
    class Net(nn.Linear):
        def forward(self, x, **beside):
            assert beside == {} or beside == {"language": ["de", "en"], "name": "a"}
            return super().forward(x)

    torch.manual_seed(0)
    model, x = Net(3, 2), torch.randn(2, 3)
    found = mixout.fisher(model, [torch.ones(0, 3), {"x": x, "language": ["de", "en"], "name": "a"}], where="all")
    assert found["weight"].equal(mixout.fisher(model, [{"x": x}], where="all")["weight"])


def test_a_file_of_weights_that_is_not_there_is_no_anchor(tmp_path):
    method = AnchorDecay(radius=0.005, weights=tmp_path / "F.safetensors")
    with pytest.raises(FileNotFoundError, match=r"weights of anchor_decay as a safetensors file .*F\.safetensors"):
        mixout.apply_(nn.Linear(2, 2), method)


def test_outputs_without_logits():
    with pytest.raises(TypeError, match="outputs with logits"):
        mixout.fisher(bert().bert, [{"input_ids": torch.zeros(1, 3, dtype=torch.long)}])


# The decay that F weighs.


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()


def importance(model):
    generator = torch.Generator().manual_seed(3)
    return {
        name: (4 * torch.rand(p.shape, generator=generator)).bfloat16()
        for name, p in model.named_parameters()
        if p.dim() == 2
    }


def train(model, optimizer, penalty=None, after=None):
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(torch.randn(5, 4, generator=generator, dtype=torch.float64)).pow(2).sum()
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        if after is not None:
            after()


OPTIMIZERS = [torch.optim.SGD, torch.optim.AdamW]


def build(kind, model):
    return kind(model.parameters(), lr=ETA, **({"weight_decay": 0.0} if kind is torch.optim.AdamW else {}))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_each_entry_decays_with_its_own_strength(kind):
    """w <- u + exp(-eta rate F) (w - u)."""
    model, oracle = net(), net()
    weights = importance(oracle)
    mixout.apply_(model, AnchorDecay(RATE, weights=weights))
    start = {name: p.detach().clone() for name, p in oracle.named_parameters()}

    @torch.no_grad()
    def by_hand():
        for name, f in weights.items():
            parameter = oracle.get_parameter(name)
            left = torch.exp(-ETA * RATE * f.double())
            parameter.copy_(start[name] + left * (parameter - start[name]))

    train(model, build(kind, model))
    train(oracle, build(kind, oracle), after=by_hand)
    for a, b in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_coupled_it_is_ewc(kind):
    """L + (lambda / 2) sum F (w - u)^2, by autograd."""
    model, oracle = net(), net()
    weights = importance(oracle)
    mixout.apply_(model, AnchorDecay(RATE, decoupled=False, weights=weights))
    start = {name: p.detach().clone() for name, p in oracle.named_parameters()}

    def penalty():
        terms = (f.double() * (oracle.get_parameter(n) - start[n]) ** 2 for n, f in weights.items())
        return RATE / 2 * sum(one.sum() for one in terms)

    train(model, build(kind, model))
    train(oracle, build(kind, oracle), penalty)
    for a, b in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_an_unimportant_weight_is_free_and_an_important_one_is_held():
    model = mixout.apply_(
        nn.Linear(2, 1, bias=False), AnchorDecay(radius=0.1, weights={"weight": torch.tensor([[0.0, 4.0]])}), anchor=0
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.no_grad():
        model.weight.zero_()
    for _ in range(2000):
        model.weight.grad = torch.full_like(model.weight, -1.0)
        optimizer.step()
    x = 0.01 * 4 / 0.1
    assert model.weight.tolist()[0] == pytest.approx([20.0, 0.01 / math.expm1(x)], rel=1e-3)  # below 0.1 / 4
    assert mixout.radius_used(model)["weight"] == pytest.approx(x / math.expm1(x), rel=1e-3)


def test_from_a_masked_language_model_to_a_classifier_through_a_file(tmp_path):
    from safetensors.torch import save_file

    classifier = bert()
    masked = transformers.BertForMaskedLM(classifier.config)
    masked.bert.load_state_dict(classifier.bert.state_dict(), strict=False)
    ids = torch.randint(0, 30, (4, 6))
    weights = mixout.fisher(masked, [{"input_ids": ids}])
    assert not [name for name in weights if name.startswith("cls")]
    save_file(weights, tmp_path / "fisher.safetensors")
    with pytest.raises(mixout.AnchorMismatchError, match=r"bert\.pooler\.dense\.weight"):
        mixout.apply_(classifier, AnchorDecay(40, weights=weights))  # a masked language model has no pooler
    states = []
    for given in (weights, tmp_path / "fisher.safetensors", str(tmp_path / "fisher.safetensors")):
        mixout.apply_(classifier, AnchorDecay(40, weights=given), where=r"^bert\.(embeddings|encoder)")
        states.append(mixout.save_state(classifier))
        mixout.load_state_(classifier, states[-1])
        mixout.remove_(classifier)
    assert states[0]["importance"] == states[1]["importance"] == states[2]["importance"]
    assert states[1]["methods"] == states[2]["methods"] == f"anchor_decay(40.0, weights={tmp_path}/fisher.safetensors)"
    assert mixout.methods.parse(states[1]["methods"]) == (AnchorDecay(40, weights=tmp_path / "fisher.safetensors"),)
    other = {name: f + 1 for name, f in weights.items()}
    mixout.apply_(classifier, AnchorDecay(40, weights=other), where=r"^bert\.(embeddings|encoder)")
    with pytest.raises(mixout.AnchorMismatchError, match="same file of weights"):
        mixout.load_state_(classifier, states[0])


def test_weights_are_held_once_in_bfloat16_and_follow_the_model():
    model = net()
    weights = {name: f.double() for name, f in importance(model).items()}
    method = AnchorDecay(RATE, weights=weights)
    assert repr(method) == "AnchorDecay(rate=0.5, weights=<2 tensors>)"
    assert method == method
    assert method != AnchorDecay(RATE, weights=weights)
    assert isinstance(hash(method), int)
    mixout.apply_(model, method)
    target = mixout.methods.optimizer_hooks.targets(model)["0.weight"]
    assert target.importance.tensor.dtype is torch.bfloat16
    train(model.float().double(), build(torch.optim.SGD, model))
    assert target.importance.tensor.dtype is torch.bfloat16
    import copy

    twin = copy.deepcopy(model)
    shared = mixout.methods.optimizer_hooks.targets(twin)["0.weight"]
    assert shared.importance.tensor is target.importance.tensor
    assert mixout.state(twin).methods[0].weights is method.weights


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": {"weight": -torch.ones(2, 3)}}, ValueError, "at least 0, got others for 'weight'"),
        ({"weights": {"weight": torch.full((2, 3), math.nan)}}, ValueError, "finite"),
        ({"weights": {"weight": torch.ones(3, 2)}}, mixout.AnchorMismatchError, "shape"),
        ({"weights": {}}, mixout.AnchorMismatchError, "hold 'weight'"),
        ({"weights": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"weights": 3.0}, TypeError, "tensors by name"),
        ({"weights": {}, "selective": True}, ValueError, "no weights with selective=True"),
    ],
)
def test_weights_that_cannot_be_used(options, error, message):
    model = nn.Linear(3, 2)
    with pytest.raises(error, match=message):
        mixout.apply_(model, AnchorDecay(RATE, **options))
    assert mixout.coverage(model).methods == "no method"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_written_to_later_change_nothing(dtype):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    importance, before = {"0.weight": torch.ones(4, 4, dtype=dtype)}, model[0].weight.detach().clone()
    mixout.apply_(model, AnchorDecay(1.0, weights=importance), where=mixout.ALL, anchor=0)
    importance["0.weight"].zero_()
    model[0].weight.grad = torch.zeros(4, 4)
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    torch.testing.assert_close(model[0].weight.detach(), before * math.exp(-0.5))
