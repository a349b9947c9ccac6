"""The embedded task: which of eight libraries does this sentence come from?

Its 7,200 sentences are first sentences of docstrings, with the names of libraries masked, in docstrings.tsv beside this
file; the licences of the libraries are in docstrings.LICENSES.txt. benchmarks/docstring_corpus.py made both.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from mixout.finetune.tasks.base import Task
from mixout.finetune.tasks.files import Columns, task_of
from mixout.finetune.tasks.tables import read_tsv

# As installed where the corpus was made, by the names of the classes.
VERSIONS = {
    "matplotlib": "3.11.2",
    "networkx": "3.6.1",
    "numpy": "2.4.6",
    "scipy": "1.17.1",
    "sklearn": "1.9.1",
    "sympy": "1.14.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}


@functools.cache
def load() -> Task:
    """Read the task; at once afterwards in the same process."""
    table = read_tsv(Path(__file__).with_name("docstrings.tsv"))
    sides = table.columns["split"]
    tables = [table.take([row for row, side in enumerate(sides) if side == split]) for split in ("train", "dev")]
    versions = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    source = f"First sentences of docstrings in the sources of {versions}."
    task = task_of(tables, source, name="docstrings", columns=Columns(), metric="accuracy")
    return replace(task, metrics=("accuracy", "f1"))
