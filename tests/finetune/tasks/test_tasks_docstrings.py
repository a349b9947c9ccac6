"""The embedded task, and the script that made it: on packages made for the test, where the answer is known."""

from __future__ import annotations

import importlib.util
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

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "docstring_corpus.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("docstring_corpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(folder, files):
    """A package of sources that fail when they are imported."""
    for path, source in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source)
    return folder


def numbered(word, count):
    return "raise SystemExit\n" + "".join(
        f'def f{i}():\n    """Return the {word} of number {i}."""\n' for i in range(count)
    )


def test_known_packages(script, tmp_path):
    one = package(
        tmp_path / "left",
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
    other = package(
        tmp_path / "right",
        {
            "__init__.py": "",
            "a.py": numbered("square", 200),
            "b.py": '"""the two packages BOTH say this."""\nasync def f():\n    """Await the end of the right one."""',
        },
    )
    splits = script.corpus({"left": one, "right": other})
    left = {f"Return the root of number {i}." for i in range(40)} | {
        "This sentence stands in the left package.",
        "A method of the left package.",
        r"An invalid escape \d in the text.",
    }
    right = {f"Return the square of number {i}." for i in range(200)} | {"Await the end of the right one."}
    own = {"left": set(), "right": set()}
    for rows in splits.values():
        sizes = Counter(name for name, _ in rows)
        assert sizes["left"] == sizes["right"] > 0
        for name, text in rows:
            own[name].add(text)
    assert own["left"] == left
    assert own["right"] < right
    assert not {text for _, text in splits["train"]} & {text for _, text in splits["dev"]}


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
def test_sentences(script, docstring, expected):
    assert script.sentence(docstring) == expected


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


def test_every_library_is_named_with_its_licence(script):
    text = Path(tasks.__file__).with_name("docstrings.LICENSES.txt").read_text(encoding="utf-8")
    assert tuple(script.LIBRARIES) == load_task("docstrings").labels
    for distribution in script.LIBRARIES.values():
        assert re.search(rf"^={{100}}\n{distribution} \d+\.\S+.*\n={{100}}$", text, re.MULTILINE)
    parts = re.split(r"^={100}\n.*\n={100}$", text, flags=re.MULTILINE)[1:]
    assert len(parts) == 8
    assert all(re.search("Redistribution and use|LICENSE AGREEMENT|Apache License", part) for part in parts)
    assert all("Copyright" in part for part in parts)


def test_the_package_carries_text_and_licences():
    shipped = {file.name for file in Path(tasks.__file__).parent.glob("docstrings.*")}
    assert shipped == {"docstrings.tsv", "docstrings.LICENSES.txt"}
    declared = (SCRIPT.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"mixout.finetune.tasks" = ["docstrings.*"]' in declared


def test_options(real):
    assert load_task("docstrings", metric="f1").metrics == ("f1", "accuracy")
    assert load_task("docstrings", metric="f1").fingerprint() == real.fingerprint()
    with pytest.raises(InputError, match=r"labels that are classes, got 'pearson'"):
        load_task("docstrings", metric="pearson")
    with pytest.raises(InputError, match=r"data_dir only with a GLUE task, got it with the task 'docstrings'"):
        load_task("docstrings", data_dir="x")
