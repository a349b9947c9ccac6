"""The order of runs against schedules by hand, and the scores of a choice by simulation."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats

from mixout.choose import parts, search, verdict
from mixout.choose.search import Candidate, Search, Trained
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Split, Task, files

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 1e-4
DEFAULT = Candidate("anchor_decay(radius=0.005)", RATE)


def quality(candidate: Candidate) -> float:
    """Higher for mixout, and at twice the rate."""
    return 0.8 + 0.05 * ("mixout(0.7)" in candidate.method) - 0.02 * abs(math.log2(candidate.rate / (2 * RATE)))


def trainer(score=quality, seconds=10.0):
    """Runs without noise; each may be made once only."""
    made = Counter()

    def train(candidate, part, repeat):
        made[candidate, part, repeat] += 1
        assert made[candidate, part, repeat] == 1
        return Trained(score=score(candidate), predictions=(), seconds=seconds)

    return train


def through(budget=1e9, methods=search.METHODS, **options):
    found = Search(trainer(**options), budget, DEFAULT)
    return found, found.through(methods, lambda _: RATE)


def test_each_round_doubles_the_runs_of_the_better_half():
    found, ranked = through()
    assert ranked[0] == Candidate("mixout(0.7)", 2 * RATE)
    assert DEFAULT in ranked
    searched = {one: {split for split in runs if split[0] in search.SEARCHED} for one, runs in found.runs.items()}
    of_plain = {one.rate / RATE: len(splits) for one, splits in searched.items() if one.method == "plain"}
    # Five rates in one run each, three in two, two in four; of the best plain one more are judged.
    assert of_plain[0.25] == of_plain[0.5] == 1
    assert of_plain[4.0] >= 2
    assert of_plain[1.0] == 4
    assert of_plain[2.0] >= 4
    # Rates of the other methods lie around the best one of plain fine-tuning.
    assert {one.rate / RATE for one in found.runs if one.method == "dropout(0.1)"} == {1.0, 2.0, 4.0}
    judged = {one for one, runs in found.runs.items() if any(part in search.JUDGED for part, _ in runs)}
    assert judged == set(ranked)
    assert all(len(found.runs[one]) >= search.REPEATS * len(search.JUDGED) for one in ranked)


def test_a_method_that_is_named_twice_is_one():
    twice, once = (through(methods=["mixout(0.7)"] * times + ["dropout(0.1)"]) for times in (2, 1))
    assert (twice[1], twice[0].runs) == (once[1], once[0].runs)
    assert len({*twice[1]}) == 3


@pytest.mark.parametrize("runs", [3, 8, 20, 40, 70])
def test_the_budget_is_kept_with_the_final_training(runs):
    found, ranked = through(budget=10.0 * runs)
    final = 10.0 * parts.PARTS / (parts.PARTS - 1)
    assert found.spent + final <= found.budget
    assert found.spent == 10.0 * found.made
    # It is used, unless everything was tried.
    assert found.spent + final + 10.0 * (len(ranked) + 1) > found.budget or runs == 70
    assert ranked


def test_an_interrupted_search_takes_the_same_way_again():
    noise = np.random.default_rng(0).normal(0, 0.05, 10_000)
    known: dict = {}

    def train(candidate, part, repeat):
        key = candidate, part, repeat
        if key not in known:
            if len(known) == stop:
                raise KeyboardInterrupt
            known[key] = Trained(score=noise[hash(key) % 10_000], predictions=(), seconds=7.0 + part)
        return known[key]

    stop = None
    whole = Search(train, 400.0, DEFAULT).through(search.METHODS, lambda _: RATE)
    ways, known = dict(known), {}
    for stop in (0, 5, 17, 18, 30):  # noqa: B007  train() reads it
        with pytest.raises(KeyboardInterrupt):
            Search(train, 400.0, DEFAULT).through(search.METHODS, lambda _: RATE)
    stop = None
    assert Search(train, 400.0, DEFAULT).through(search.METHODS, lambda _: RATE) == whole
    assert [*known] == [*ways]


def test_the_nested_score_is_not_the_luck_of_the_best():
    # All candidates answer 70 % of all rows right, but each its own rows in every run: 1.0 or 0.4 of the time.
    own, nested, covered = [], [], 0
    for seed in range(80):
        draw = np.random.default_rng(seed)
        labels = tuple(draw.integers(0, 2, 100).tolist())
        rows = Split(text=tuple(map(str, range(100))), label=labels)
        task = Task(name="t", train=rows, dev=rows, labels=("a", "b"), metrics=("accuracy",), metric="accuracy",
                    source="")  # fmt: skip
        split = [list(range(part, 100, 5)) for part in range(5)]
        right: dict = {}

        def train(candidate, part, repeat, draw=draw, labels=labels, split=split, right=right):
            odds = right.setdefault(candidate, draw.choice([0.4, 1.0], 100))[split[part]]
            good = draw.random(20) < odds
            answers = np.where(good, np.array(labels)[split[part]], 1 - np.array(labels)[split[part]])
            return Trained(score=good.mean(), predictions=tuple(answers.tolist()), seconds=1.0)

        found = Search(train, 1e9, DEFAULT)
        ranked = found.through(search.METHODS, lambda _: RATE)
        worth = verdict.expected(found, ranked, task, split)
        value, gain = worth.value, worth.gain
        assert worth.rows == 60
        chosen = found.left_out(ranked)
        repeats = found.repeats([*chosen], ranked)

        def right(who, found=found, chosen=chosen, repeats=repeats, labels=labels, split=split):
            """Per judged row, how often the candidates of its part answer it right, over the repeats."""
            true = [labels[row] for part in chosen for row in split[part]]
            runs = [[a for part in chosen for a in found.runs[who(part)][part, r].predictions] for r in repeats]
            return (np.array(runs) == true).mean(axis=0)

        differences = right(chosen.__getitem__) - right(lambda _, found=found: found.default)
        student = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
        assert gain.value == pytest.approx(value.value - worth.default) == pytest.approx(differences.mean())
        if differences.any():
            assert (gain.low, gain.high) == pytest.approx(tuple(student))
        [best, *_] = found.ranked(ranked)
        own.append(found.mean(best, [*found.runs[best]]))
        nested.append(value.value)
        covered += value.low <= 0.7 <= value.high
    error = np.std(nested) / math.sqrt(80)
    assert np.mean(own) > 0.73
    assert np.mean(own) - 0.7 > 4 * np.std(own) / math.sqrt(80)
    assert abs(np.mean(nested) - 0.7) < 3 * error < 0.03
    assert covered >= 72


@pytest.mark.parametrize(("metric", "lowest"), [("f1", 0.0), ("matthews", -1.0)])
def test_intervals_hold_no_score_that_cannot_be(metric, lowest):
    labels = tuple([0, 1] * 5)
    rows = Split(text=tuple(map(str, range(10))), label=labels)
    task = Task(name="t", train=rows, dev=rows, labels=("a", "b"), metrics=(metric,), metric=metric, source="")
    split = [list(range(part, 10, 5)) for part in range(5)]
    draw = np.random.default_rng(1)

    def train(_candidate, part, _repeat):
        return Trained(score=draw.random(), predictions=tuple(draw.integers(0, 2, 2).tolist()), seconds=1.0)

    found = Search(train, 1e9, DEFAULT)
    worth = verdict.expected(found, found.through(search.METHODS, lambda _: RATE), task, split)
    value, gain = worth.value, worth.gain
    assert lowest <= value.low <= value.value <= value.high <= 1.0
    assert lowest - 1 <= gain.low <= gain.value <= gain.high <= 1 - lowest
    assert value.high - value.low > 0.5


@pytest.mark.parametrize(
    ("gap", "noise", "splits", "kept"),
    [
        (0.02, 0.0, 3, False),  # always better by as much
        (0.02, 0.03, 3, True),  # standard error 0.03 sqrt(1/3 + 1/4) = 0.023
        (0.03, 0.03, 3, False),
        (0.02, 0.03, 100, False),  # 0.03 sqrt(1/100 + 1/4) = 0.015
        (0.2, 0.0, 1, True),  # one run shows nothing
        (0.2, 0.01, 2, True),  # nor do two, one of which would have to tell whether the choice is right
        (-0.02, 0.0, 3, True),
    ],
)
def test_the_default_is_kept_unless_another_is_clearly_better(gap, noise, splits, kept):
    found, other = Search(trainer(lambda _: 0.5), 1e9, DEFAULT), Candidate("mixout(0.7)", RATE)
    draws = np.random.default_rng(0).normal(size=splits)
    # Of exactly that mean and standard deviation.
    draws = (draws - draws.mean()) / draws.std(ddof=1) if splits > 1 else draws * 0
    for candidate, differences in ((DEFAULT, 0 * draws), (other, gap + noise * draws)):
        found.runs[candidate] = {
            (search.JUDGED[n % 3], n // 3): Trained(score=0.7 + difference, predictions=(), seconds=1.0)
            for n, difference in enumerate(differences)
        }
        # Parts that have dropped candidates do not count: there the best of many was lucky.
        lucky = 0.9 if (candidate == DEFAULT) != kept else 0.5
        found.runs[candidate] |= {(part, 0): Trained(score=lucky, predictions=(), seconds=1.0) for part in (0, 1)}
    decided = found.decided([DEFAULT, other])
    assert decided == ([DEFAULT, other] if kept else [other, DEFAULT])
    assert found.decided([other, DEFAULT]) == decided


def test_the_default_is_compared_over_all_runs_that_both_have():
    """CoLA with 1,000 rows, as it was searched: a third finalist lacked the run in which the best one failed."""
    scores = {
        DEFAULT: {(0, 0): 0.092, (2, 0): -0.0141, (3, 0): 0.1136, (4, 0): -0.0118, (2, 1): 0.1534},
        Candidate("anchor", 4e-4): {(0, 0): 0.108, (2, 0): -0.0167, (3, 0): 0.1384, (4, 0): 0.0, (2, 1): -0.014},
        Candidate("plain", 4e-4): {(0, 0): 0.046, (1, 0): 0.0, (2, 0): 0.0, (3, 0): 0.0, (4, 0): 0.0},
    }
    found = Search(trainer(lambda _: 0.5), 1e9, DEFAULT)
    for candidate, splits in scores.items():
        found.runs[candidate] = {
            split: Trained(score=score, predictions=(), seconds=1.0) for split, score in splits.items()
        }
    finalists = [*scores]
    assert found.decided(finalists)[0] == DEFAULT
    for candidate in finalists:
        found.runs[candidate].pop((2, 1), None)
    assert found.decided(finalists)[0] == Candidate("anchor", 4e-4)


def test_a_default_without_a_score_is_not_kept():
    found, other = Search(trainer(lambda _: 0.5), 1e9, DEFAULT), Candidate("mixout(0.7)", RATE)
    for candidate, scores in ((DEFAULT, (0.9, math.nan)), (other, (0.6, 0.5))):
        found.runs[candidate] = {
            (part, 0): Trained(score=score, predictions=(), seconds=1.0) for part, score in enumerate(scores)
        }
    assert found.decided([DEFAULT, other])[0] == other


def test_a_candidate_without_a_score_is_not_chosen_wherever_it_failed():
    found, other = Search(trainer(lambda _: 0.5), 1e9, DEFAULT), Candidate("mixout(0.7)", RATE)
    for candidate, score in ((DEFAULT, 0.5), (other, 0.9)):
        found.runs[candidate] = {
            (part, 0): Trained(score=score + part / 1e3, predictions=(), seconds=1.0) for part in range(5)
        }
    assert found.decided([DEFAULT, other])[0] == other
    found.runs[other][0, 0] = Trained(score=math.nan, predictions=(), seconds=1.0)
    assert found.decided([DEFAULT, other])[0] == DEFAULT


def test_what_cannot_be_told_apart():
    found = Search(trainer(lambda _: 0.5), 1e9, DEFAULT)
    worse, other = Candidate("worse", RATE), Candidate("other", RATE)
    jitter = (0.0, 0.01, -0.01, 0.02, -0.02)
    higher = Candidate("higher", RATE)
    for one, gap in ((worse, -0.2), (other, 0.0), (higher, 0.2)):
        found.runs[one] = {
            (part, 0): Trained(score=0.8 + gap + jitter[part - (one == other)], predictions=(), seconds=1.0)
            for part in range(5)
        }
    found.runs[DEFAULT] = {(part, 0): Trained(score=0.8, predictions=(), seconds=1.0) for part in range(5)}
    rows = {row.candidate: row for row in verdict.table(found, DEFAULT)}
    verdicts = [rows[one].verdict for one in (DEFAULT, other, worse, higher)]
    assert verdicts == ["chosen", "cannot be told apart", "lower", "higher"]
    # Student's t interval by hand, widened by sqrt(1 + 5/4): t(0.975, 4) = 2.776.
    half = 2.776445 * np.std(jitter, ddof=1) / math.sqrt(5) * 1.5
    assert rows[worse].difference.high == pytest.approx(-0.2 + half, abs=1e-6)


@pytest.mark.parametrize(("lost", "expected"), [(1, "lower"), (3, verdict.FEW)])
def test_runs_without_a_score_are_left_out_of_a_comparison(lost, expected):
    found = Search(trainer(lambda _: 0.8), 1e9, DEFAULT)
    other = Candidate("other", RATE)
    for one, gap in ((DEFAULT, 0.0), (other, -0.2)):
        scores = [0.8 + gap + 0.001 * part if one == DEFAULT or part >= lost else math.nan for part in range(5)]
        found.runs[one] = {
            (part, 0): Trained(score=score, predictions=(), seconds=1.0) for part, score in enumerate(scores)
        }
    rows = {row.candidate: row for row in verdict.table(found, DEFAULT)}
    assert rows[other].verdict == expected


def test_parts_hold_every_class_and_keep_equal_texts_together(tmp_path):
    texts = [f"text {number // 2}" for number in range(60)]
    labels = [number // 2 % 3 for number in range(60)]
    rows = Split(text=tuple(texts), label=tuple(labels))
    task = Task(name="t", train=rows, dev=rows, labels=("10", "9", "x"), metrics=("f1",), metric="f1", source="")
    split = parts.split(task, 0)
    assert sorted(row for part in split for row in part) == list(range(60))
    for part in split:
        assert Counter(labels[row] for row in part) == {0: 4, 1: 4, 2: 4}
        assert not {texts[row] for row in part} & {texts[row] for row in range(60) if row not in part}
    *places, whole_place = parts.write(task, split, tmp_path, Settings())
    loaded = files.load(places[1], columns=files.Columns(), metric="f1")
    assert loaded.dev.label == tuple(labels[row] for row in split[1])
    whole = files.load(whole_place, columns=files.Columns(), metric="f1")
    assert [whole.labels[int(label)] for label in whole.train.label] == [task.labels[label] for label in labels]


def test_a_choice_that_the_judged_parts_are_too_few_for_is_given_no_score():
    """Of two judged parts the second alone speaks for the choice: without it the default would have been chosen."""
    labels = tuple(n % 2 for n in range(20))
    rows = Split(text=tuple(map(str, range(20))), label=labels)
    task = Task(name="t", train=rows, dev=rows, labels=("a", "b"), metrics=("accuracy",), metric="accuracy", source="")
    split, other = [list(range(part, 20, 5)) for part in range(5)], Candidate("dropout(0.0)", RATE)
    found = Search(lambda *_: Trained(score=0.5, predictions=(0,) * 4, seconds=1.0), 1e9, DEFAULT)
    for candidate, scores in ((DEFAULT, (0.5, 0.5)), (other, (0.5, 0.9))):
        found.runs[candidate] = {
            (part, 0): Trained(score=score, predictions=(0,) * 4, seconds=1.0)
            for part, score in zip(search.JUDGED, scores, strict=False)
        }
    assert set(found.left_out([other, DEFAULT]).values()) == {DEFAULT}
    assert verdict.expected(found, [other, DEFAULT], task, split) is None
    assert verdict.expected(found, [DEFAULT, other], task, split) is not None
