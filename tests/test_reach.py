"""Little is never reached in silence: the warning, the error, the dry run, new heads."""

import json
import warnings

import pytest
import torch
from torch import nn

import mixout
from mixout import Mixout, Where


class Frozen(nn.Module):
    """Raw parameters that mixout does not know."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(30, 30))
        self.scale = nn.Parameter(torch.ones(1, 30))

    def forward(self, x):
        return x @ self.kernel


def quiet(model, method=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return mixout.apply_(model, method or Mixout(0.5), **options)


def test_little_is_said_once_with_the_largest_module_and_what_to_do():
    model = nn.Sequential(nn.Linear(10, 10), nn.Conv1d(3, 3, 3), Frozen(), nn.Linear(10, 10))
    with pytest.warns(mixout.LowCoverageWarning) as caught:
        mixout.apply_(model, Mixout(0.5))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    # 200 of 200 + 27 + 900 multiply-adds
    assert "reaches 18% of the FLOPs of the pretrained body" in text
    assert "'2' (Frozen, 80%): raw parameters (kernel): mixout.register(Frozen, ...)" in text
    assert "print(mixout.coverage(model))" in text


def test_nothing_is_said_where_half_is_reached_or_little_is_meant():
    quiet(nn.Sequential(nn.Linear(10, 10), nn.Conv1d(3, 3, 3)))
    deep = nn.Sequential(*[nn.Linear(10, 10) for _ in range(5)])
    assert mixout.coverage(quiet(deep, where="^4$")).flops_mixed == 0.2
    frozen = nn.Sequential(nn.Linear(10, 10), Frozen())
    frozen[1].requires_grad_(False)
    quiet(frozen)
    quiet(nn.Sequential(nn.Linear(10, 10), Frozen()), mixout.AnchorDecay(1.0))
    tables = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    assert mixout.coverage(quiet(tables, where=Where(types=nn.Embedding))).mixed == ("0",)


def test_what_was_chosen_and_is_not_reached_is_said():
    class Own(nn.Linear):
        def forward(self, x):
            return x

    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": Own(9, 9), "c": nn.Linear(50, 50)})
    with pytest.warns(mixout.LowCoverageWarning, match=r"of where='a\|b'.*'b' \(Own, 84%\)"):
        mixout.apply_(model, Mixout(0.5), where="a|b")


def test_a_model_of_which_the_new_head_alone_would_be_mixed_is_an_error():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(mixout.NothingMixedError, match=r"beside '4', the last of the model.*'2' \(Conv2d, .*types="):
        mixout.apply_(model, Mixout(0.5))
    assert [type(m) for m in model] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.Flatten, nn.Linear]
    quiet(model, where="4")
    mixout.remove_(model)
    quiet(model, where=Where(types=(nn.Conv2d, nn.Linear)))


def test_a_dry_run_says_what_apply_would_and_leaves_the_model_plain():
    model = nn.Sequential(nn.Linear(10, 10), nn.Dropout(0.1), nn.GRU(10, 4), nn.Embedding(3, 4), nn.Linear(4, 4))
    before = [dict(vars(m)) for m in model.modules()]
    for method, where in [(Mixout(0.5), None), ("mixout(0.5)", "0"), ({"0": Mixout(0.1), "": Mixout(0.5)}, None)]:
        report = mixout.coverage(model, method, where=where)
        assert [dict(vars(m)) for m in model.modules()] == before
        assert [type(m) for m in model] == [nn.Linear, nn.Dropout, nn.GRU, nn.Embedding, nn.Linear]
        applied = mixout.apply_(model, method, where=where)
        assert mixout.coverage(applied) == report
        mixout.remove_(applied)


def test_a_dry_run_that_finds_nothing_is_a_report():
    report = mixout.coverage(nn.Sequential(nn.Embedding(3, 4)), Mixout(0.5))
    assert report.mixed == ()
    assert (
        "not a linear layer: left out by default; add it with where=mixout.Where(types=(nn.Linear, nn.Embedding))"
        in str(report)
    )
    assert "no method: 0 layers mixed" in str(mixout.coverage(nn.Linear(2, 2)))
    with pytest.raises(mixout.NothingMixedError, match=r"no linear layer; choose its 2 x Conv2d with types=Conv2d"):
        mixout.apply_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), Mixout(0.5))
    with pytest.raises(TypeError, match="expected a method"):
        mixout.coverage(nn.Linear(2, 2), 0.5)
    with pytest.raises(mixout.AlreadyAppliedError):
        mixout.coverage(mixout.apply_(nn.Linear(2, 2), Mixout(0.5)), Mixout(0.5))


def test_a_frozen_layer_in_a_dry_run():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4))
    assert mixout.coverage(model, Mixout(0.5)).mixed == ("1",)


def test_a_report_as_rows_as_json_and_in_a_notebook():
    report = mixout.coverage(
        nn.Sequential(nn.Linear(4, 3), nn.Linear(30, 30), nn.Dropout(0.1)), mixout.AnchorDecay(1.0)
    )
    assert [row["name"] for row in report.rows()] == ["0", "1"]
    assert [row["name"] for row in report.sorted("flops").rows()] == ["1", "0"]
    assert [row["name"] for row in report.sorted("name").rows()] == ["0", "1"]
    with pytest.raises(ValueError, match="expected a column among"):
        report.sorted("size")
    told = json.loads(json.dumps(report.to_dict()))
    assert told["layers"] == report.rows()
    assert told["methods"] == "anchor_decay(1.0)"
    assert told["dropouts"][0]["p"] == 0.1
    text = mixout.coverage(nn.Sequential(nn.Linear(4, 3)), Mixout(0.5))._repr_html_()
    assert text.startswith("<p>mixout(0.5): 1 layer mixed")
    assert "<td>1 x Linear</td><td>15</td>" in text
    assert "&#x27;" in mixout.coverage(nn.Sequential(nn.Linear(4, 3)), Mixout(0.5), where="x")._repr_html_()


def test_a_layer_that_the_anchor_lacks_is_new_and_left_out_by_default():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    pretrained = {"0.weight": torch.zeros(8, 8)}
    for method in (Mixout(0.5), mixout.AnchorDecay(1.0), [Mixout(0.5), mixout.AnchorDecay(1.0)]):
        quiet(model, method, anchor=pretrained)
        assert list(mixout.measure.anchored_weights(model)) == ["0.weight"]
        assert "1" in mixout.coverage(model).plain
        assert "a new layer: the anchor has no weight of this name" in str(mixout.coverage(model))
        mixout.remove_(model)
    with pytest.raises(mixout.AnchorMismatchError, match=r"'1\.weight'"):
        mixout.apply_(model, Mixout(0.5), anchor=pretrained, where="[01]")
    with pytest.raises(mixout.AnchorMismatchError, match=r"'0\.weight'"):  # most is missing: the wrong checkpoint
        mixout.apply_(model, Mixout(0.5), anchor={"1.weight": torch.zeros(2, 8)})
    with pytest.raises(mixout.AnchorMismatchError, match="shape"):
        mixout.apply_(model, Mixout(0.5), anchor={**pretrained, "1.weight": torch.zeros(3, 8)})
    assert not [m for m in model.modules() if any(key.startswith("_mix") for key in vars(m))]


def torchvisions():
    """As its classes are found: by their module; torchvision itself is not installed beside every torch."""

    class ResNet(nn.Module):
        __module__ = "torchvision.models.resnet"

        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
            self.fc = nn.Linear(8, 2)

    return ResNet(), {"layer.0", "layer.1"}


def timms(**options):
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=2, **options)


def around(model):
    """A module of the user around a backbone, with a head of its own, as in Lightning."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.head = model, nn.Linear(24, 2)

    return Around()


