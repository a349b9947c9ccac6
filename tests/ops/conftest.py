"""What tests of the linear's forms share."""

import pytest

from mixout import passes


@pytest.fixture
def every_form(monkeypatch):
    """Small layers take torch's own operations; the other forms are what is looked at."""
    monkeypatch.setattr(passes, "NATIVE_ON_CPU_BELOW", 0)
