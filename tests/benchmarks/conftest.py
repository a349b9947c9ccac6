"""The scripts of benchmarks/ import each other by name, as when they are run."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if str(SCRIPTS) not in sys.path:
    sys.path.append(str(SCRIPTS))
