"""Tables of pages that show single results say what benchmarks/results/*.csv hold, to the last digit that they show."""

from __future__ import annotations

import re
from pathlib import Path

import pandas
import pytest

from mixout.finetune.defaults import MANY, WIDER, WIDEST

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?")


def read(name):
    return pandas.read_csv(ROOT / "benchmarks" / "results" / f"{name}.csv")


def rows(page, header):
    """The table whose header holds a text: of each row the first cell, and the numbers of the others."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("|") and header in line)
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        name, _, rest = line.strip("| ").partition(" | ")
        yield name.strip("`*"), NUMBER.findall(rest)


def quickstart():
    runs = read("quickstart").query("seed < 5").groupby(["learning_rate", "method"]).accuracy
    for rate, found in rows("quickstart.md", "without the line"):
        names = [(float(rate), "none"), (float(rate), "anchor_decay(radius=0.005)")]
        yield found, [getattr(runs, what)()[name] for name in names for what in ("mean", "min", "max")]


def stay_close(name, header, far, sign):
    """The best of five learning rates and one that is far too high: score and what is kept, means over the runs."""
    means = read(name).groupby(["method", "learning_rate"])[["score", "original"]].mean()
    written = {"`": "", "no dropout": "dropout(0.0)", ", interpolated at t = 0.5": " at t=0.5", "(40)": "(40.0)"}
    for method, found in rows("compared.md", header):
        for text, label in written.items():
            method = method.replace(text, label)
        best = means.loc[method].score.idxmax()
        at_best, at_far = (sign * means.loc[(method, rate)] for rate in (best, far))
        yield found, [at_best.score, best, at_best.original, at_far.score, at_far.original]


def classification():
    yield from stay_close("stay_close", "accuracy, best of five", 1.6e-3, 1)


def regression():
    yield from stay_close("stay_close_sts_b", "correlation, best of five", 1.6e-3, 1)


def regression_by_rate():
    """In a sentence below the table: the two decays from the lowest rate to the highest."""
    means = read("stay_close_sts_b").groupby(["method", "learning_rate"]).score.mean()
    page = " ".join((ROOT / "docs" / "compared.md").read_text(encoding="utf-8").split())
    [said] = re.findall(r"not steady here: (.*?)\. One run each", page)
    yield NUMBER.findall(said), [*means["decay, radius 0.005"], *means["decay, relative radius 0.1"]]


def language_model():
    yield from stay_close("stay_close_causal", "new text, best of five", 4e-3, -1)


def default_of_language_models():
    runs = read("stay_close_causal").query("learning_rate == 6e-4").groupby("method")[["score", "original"]].mean()
    labels = {"output_anchor(1.0)": "anchor on outputs", "anchor_decay(radius=0.025)": "anchor_decay(40.0)"}
    labels["anchor_decay(radius=0.005)"] = "decay, radius 0.005"
    for method, found in rows("causal-lm.md", "method, at 6e-4"):
        yield found, [*-runs.loc[labels.get(method, method)]]


def demo():
    runs = read("demo").pivot(index="method", columns="learning_rate", values="score")
    for name, found in rows("demo.md", "points lost"):
        yield found, [*runs.loc[name], 100 * (runs.loc[name].iloc[0] - runs.loc[name].iloc[-1])]


def demo_tie():
    runs = read("demo_tie").set_index("method")
    for name, found in rows("demo.md", "training seconds"):
        one = runs.loc[name]
        yield found, [one[key] for key in ("mean", "sd", "min", "max", "failed", "restarts", "seconds")]


def behind_a_search():
    """Where two methods were searched: how far default and plain are behind the best, by the rule; mean and most."""
    runs = read("defaults")
    means = 100 * runs.groupby(["model", "task", "rows", "rate", "method"]).score.mean()
    searched = means.drop("rule", level="rate").unstack("method").dropna()
    best = searched.max(axis=1).groupby(level=["model", "task", "rows"]).max()
    ruled = means.xs("rule", level="rate").unstack("method").loc[best.index]
    wide = (
        read("default_by_rows").query("rate == 'rule' and restart == 0").set_index(["model", "task", "rows", "method"])
    )
    wide = (100 * wide.score).unstack("method").reindex(best.index)
    few = best.index.get_level_values("rows") < MANY
    by_rows = ruled["anchor_decay(radius=0.005)"].where(few, wide[WIDER])
    ruled["default"] = wide[WIDEST].fillna(by_rows)  # of docstrings alone, which has eight classes
    behind = ruled.rsub(best.combine(ruled["default"], max), axis="index")
    for line, found in rows("finetune.md", "behind the best run,"):
        method = "plain" if "plain" in line else "default"
        yield found[:2], [behind[method].mean(), behind[method].max()]


def many_classes():
    """The default; as for few classes, where that was tried; the best without a method. In a sentence: four times."""
    runs = 100 * read("classes").set_index(["task", "rows", "method", "rate"]).score.sort_index()
    for name, found in rows("finetune.md", "many outputs, rows"):
        task, _, size = name.partition(", ")
        scores = runs.loc[task, int(size)]
        free = scores["dropout(0.0)"]
        assert free["0.0004" if "0.0004" in free else "rule"] == free.max()
        few = [scores[WIDER, "0.0001"]] if (WIDER, "0.0001") in scores else []
        yield found, [scores["auto", "rule"], *few, free.max()]
    page = " ".join((ROOT / "docs" / "finetune.md").read_text(encoding="utf-8").split())
    [said] = re.findall(r"times its rate the default has (.*?) with 400 rows\. The runs", page)
    yield NUMBER.findall(said), [*runs.xs(("auto", "0.0016"), level=["method", "rate"])]


def border_of_many_classes():
    """The default for many classes, at four times the rate, beside that for few."""
    tried = read("class_border").set_index(["model", "task", "rows", "method", "learning_rate"]).score.sort_index()
    runs = 100 * tried.loc["minilm"]
    for name, found in rows("finetune.md", "as for many classes"):
        task, _, size = name.partition(", ")
        cell = runs.loc[task, int(size.replace(",", ""))]
        few = "anchor_decay(radius=0.005)" if int(size.replace(",", "")) < MANY else WIDER
        yield found, [cell[WIDEST, 0.0004], cell[few, 0.0001]]
    page = " ".join((ROOT / "docs" / "finetune.md").read_text(encoding="utf-8").split())
    [said] = re.findall(r"With 100 rows of it all-mpnet-base-v2 has (.*?)\. The runs", page)
    base = 100 * tried.loc["all-mpnet-base-v2", "docstrings", 100]
    many, few = base[WIDEST, 0.00013], base["anchor_decay(radius=0.005)", 3.2e-5]
    yield NUMBER.findall(said), [many, few, base["plain", 0.00013]]


def few_layers():
    """By task and radius; and, in a sentence, of 400 rows of SST-2."""
    runs = 100 * read("small").query("rate == 'rule'").set_index(["task", "rows", "method"]).score
    methods = [*(f"anchor_decay(radius={radius})" for radius in ("0.005", "0.01", "0.02")), "plain"]
    for name, found in rows("finetune.md", "three layers, 100 rows"):
        yield found, [runs[name, 100, method] for method in methods]
    page = " ".join((ROOT / "docs" / "finetune.md").read_text(encoding="utf-8").split())
    [said] = re.findall(r"the default for so many rows has (.*?)\. With 100", page)
    yield NUMBER.findall(said), [runs["SST-2", 400, method] for method in ("auto", "plain")]
    [said] = re.findall(r"the default for many has (.*?)\. The runs", page)
    slow = 100 * read("small").query("rate == '0.0001' and task == 'docstrings'").set_index("method").score
    few = [slow["anchor_decay(radius=0.02)"], slow["plain"]]
    yield [one for one in NUMBER.findall(said) if one != "0.02"], [runs["docstrings", 100, WIDEST], *few]


def luck_of_choices():
    """In percent: another than the default where all are equal, and the better one where one is."""
    runs = 100 * read("choose_luck").set_index(["runs", "gap"])
    for name, found in rows("choose.md", "all are equal: another"):
        yield found, [runs.other[int(name), 0.0], runs.better[int(name), 0.05], runs.better[int(name), 0.1]]


def default_by_rows():
    """Of both methods the restarts that both have; and one at four times the rate, in a sentence."""
    runs = read("default_by_rows")
    ruled = runs.query("rate == 'rule'").pivot(index=["task", "rows", "restart"], columns="method", values="score")
    pairs = 100 * ruled[["anchor_decay(radius=0.005)", WIDER]].dropna()
    cells = pairs.groupby(level=["task", "rows"])
    for name, found in rows("finetune.md", "radius 0.01, no dropout"):
        task, _, size = name.partition(", ")
        key = task, int(size.replace(",", ""))
        yield found, [*cells.mean().loc[key], cells.size()[key]]
    page = " ".join((ROOT / "docs" / "finetune.md").read_text(encoding="utf-8").split())
    means = cells.mean().diff(axis=1)[WIDER].groupby(level="rows").mean()
    said = re.findall(
        r"is better: by ([\d.]+) points in the mean.*?by ([\d.]+) points in .*? by ([\d.]+) with 2,000", page
    )
    yield said[0], [-means[100], means[400], means[2000]]
    [said] = re.findall(r"with 400 rows, the second has (.*?)\. The runs are", page)
    high = 100 * runs.query("rate == '0.0004' and rows == 400").set_index("task").score
    yield NUMBER.findall(said.replace("SST-2", "").replace("STS-B", "")), [*high[re.findall(r"on ([\w-]+)", said)]]


def choices():
    runs = read("choose").set_index(["task", "rows"])
    for name, found in rows("choose.md", "best of the grid"):
        task, _, size = name.partition(", ")
        key = task, int(size.replace(",", ""))
        yield found[-3:], [*100 * runs.loc[key, ["chosen_score", "default_score", "grid_score"]]]


def dare():
    plain, mixed = (read(f"dare_sst2_{name}").groupby(["curve", "removed"]).score for name in ("plain", "mixout"))
    for curve, found in rows("dare.md", "dropout(0.0) | mixout(0.9)"):
        key = (curve, float(found[0]))
        spread = [] if curve == "interpolation" else ["std"]
        yield found[1:], [getattr(of, what)()[key] for of in (plain, mixed) for what in ("mean", *spread)]


COSTS = {
    "AnchorDecay(radius=0.005)": "decay, radius 0.005",
    "AnchorDecay(radius=0.005, weights=F)": "EWC, radius 0.005",
    "AnchorDecay(1.0, selective=True)": "selective decay",
    "OutputAnchor": "anchor on hidden states",
    "Mixout(0.7)": "mixout(0.7)",
    "Mixout(0.7, every=16, anchor_ema=0.99)": "moving anchor",
    "GradientMask(0.7)": "gradient_mask(0.7)",
    'GradientMask(0.75, unit="layer", every=20)': "layer sampling",
    "optim.MoFO": "MoFO",
    "LoRA": "LoRA, rank 8",
    "methods.Dropout(0.1)": "dropout(0.1)",
    "dropout(0.1)": "dropout(0.1)",
}


def costs():
    """The last column of the two overviews of the methods."""
    ratio = read("cost").query("task == 'docstrings'").set_index("method").ratio
    for page, header in (("methods.md", "extra memory"), ("../README.md", "step, times plain")):
        known = [name for name, _ in rows(page, header)]
        for name, found in rows(page, header):
            plain = re.sub(r"\]\(.*|[\[`]", "", name)
            label = COSTS.get(plain, COSTS.get(plain.partition("(")[0]))
            if label is not None:
                yield found[-1:], [ratio[label]]
        assert len(known) >= 8


def pull():
    """A row is a kind of text, measured or predicted."""
    file = read("pull").set_index(["texts", "p"])
    for (name, found), column in zip(rows("theory.md", "| texts | pull |"), ["measured", "predicted"] * 2, strict=True):
        runs = file.loc["trained on" if name == "trained on" else "not trained on"]
        yield found, [runs.loss.iloc[0], *runs[column]]


TABLES = [
    costs,
    pull,
    quickstart,
    classification,
    regression,
    regression_by_rate,
    language_model,
    default_of_language_models,
    demo,
    demo_tie,
    behind_a_search,
    many_classes,
    border_of_many_classes,
    few_layers,
    luck_of_choices,
    default_by_rows,
    choices,
    dare,
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_a_table_says_what_its_file_holds(table):
    checked = [*table()]
    assert checked
    for found, expected in checked:
        assert len(found) == len(expected), found
        for text, value in zip(found, expected, strict=True):
            digits = 9 if "e" in text else len(text.partition(".")[2])
            assert float(text) == pytest.approx(value, rel=0, abs=0.5 * 10**-digits + 1e-9)
