"""Schedules of p, and the scheduler that follows them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mixout
from mixout import Mixout, PScheduler
from mixout.schedule import CosineRamp, LinearRamp

p = st.floats(0, 1)


@settings(deadline=None)
@given(p, p, st.integers(1, 1000), st.integers(-5, 2000))
def test_ramps_start_end_and_stay_between(start, end, steps, step):
    for kind in (LinearRamp, CosineRamp):
        schedule = kind(start, end, steps)
        assert schedule(0) == start
        assert schedule(steps) == pytest.approx(end, abs=1e-12)
        assert schedule(steps + 100) == schedule(steps)
        assert min(start, end) - 1e-12 <= schedule(step) <= max(start, end) + 1e-12


@settings(deadline=None)
@given(p, p, st.integers(1, 300))
def test_every_p_of_a_schedule_is_accepted(start, end, steps):
    """Rounding must not push p above 1 or below 0 at an end."""
    model = mixout.apply_(nn.Linear(2, 2), Mixout(0.5))
    for kind in (LinearRamp, CosineRamp):
        scheduler = PScheduler(model, kind(start, end, steps))
        for step in (steps - 2, steps - 1, steps):
            scheduler.load_state_dict({"steps": max(step, 0)})
    mixout.remove_(model)


def test_closed_forms():
    assert [LinearRamp(0.8, 0.0, 4)(k) for k in range(6)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    expected = [0.9 * (1 - math.cos(math.pi * k / 4)) / 2 for k in range(5)]
    assert [CosineRamp(0.0, 0.9, 4)(k) for k in range(5)] == pytest.approx(expected)


def test_the_scheduler_sets_p_of_all_layers():
    model = mixout.apply_(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), Mixout(0.5))
    scheduler = PScheduler(model, LinearRamp(0.0, 1.0, 2))
    found = [mixout.save_state(model)["p"]]
    for _ in range(3):
        scheduler.step()
        found.append(mixout.save_state(model)["p"])
    assert found == [0.0, 0.5, 1.0, 1.0]
    assert scheduler.p == 1.0
    with torch.no_grad():
        model[0].weight.add_(1)
    assert model[0](torch.eye(3)).equal(torch.eye(3) @ model[0]._mixed.anchor.tensor.t() + model[0].bias)


def test_a_resumed_scheduler_continues():
    model = mixout.apply_(nn.Linear(3, 3), Mixout(0.5))
    scheduler = PScheduler(model, LinearRamp(0.0, 0.8, 8))
    for _ in range(3):
        scheduler.step()
    state = scheduler.state_dict()
    other = PScheduler(mixout.apply_(nn.Linear(3, 3), Mixout(0.5)), LinearRamp(0.0, 0.8, 8))
    other.load_state_dict(state)
    assert other.p == scheduler.p == mixout.save_state(other.model)["p"]
    other.step()
    assert other.p == pytest.approx(0.4)


def test_a_schedule_may_be_any_function_of_the_step():
    class Steady:
        def __call__(self, step):
            return 0.25

    def halved(step):
        return 0.5**step

    for schedule, expected in ((Steady(), 0.25), (halved, 0.5), (lambda step: step / 10, 0.1)):
        model = mixout.apply_(nn.Linear(3, 3), Mixout(0.5))
        scheduler = PScheduler(model, schedule)
        scheduler.step()
        assert scheduler.p == mixout.state(model).p == expected


def test_p_is_checked():
    for bad in (lambda: LinearRamp(-0.1, 1, 4), lambda: CosineRamp(0, 2, 4)):
        with pytest.raises(ValueError, match=r"expected p in \[0, 1\]"):
            bad()
    for steps in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="expected steps to be an integer, at least 1"):
            LinearRamp(0.0, 1.0, steps)
    model = mixout.apply_(nn.Linear(3, 3), Mixout(0.5))
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\]"):
        mixout.set_p_(model, 1.01)
    with pytest.raises(TypeError, match="number"):
        mixout.set_p_(model, "0.5")
    for schedule in (None, 0.5, LinearRamp):
        with pytest.raises(TypeError, match=r"expected a schedule, such as mixout\.schedule\.LinearRamp\(0, 0\.7"):
            PScheduler(model, schedule)
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\]"):
        PScheduler(model, lambda _step: 1.5)
    with pytest.raises(TypeError, match="expected p to be a number"):
        PScheduler(model, lambda _step: None)
    assert mixout.save_state(model)["p"] == 0.5
    with pytest.raises(mixout.NotAppliedError):
        PScheduler(nn.Linear(3, 3), LinearRamp(0.5, 0.5, 1))


def test_gaussian_noise_has_no_p_of_one():
    model = mixout.apply_(nn.Linear(3, 3), mixout.Mixconnect(0.5, noise="gaussian"))
    with pytest.raises(ValueError, match="gaussian"):
        mixout.set_p_(model, 1.0)
    mixout.set_p_(model, 0.99)


@pytest.mark.parametrize("schedule", [LinearRamp(0.0, 1.0, 100), CosineRamp(1.0, 0.0, 100)], ids=repr)
def test_a_schedule_that_gaussian_noise_cannot_follow_is_refused_at_once(schedule):
    """Not at its last step, hours later."""
    model = mixout.apply_(nn.Linear(3, 3), mixout.Mixconnect(0.5, noise="gaussian"))
    with pytest.raises(ValueError, match="gaussian"):
        PScheduler(model, schedule)
    assert mixout.save_state(model)["p"] == 0.5
    PScheduler(mixout.apply_(nn.Linear(3, 3), Mixout(0.5)), schedule)
