"""One method against the baseline on one task: the value that :func:`mixout.study.analysis.compare.compare` fills."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A method against the baseline, on one task with one set of factors. Intervals are at 95 %.

    Args:
        task: of both.
        method: that is compared.
        baseline: with which.
        factors: of both.
        metric: name of the score.
        paired: whether restarts with the same number were compared; otherwise the samples are taken as independent.
        n: restarts of the method that enter; the number of pairs where ``paired``.
        n_baseline: restarts of the baseline that enter.
        left_out: runs of either that have no counterpart, or no score where chance is unknown.
        at_chance: runs of either without a score that entered as the chance score.
        mean: of the method.
        baseline_mean: of the baseline.
        sd: of the method; None for fewer than two restarts.
        baseline_sd: of the baseline.
        differences: method minus baseline for each pair; empty where not paired.
        difference: of the means.
        low: lower end of its BCa interval; None for fewer than three restarts.
        high: its upper end.
        p_permutation: two-sided permutation p of the difference.
        p_smallest: the smallest p that this number of restarts can reach.
        p_holm: p after Holm's correction over the family.
        family: number of comparisons in the family.
        improvement: P(X > Y) + P(X = Y) / 2 for a run of the method and a run of the baseline.
        improvement_low: lower end of its interval.
        improvement_high: its upper end.
        failed: failed runs of the method among those compared; None where chance is unknown.
        baseline_failed: those of the baseline.
        failure_runs: runs of the method among which they were counted.
        failure_runs_baseline: those of the baseline.
        failure_difference: failure rate of the method minus that of the baseline.
        failure_low: lower end of its Newcombe interval.
        failure_high: its upper end.
        level_difference: of the means over the runs that did not fail, as independent samples; None where there are
            none or chance is unknown.
        level_low: lower end of its BCa interval; None for fewer than three such runs on a side.
        level_high: its upper end.
        p_variance: Brown-Forsythe p for equal spreads; not corrected, and None where it says nothing.
        points: factor from the score's own unit to points: 100 where the task's scores are fractions, else 1.
        sentence: what the data show and what they do not.
    """

    task: str
    method: str
    baseline: str
    factors: dict[str, str]
    metric: str
    paired: bool
    n: int
    n_baseline: int
    left_out: int
    at_chance: int
    mean: float
    baseline_mean: float
    sd: float | None
    baseline_sd: float | None
    differences: tuple[float, ...]
    difference: float
    low: float | None
    high: float | None
    p_permutation: float
    p_smallest: float
    p_holm: float
    family: int
    improvement: float
    improvement_low: float
    improvement_high: float
    failed: int | None
    baseline_failed: int | None
    failure_runs: int
    failure_runs_baseline: int
    failure_difference: float | None
    failure_low: float | None
    failure_high: float | None
    level_difference: float | None
    level_low: float | None
    level_high: float | None
    p_variance: float | None
    points: float
    sentence: str
