"""The order of the runs and the statistics of the pairs, with a clock that is made up."""

import numpy as np
import pytest

from mixout.bench.pairs import compare, interleave


class Machine:
    """Runs that take a given time on a machine that becomes slower with every run, steadily."""

    def __init__(self, seconds: dict[str, float], drift: float = 0.0) -> None:
        self.seconds, self.drift, self.log, self.timed = seconds, drift, "", ""

    def run(self, name):
        def body():
            self.log += name
            return name

        return body

    def clock(self, run):
        name = run()
        self.timed += name
        return self.seconds[name] * (1 + self.drift * len(self.log))


def test_runs_are_interleaved_in_alternating_order_after_the_warm_up():
    machine = Machine({"b": 2.0, "v": 1.5})
    found = interleave(machine.run("b"), machine.run("v"), pairs=3, warmup=2, clock=machine.clock)
    assert machine.log == "bvbv" + "bvvbbv"
    assert machine.timed == "bvvbbv"
    assert (found.ratio, found.low, found.high, found.pairs, found.base, found.variant) == (0.75, 0.75, 0.75, 3, 2, 1.5)


def test_a_steady_drift_cancels():
    machine = Machine({"b": 1.0, "v": 1.0}, drift=0.01)
    found = interleave(machine.run("b"), machine.run("v"), pairs=10, warmup=0, clock=machine.clock)
    assert found.ratio == pytest.approx(1.0, abs=1e-3)
    assert found.low < 1 < found.high


def test_median_and_quartiles_are_numpys():
    rng = np.random.default_rng(0)
    base, variant = rng.uniform(1, 2, (2, 9))
    found = compare(list(base), list(variant))
    assert [found.low, found.ratio, found.high] == pytest.approx(np.percentile(variant / base, [25, 50, 75]))
    assert [found.base, found.variant] == pytest.approx([np.median(base), np.median(variant)])


def test_one_pair_has_no_spread():
    found = compare([2.0], [1.0])
    assert (found.low, found.ratio, found.high, found.pairs) == (0.5, 0.5, 0.5, 1)


@pytest.mark.parametrize("numbers", [{"pairs": 0, "warmup": 0}, {"pairs": 1, "warmup": -1}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(ValueError, match="expected pairs"):
        interleave(lambda: None, lambda: None, clock=lambda run: 1.0, **numbers)
