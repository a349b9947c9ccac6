"""The embedded task: on packages made for the test, where the answer is known, and on the real ones."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from mixout.errors import InputError, MissingExtraError
from mixout.finetune.metrics import chance
from mixout.finetune.tasks import docstrings, load_task


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages of sources that fail when they are imported."""

    def write(name, files):
        for path, source in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(docstrings, "LIBRARIES", {"left_": "left_", "right_": "right_"})
    monkeypatch.setattr(docstrings.importlib.metadata, "version", lambda name: "1.0")
    docstrings.load.cache_clear()
    yield write
    docstrings.load.cache_clear()


def numbered(word, count):
    return "raise SystemExit\n" + "".join(
        f'def f{i}():\n    """Return the {word} of number {i}."""\n' for i in range(count)
    )


def test_known_packages(packages):
    packages(
        "left_",
        {
            "__init__.py": '"""This sentence stands in   the\n    left package. And more."""\nraise SystemExit\n',
            "a.py": numbered("root", 40) + 'class C:\n    def m(self):\n        """A method of the left package."""\n',
            "b.py": '"""The two packages both say this."""\n' + numbered("root", 40),
            "tests/c.py": '"""A test that nobody wants here."""',
            "test_d.py": '"""Another test that nobody wants."""',
            "_vendor/e.py": '"""The code of somebody else entirely."""',
            "broken.py": '"""Not for this Python at all"""\nprint "x"\n',
            "escape.py": '"""An invalid escape \\d in the text."""\n',
        },
    )
    packages(
        "right_",
        {
            "__init__.py": "",
            "a.py": numbered("square", 200),
            "b.py": '"""the two packages BOTH say this."""\nasync def f():\n    """Await the end of the right one."""',
        },
    )
    task = docstrings.load()
    left = {f"Return the root of number {i}." for i in range(40)} | {
        "This sentence stands in the left package.",
        "A method of the left package.",
        r"An invalid escape \d in the text.",
    }
    right = {f"Return the square of number {i}." for i in range(200)} | {"Await the end of the right one."}
    own = [set(), set()]
    for split in (task.train, task.dev):
        sizes = Counter(split.label)
        assert sizes[0] == sizes[1] > 0
        for text, label in zip(split.text, split.label, strict=True):
            own[label].add(text)
    assert own[0] == left
    assert own[1] < right
    assert task.labels == ("left_", "right_")
    assert not set(task.train.text) & set(task.dev.text)
    assert load_task("docstrings") is task
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Wrap PyTorch's and pytorch-like torch.nn modules.", "Wrap library's and library-like library.nn modules."),
        ("Fill np.zeros, plt axes and nx graphs.", "Fill library.zeros, library axes and library graphs."),
        ("Convert from scikit-learn, sklearn or SciPy.", "Convert from library, library or library."),
        ("A Transformer of 🤗 Transformers by Hugging Face.", "A Transformer of library library by library."),
        ("Solve an NP-hard problem with inputs.", "Solve an NP-hard problem with inputs."),
        ("Call TorchScript and to_numpy on it.", "Call libraryScript and to_library on it."),
        ("Use one of them, e.g. The first. Then stop.", "Use one of them, e.g. The first."),
        ("First line goes\n    on here\n\n    Second paragraph.", "First line goes on here"),
        ("Does the line end here? Yes it does.", "Does the line end here?"),
        ("too short", None),
        ("Only three words here", "Only three words here"),
        ("a b c d e f g h i j k l m n o p", None),
        ("conv2d(input, weight, bias) -> Tensor of results", None),
        ("labels (`int`): The labels of the batch.", None),
        (">>> print(one, two, three, four)", None),
        ("word " * 60, None),
        ("", None),
    ],
)
def test_sentences(docstring, expected):
    assert docstrings.sentence(docstring) == expected


def test_missing_packages(packages):
    packages("left_", {"__init__.py": ""})
    with pytest.raises(MissingExtraError, match=r"got no right_; run: pip install \"mixout\[demo\]\""):
        docstrings.load()


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
    assert re.search(r"torch \d.*, transformers \d", real.source)


def test_another_process_reads_the_same_and_imports_none_of_it(real):
    program = (
        "import sys; from mixout.finetune.tasks import load_task; print(load_task('docstrings').fingerprint(), "
        "sorted({'matplotlib', 'networkx', 'sklearn', 'scipy', 'transformers'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [real.fingerprint(), "[]"]


def test_options(real):
    assert load_task("docstrings", metric="f1").metrics == ("f1", "accuracy")
    assert load_task("docstrings", metric="f1").fingerprint() == real.fingerprint()
    with pytest.raises(InputError, match=r"labels that are classes, got 'pearson'"):
        load_task("docstrings", metric="pearson")
    with pytest.raises(InputError, match=r"--data-dir only with a GLUE task, got it with the task 'docstrings'"):
        load_task("docstrings", data_dir="x")
