"""Makes the corpus of the embedded task: which library does this sentence come from?

    python benchmarks/docstring_corpus.py

writes docstrings.tsv and docstrings.LICENSES.txt into src/mixout/finetune/tasks/. Sentences are the first sentences of
docstrings, read with ``ast`` from the sources of installed packages, none of which is imported. Names of libraries are
masked and sentences that two libraries share are dropped. Every class has the same size, so that chance is one in
eight; which sentences are chosen, and on which side of the split they stand, is decided by their SHA-256.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

# Import name -> name of the distribution.
LIBRARIES = {
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
TRAIN_PER_CLASS = 600
DEV_PER_CLASS = 300
# Reading stops here: more than the two sizes need after the split and the removal of duplicates.
READ_PER_CLASS = 1050

# Code of others (vendored), copies of another library's interface, and tests.
SKIPPED = frozenset(
    {
        "_external",
        "_numpy",
        "_vendor",
        "array_api_compat",
        "array_api_extra",
        "externals",
        "test",
        "testing",
        "tests",
        "vendored",
    }
)
MASK = "library"
# Long names are masked wherever they occur (TorchScript, to_numpy), short ones only as words of their own.
NAMES = re.compile(
    r"py-?torch|torch|numpy|scipy|sci-?kits?[- ]?learn|scikit|sklearn|sympy|networkx|matplotlib|mpl_toolkits|pyplot"
    r"|pylab|hugging[- ]?face|pandas|(?<![a-z])transformers(?![a-z])|🤗",
    re.IGNORECASE,
)
ALIASES = re.compile(r"(?<![A-Za-z])(?:np|nx|plt|mpl|pd|hf|HF)(?![A-Za-z-])")
# A full stop ends a sentence when a capital or markup follows; "e.g. A" and "i.e. A" are not ends.
FIRST_SENTENCE = re.compile(r"(.+?(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)[.!?])(?=\s+[A-Z`*:]|$)")
# A signature, an argument list or an entry of one ("x (`int`): ..."), an underlined heading, an example.
NO_PROSE = re.compile(r"^[\w.]+\(|^Args:|\(`|---|===|>>>")
WORD = re.compile(r"[A-Za-z]{2,}")
# A package's own licence, not those of code that it bundles.
LICENSE = re.compile(r"dist-info/(licenses/)?(LICENSE|COPYING)(\.txt|\.md)?$")


def corpus(folders: Mapping[str, Path]) -> dict[str, list[tuple[str, str]]]:
    """Sentences of packages, by the names of their classes: pairs of class and text for "train" and "dev"."""
    found = {name: _candidates(folder) for name, folder in folders.items()}
    libraries = Counter(sentence.lower() for sentences in found.values() for sentence in sentences)
    own = {name: [s for s in sentences if libraries[s.lower()] == 1] for name, sentences in found.items()}
    train = {name: [s for s in sentences if not _in_dev(s)] for name, sentences in own.items()}
    dev = {name: [s for s in sentences if _in_dev(s)] for name, sentences in own.items()}
    return {"train": _balanced(train, TRAIN_PER_CLASS), "dev": _balanced(dev, DEV_PER_CLASS)}


def write(target: Path) -> None:
    """Write the corpus of the installed libraries, and their licences."""
    splits = corpus({name: _folder(name) for name in LIBRARIES})
    lines = [f"{split}\t{name}\t{text}" for split, rows in splits.items() for name, text in rows]
    (target / "docstrings.tsv").write_text("\n".join(["split\tlabel\ttext", *lines]) + "\n", encoding="utf-8")
    parts = ["The sentences in docstrings.tsv are taken from the docstrings of these packages, under their licences.\n"]
    for name in LIBRARIES.values():
        package = importlib.metadata.distribution(name)
        files = [file for file in package.files or () if LICENSE.search(file.as_posix())]
        texts = [Path(str(package.locate_file(file))).read_text(encoding="utf-8") for file in files]
        parts.append(f"{'=' * 100}\n{name} {package.version}\n{'=' * 100}\n\n" + "\n".join(texts))
    text = "\n".join(line.rstrip() for line in "\n".join(parts).splitlines()) + "\n"
    (target / "docstrings.LICENSES.txt").write_text(text, encoding="utf-8")


def sentence(docstring: str) -> str | None:
    """Return the first sentence of a docstring with names masked, or ``None`` where it has none of use.

    Example:
        >>> sentence("Convert a NumPy array to a torch.Tensor. Shares memory.")
        'Convert a library array to a library.Tensor.'
    """
    text = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
    if match := FIRST_SENTENCE.match(text):
        text = match[1]
    text = ALIASES.sub(MASK, NAMES.sub(MASK, text))
    prose = text[:1].isalpha() and not NO_PROSE.search(text)
    return text if prose and 20 <= len(text) <= 200 and len(WORD.findall(text)) >= 4 else None


def _folder(name: str) -> Path:
    """Find a package's folder without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"expected the sources of {name}, got none; install it")
    return Path(spec.submodule_search_locations[0])


def _candidates(folder: Path) -> list[str]:
    """Read sentences, each once, from as many files as needed; the files' order is that of their paths' hash."""
    names = (path.relative_to(folder) for path in folder.rglob("*.py"))
    files = [name for name in names if SKIPPED.isdisjoint(name.parts) and not name.name.startswith("test")]
    sentences: dict[str, str] = {}
    for name in sorted(files, key=lambda name: _sha256(name.as_posix())):
        for docstring in _docstrings(folder / name):
            if (text := sentence(docstring)) is not None:
                sentences.setdefault(text.lower(), text)
        if len(sentences) >= READ_PER_CLASS:
            break
    return list(sentences.values())


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module, of its classes and functions, and of methods; not of nested functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        try:
            module = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # a template or a file for another Python
    pending: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [module]
    while pending:
        node = pending.pop()
        if docstring := ast.get_docstring(node, clean=False):
            yield docstring
        if isinstance(node, (ast.Module, ast.ClassDef)):
            pending += [
                child for child in node.body if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            ]


def _balanced(classes: Mapping[str, list[str]], size: int) -> list[tuple[str, str]]:
    """Take the same number of each class, first hashes first, and mix the classes by hash."""
    size = min(size, *(len(sentences) for sentences in classes.values()))
    rows = [(name, text) for name, own in classes.items() for text in sorted(own, key=_sha256)[:size]]
    return sorted(rows, key=lambda row: _sha256(row[1]))


def _in_dev(text: str) -> bool:
    # The last digits, for the first ones decide the order: a third goes to dev.
    return int(_sha256(text)[-8:], 16) % 3 == 0


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    write(Path(__file__).parents[1] / "src" / "mixout" / "finetune" / "tasks")
