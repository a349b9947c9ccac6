"""plain: the model as it is, with the dropouts of its configuration. The null method, so that it can be compared.

For fine-tuning without any dropout use dropout(0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mixout.methods.method import Method, Site


@dataclass(frozen=True)
class Plain(Method):
    """Change nothing.

    Example:
        >>> Plain()
        Plain()
    """

    name: ClassVar[str] = "plain"

    def install_(self, site: Site) -> None:
        """Leave the model as it is."""