def test_a_new_head_is_neither_mixed_nor_decayed_by_default():
    model, body = torchvisions()
    assert set(mixout.coverage(model, Mixout(0.5)).mixed) == body
    assert set(mixout.measure.anchored_weights(mixout.apply_(model, mixout.AnchorDecay(1.0)))) == {
        f"{n}.weight" for n in body
    }
    wrapped = around(torchvisions()[0])
    assert set(mixout.coverage(wrapped, Mixout(0.5)).mixed) == {f"model.{name}" for name in body}
    assert "model.fc" in mixout.coverage(wrapped, Mixout(0.5), where=mixout.ALL).mixed


@pytest.mark.usefixtures("timm")
def test_timm_tells_its_head():
    for wrap, prefix in ((lambda m: m, ""), (around, "model.")):
        model = wrap(timms(num_classes=3))
        linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        heads = {f"{prefix}head"} | ({"head"} if prefix else set())
        assert set(mixout.coverage(model, Mixout(0.5)).mixed) == linear - heads
        decayed = mixout.measure.anchored_weights(mixout.apply_(model, mixout.AnchorDecay(1.0)))
        assert not [name for name in decayed if name.rpartition(".")[0] in heads]
    backbone = around(timms(num_classes=0))
    assert "head" not in mixout.coverage(backbone, Mixout(0.5)).mixed
