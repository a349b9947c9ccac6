"""The small tasks of GLUE, from a directory of the usual TSV files or from the hub.

Class numbers are GLUE's own (RTE: 0 is entailment). The hub's validation split is the dev split; test sets have
no public labels and are not read. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural
Language Understanding", https://arxiv.org/abs/1804.07461.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixout.errors import InputError, needs
from mixout.finetune.tasks.base import Split, Task
from mixout.finetune.tasks.tables import Table, is_empty, number, read_tsv

HUB = "nyu-mll/glue"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one task is written down."""

    name: str  # GLUE's spelling, also the folder's
    texts: tuple[str, ...] = ("sentence1", "sentence2")  # columns of the hub
    columns: tuple[str, ...] = ("sentence1", "sentence2", "label")  # of the TSV file, in the same order
    labels: tuple[str, ...] | None = ("entailment", "not_entailment")  # by number; None for scores
    cells: tuple[str, ...] | None = ("0", "1")  # how the TSV file spells them; None: as ``labels``
    metrics: tuple[str, ...] = ("accuracy",)  # the primary one first
    header: tuple[str, ...] | None = None  # of a TSV file that does not name its columns
    matched: str = ""  # end of the dev set's name: MNLI has two; the one with the training genres is read


LAYOUTS = {
    "rte": Layout(name="RTE", cells=None),
    "mrpc": Layout(
        name="MRPC",
        columns=("#1 String", "#2 String", "Quality"),
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
    ),
    "cola": Layout(
        name="CoLA",
        texts=("sentence",),
        columns=("sentence", "label"),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        header=("source", "label", "mark", "sentence"),
    ),
    "stsb": Layout(
        name="STS-B", columns=("sentence1", "sentence2", "score"), labels=None, metrics=("spearman", "pearson")
    ),
    "sst2": Layout(name="SST-2", texts=("sentence",), columns=("sentence", "label"), labels=("negative", "positive")),
    "qnli": Layout(name="QNLI", texts=("question", "sentence"), columns=("question", "sentence", "label"), cells=None),
    "qqp": Layout(
        name="QQP",
        texts=("question1", "question2"),
        columns=("question1", "question2", "is_duplicate"),
        labels=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
    ),
    "mnli": Layout(
        name="MNLI",
        texts=("premise", "hypothesis"),
        columns=("sentence1", "sentence2", "gold_label"),
        labels=("entailment", "neutral", "contradiction"),
        cells=None,
        matched="_matched",
    ),
    "wnli": Layout(name="WNLI", labels=("not_entailment", "entailment")),
}


def load(key: str, *, data_dir: str | Path | None) -> Task:
    """Load a task, without ``data_dir`` from the hub; InputError for missing or malformed files."""
    layout = LAYOUTS[key]
    train, dev = _from_hub(key, layout) if data_dir is None else _from_folder(key, layout, Path(data_dir))
    origin = f"the hub data set {HUB} ({key})" if data_dir is None else "TSV files in GLUE's usual layout"
    return Task(
        name=layout.name,
        train=train,
        dev=dev,
        labels=layout.labels,
        metrics=layout.metrics,
        metric=layout.metrics[0],
        source=f"GLUE {layout.name}, from {origin}.",
    )


def key_of(name: str) -> str:
    """Return how ``LAYOUTS`` spells a name: "STS-B", "sts_b" and "stsb" are one task."""
    return name.lower().replace("-", "").replace("_", "")


def _from_folder(key: str, layout: Layout, data_dir: Path) -> tuple[Split, Split]:
    if not data_dir.is_dir():
        raise InputError(f"expected a folder of TSV files, got {str(data_dir)!r}, which is none; check data_dir")
    subfolders = [path for path in sorted(data_dir.iterdir()) if path.is_dir() and key_of(path.name) == key]
    folder = subfolders[0] if subfolders else data_dir
    train, dev = "train.tsv", f"dev{layout.matched}.tsv"
    missing = [name for name in (train, dev) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"expected {layout.name}/{train} and {layout.name}/{dev}, or both files directly, in {str(data_dir)!r}, "
            f"got no {' and no '.join(missing)}; check data_dir"
        )
    tables = [read_tsv(folder / name, header=layout.header) for name in (train, dev)]
    splits = [_split(layout, table) for table in tables]
    tables[0].check_varied(splits[0].label)
    return splits[0], splits[1]


def _split(layout: Layout, table: Table) -> Split:
    hint = f"is this {layout.name} in GLUE's own layout?"
    table.require(layout.columns, hint)
    *texts, cells = (table.columns[name] for name in layout.columns)
    for column in texts:
        good = (not is_empty(cell) for cell in column)
        table.check(good, column, " and ".join(layout.columns[:-1]), "remove the row, or get the file again")
    label: tuple[int | float, ...]
    if layout.labels is None:
        scores = [number(cell) for cell in cells]
        table.check((score is not None and 0 <= score <= 5 for score in scores), cells, "a score from 0 to 5", hint)
        label = tuple(score for score in scores if score is not None)
    else:
        names = layout.cells or layout.labels
        table.check((cell in names for cell in cells), cells, f"the label {' or '.join(names)}", hint)
        label = tuple(names.index(str(cell)) for cell in cells)
    return _texts(texts, label)


def _texts(columns: Sequence[Sequence[object]], label: tuple[int | float, ...]) -> Split:
    text, *pair = (tuple(map(str, column)) for column in columns)
    return Split(text=text, pair=pair[0] if pair else None, label=label)


def _from_hub(key: str, layout: Layout) -> tuple[Split, Split]:
    with needs("data", "GLUE from the hub"):
        import datasets
    try:
        splits: Mapping[str, Mapping[str, Sequence[str] | Sequence[int]]] = datasets.load_dataset(HUB, key)
    # An unreachable or refusing hub and offline mode raise OSError; an offline cache without the task ValueError.
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected the data set {HUB} ({key}) from the hub, got: {error}; "
            "check the connection, or name a folder of GLUE's TSV files: --data-dir DIR, in a study --set data_dir=DIR"
        ) from error
    label_type = float if layout.labels is None else int
    train, dev = (
        _texts([split[name] for name in layout.texts], tuple(label_type(cell) for cell in split["label"]))
        for split in (splits["train"], splits[f"validation{layout.matched}"])
    )
    return train, dev
