"""What to say when a run's files cannot be written: one error for a full disk, whichever library met it.

Python, safetensors, tokenizers and torch each have their own exception for it. Whether there is room before a run
begins is asked in ``folder``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How Rust (safetensors, tokenizers) spells an error of the system, and what torch.save says.
_RUST = re.compile(r"\(os error \d+\)")
_TORCH = re.compile(r"inline_container|PytorchStreamWriter|iostream error|cannot be opened")


class WriteError(OSError):
    """A file of a run could not be written: the disk is full, or the file system went away."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn every failure to write in the body into a :class:`WriteError` that names ``folder``.

    Raises:
        WriteError: a file could not be written; other errors pass through.

    Example:
        >>> with writing(Path("out")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ...
        mixout.finetune.disk.WriteError: could not write to out: [Errno 28] No space left on device
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        if not _is_of_writing(error):
            raise
        raise WriteError(f"could not write to {folder}: {' '.join(str(error).split())}") from error


def _is_of_writing(error: Exception) -> bool:
    if isinstance(error, OSError):
        # What loggers raise without a network is an OSError too, but not the system's.
        return error.errno is not None
    pattern = _TORCH if isinstance(error, RuntimeError) else _RUST
    return pattern.search(str(error)) is not None
