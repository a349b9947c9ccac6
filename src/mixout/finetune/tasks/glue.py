"""The small tasks of GLUE, from a directory of the usual TSV files or from the hub.

Class numbers are GLUE's own (RTE: 0 is entailment). The hub's validation split is the dev split; test sets have
no public labels and are not read. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural
Language Understanding", https://arxiv.org/abs/1804.07461.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixout.errors import InputError
from mixout.finetune.extras import needs
from mixout.finetune.tasks.base import Split, Task
from mixout.finetune.tasks.tables import Table, number, read_tsv

HUB = "nyu-mll/glue"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one task is written down.

    Attributes:
        name: GLUE's spelling, also the folder's.
        texts: the hub's columns: a sentence, or two.
        columns: the columns of the TSV file in the same order, and the label's.
        labels: class names by number; ``None`` for scores.
        cells: how the TSV file spells the classes, by number.
        metrics: the primary one first.
        header: the columns of a TSV file that does not name them.
    """

    name: str
    texts: tuple[str, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    cells: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    header: tuple[str, ...] | None = None


ENTAILMENT = ("entailment", "not_entailment")
SENTENCES = ("sentence1", "sentence2")
LAYOUTS = {
    "rte": Layout(name="RTE", texts=SENTENCES, columns=(*SENTENCES, "label"), labels=ENTAILMENT, cells=ENTAILMENT),
    "mrpc": Layout(
        name="MRPC",
        texts=SENTENCES,
        columns=("#1 String", "#2 String", "Quality"),
        labels=("not_equivalent", "equivalent"),
        cells=("0", "1"),
        metrics=("f1", "accuracy"),
    ),
    "cola": Layout(
        name="CoLA",
        texts=("sentence",),
        columns=("sentence", "label"),
        labels=("unacceptable", "acceptable"),
        cells=("0", "1"),
        metrics=("matthews", "accuracy"),
        header=("source", "label", "mark", "sentence"),
    ),
    "stsb": Layout(
        name="STS-B",
        texts=SENTENCES,
        columns=(*SENTENCES, "score"),
        labels=None,
        metrics=("spearman", "pearson"),
    ),
    "sst2": Layout(
        name="SST-2",
        texts=("sentence",),
        columns=("sentence", "label"),
        labels=("negative", "positive"),
        cells=("0", "1"),
    ),
    "qnli": Layout(
        name="QNLI",
        texts=("question", "sentence"),
        columns=("question", "sentence", "label"),
        labels=ENTAILMENT,
        cells=ENTAILMENT,
    ),
    "wnli": Layout(
        name="WNLI",
        texts=SENTENCES,
        columns=(*SENTENCES, "label"),
        labels=("not_entailment", "entailment"),
        cells=("0", "1"),
    ),
}


def load(key: str, *, data_dir: Path | None) -> Task:
    """Load a task.

    Args:
        key: a key of ``LAYOUTS``.
        data_dir: a folder that holds ``train.tsv`` and ``dev.tsv``, or a folder of the task's name that does;
            ``None`` for the hub.

    Raises:
        InputError: a file is missing or malformed, or the hub cannot be reached.
        MissingExtraError: the hub is asked for and ``datasets`` is not installed.
    """
    layout = LAYOUTS[key]
    train, dev = _from_hub(key) if data_dir is None else _from_folder(key, data_dir)
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


def _from_folder(key: str, data_dir: Path) -> tuple[Split, Split]:
    if not data_dir.is_dir():
        raise InputError(f"expected a folder of TSV files, got {str(data_dir)!r}, which is none; check --data-dir")
    inner = [path for path in sorted(data_dir.iterdir()) if path.is_dir() and key_of(path.name) == key]
    folder = inner[0] if inner else data_dir
    missing = [name for name in ("train.tsv", "dev.tsv") if not (folder / name).is_file()]
    if missing:
        name = LAYOUTS[key].name
        raise InputError(
            f"expected {name}/train.tsv and {name}/dev.tsv, or both files directly, in {str(data_dir)!r}, "
            f"got no {' and no '.join(missing)}; check --data-dir"
        )
    header = LAYOUTS[key].header
    tables = [read_tsv(folder / name, header=header) for name in ("train.tsv", "dev.tsv")]
    train, dev = (_split(LAYOUTS[key], table) for table in tables)
    if len(set(train.label)) < 2:
        raise InputError(
            f"{tables[0].where(0)}: expected at least 2 different labels to train on, got the same one in every row; "
            f"get the file again"
        )
    return train, dev


def _split(layout: Layout, table: Table) -> Split:
    """Pick a task's columns out of a TSV file."""
    *texts, label = table.positions(layout.columns)
    for index, row in enumerate(table.rows):
        if not all(str(row[at] or "").strip() for at in texts):
            raise InputError(
                f"{table.where(index)}: expected {' and '.join(layout.columns[:-1])}, got an empty cell; "
                "remove the row, or get the file again"
            )
    columns = [tuple(str(row[at]) for row in table.rows) for at in texts]
    return Split(
        text=columns[0],
        pair=columns[1] if len(columns) > 1 else None,
        label=tuple(_label(layout, row[label], table.where(index)) for index, row in enumerate(table.rows)),
    )


def _label(layout: Layout, cell: object, where: str) -> int | float:
    if layout.labels is None:
        score = number(cell)
        if score is not None and 0 <= score <= 5:
            return score
        expected = "a score from 0 to 5"
    else:
        if cell in layout.cells:
            return layout.cells.index(str(cell))
        expected = f"the label {' or '.join(layout.cells)}"
    raise InputError(f"{where}: expected {expected}, got {cell!r}; is this {layout.name} in GLUE's own layout?")


def _from_hub(key: str) -> tuple[Split, Split]:
    with needs("hf", "GLUE from the hub"):
        import datasets
    try:
        splits: Mapping[str, Mapping[str, Sequence[str] | Sequence[int]]] = datasets.load_dataset(HUB, key)
    # Unreachable, refused and offline all arrive as OSError; an offline cache without the task as ValueError.
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected the data set {HUB} ({key}) from the hub, got: {error}; "
            "check the connection, or give a directory of GLUE's TSV files with --data-dir"
        ) from error
    return _columns(key, splits["train"]), _columns(key, splits["validation"])


def _columns(key: str, split: Mapping[str, Sequence[str] | Sequence[int]]) -> Split:
    layout = LAYOUTS[key]
    texts = [tuple(str(cell) for cell in split[name]) for name in layout.texts]
    kind = float if layout.labels is None else int
    return Split(
        text=texts[0],
        pair=texts[1] if len(texts) > 1 else None,
        label=tuple(kind(cell) for cell in split["label"]),
    )
