"""What a command says on stderr, without what optional packages say of themselves."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

_OTHERS = re.compile("torchao|register_constant|kernels-community")


@pytest.fixture
def own_lines() -> Callable[[str], list[str]]:
    """The lines of a text that are not from packages which transformers looks for as it is imported."""
    return lambda text: [line for line in text.splitlines() if not _OTHERS.search(line)]
