"""The embedded task: its rows, and the licences that they came with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mixout.errors import InputError
from mixout.finetune import tasks
from mixout.finetune.metrics import chance
from mixout.finetune.tasks import load_task

DISTRIBUTIONS = ("matplotlib", "networkx", "numpy", "scipy", "scikit-learn", "sympy", "torch", "transformers")


@pytest.fixture(scope="module")
def real():
    return load_task("docstrings")


def test_the_real_task_is_large_balanced_and_clean(real):
    for split in (real.train, real.dev):
        sizes = Counter(split.label)
        assert set(sizes) == set(range(8))
        assert len(set(sizes.values())) == 1
    assert len(real.train) > len(real.dev) >= 2000
    assert chance("accuracy", real.dev.label, classes=8) == 1 / 8
    everything = [text.lower() for text in real.train.text + real.dev.text]
    assert len(set(everything)) == len(everything)
    assert all(20 <= len(text) <= 200 and text == " ".join(text.split()) for text in everything)
    names = re.compile(r"torch|numpy|scipy|scikit|sklearn|sympy|networkx|matplotlib|\btransformers\b|\bnp\.")
    assert [text for text in everything if names.search(text)] == []
    assert (real.metric, real.metrics, real.labels[6]) == ("accuracy", ("accuracy", "f1"), "torch")
    assert "docstrings.LICENSES.txt" in real.source


def test_another_process_reads_the_same_and_imports_none_of_it(real):
    program = (
        "import sys; from mixout.finetune.tasks import load_task; print(load_task('docstrings').fingerprint(), "
        "sorted({'matplotlib', 'networkx', 'sklearn', 'scipy', 'transformers'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [real.fingerprint(), "[]"]


def test_the_data_are_those_of_the_published_runs(real):
    """The committed demo and its results were made with these rows, whatever is installed now."""
    assert real.fingerprint() == "08369006d2bf9bd6b6674c7ca70aedd61427c8d318c2322ba7cf0f38d9903dc2"


def test_every_library_is_named_with_its_licence(real):
    text = Path(tasks.__file__).with_name("docstrings.LICENSES.txt").read_text(encoding="utf-8")
    assert tuple(name.replace("scikit-learn", "sklearn") for name in DISTRIBUTIONS) == real.labels
    for distribution in DISTRIBUTIONS:
        assert re.search(rf"^={{100}}\n{distribution} \d+\.\S+.*\n={{100}}$", text, re.MULTILINE)
    parts = re.split(r"^={100}\n.*\n={100}$", text, flags=re.MULTILINE)[1:]
    assert len(parts) == 8
    assert all(re.search("Redistribution and use|LICENSE AGREEMENT|Apache License", part) for part in parts)
    assert all("Copyright" in part for part in parts)


def test_the_package_carries_text_and_licences():
    shipped = {file.name for file in Path(tasks.__file__).parent.glob("docstrings.*")}
    assert shipped == {"docstrings.tsv", "docstrings.LICENSES.txt"}
    declared = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"mixout.finetune.tasks" = ["docstrings.*"]' in declared


def test_options(real):
    assert load_task("docstrings", metric="f1").metrics == ("f1", "accuracy")
    assert load_task("docstrings", metric="f1").fingerprint() == real.fingerprint()
    with pytest.raises(InputError, match=r"labels that are classes, got 'pearson'"):
        load_task("docstrings", metric="pearson")
    with pytest.raises(InputError, match=r"data_dir only with a GLUE task, got it with the task 'docstrings'"):
        load_task("docstrings", data_dir="x")
