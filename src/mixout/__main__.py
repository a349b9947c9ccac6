"""``python -m mixout``: the same as the command ``mixout``."""

import sys

from mixout.cli import command

sys.exit(command())
