"""``python -m mixout``: the same as the command ``mixout``."""

import sys

from mixout.cli import main

sys.exit(main())
