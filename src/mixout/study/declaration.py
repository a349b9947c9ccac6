"""A study file, TOML, becomes a :class:`mixout.study.grid.Study`.

::

    [study]
    name = "demo"
    restarts = 4                  # restart k uses seed k for every method, so that differences are paired
    baseline = "dropout(0.1)"     # optional: the label that the others are compared with
    own_subsets = true            # optional: restart k draws its own train_size examples; else all share the same
    rate = "best"                 # optional: each method runs at its own best value of the factor learning_rate,
    search = 3                    # chosen on the first 3 restarts and compared on the others

    [settings]                    # shared by all runs: any of `mixout finetune`'s options
    epochs = 5

    [[task]]
    name = "docstrings"           # as --task takes it; optional: label, and settings of this task

    [[method]]
    name = "mixout(0.5)"          # as --method takes it; optional: label, and settings of this method
    learning_rate = 1e-4
    interpolate = [0.5]           # also judge its models half way back to the start: "mixout(0.5) at t=0.5"

    [factors]                     # optional: every combination of these settings is run
    train_size = [100, 200]

Paths are relative to the folder of the file, or else to the current directory. Files that come with mixout are found
by their names: ``demo``. A file with ``base = "table1"`` under ``[study]`` starts from the study of that name. Its own
settings replace single settings of the base; its tasks, methods and factors replace those of the base as a whole.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from mixout._names import nearest
from mixout.errors import InputError
from mixout.finetune.settings import BARE, EMBEDDED, Settings
from mixout.finetune.tasks import is_path
from mixout.study.analysis.runs import text_of
from mixout.study.grid import Axis, Study, check_settings
from mixout.study.identity import PLACES

_SHIPPED = files("mixout") / "studies"
_HEAD = ("name", "title", "restarts", "baseline", "base", "own_subsets", "rate", "search")


def read(path: str | Path) -> Study:
    """The study that a TOML file declares.

    Raises:
        InputError: the file cannot be read, or its content is not a valid study; the message names the file.
    """
    comes_with_mixout = str(path) in shipped()
    try:
        text = (_SHIPPED / f"{path}.toml" if comes_with_mixout else Path(path)).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise InputError(
            f"expected a study file, got {str(path)!r}: {reason}{nearest(Path(path).stem, shipped())}; these come with "
            f"mixout: {', '.join(shipped())}"
        ) from error
    try:
        return parse(text, None if comes_with_mixout else Path(path).parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def shipped() -> list[str]:
    """The names of the study files that come with mixout."""
    return sorted(Path(file.name).stem for file in _SHIPPED.iterdir() if file.name.endswith(".toml"))


def parse(text: str, folder: Path | None = None) -> Study:
    """The study that the text of a TOML file in ``folder`` declares.

    Raises:
        InputError: the text is not TOML, or not a valid study.

    Example:
        >>> study = parse('''
        ... [study]
        ... name = "two"
        ... restarts = 2
        ... [settings]
        ... train_size = 16
        ... [[task]]
        ... name = "docstrings"
        ... [[method]]
        ... name = "mixout(0.5)"
        ... ''')
        >>> [str(run) for run in study.runs()]
        ['docstrings, mixout(0.5), restart 0', 'docstrings, mixout(0.5), restart 1']
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"expected TOML, got what does not parse: {error}") from error
    tables = _complete(tables)
    if folder is not None:
        tables = _located(tables, folder)
    head = tables.get("study", {})
    for name in ("name", "restarts"):
        if name not in head:
            raise InputError(f"expected {name} under [study], got none; add it")
    return Study(
        **{name: value for name, value in head.items() if name != "base"},
        tasks=_axes(tables, "task"),
        methods=_axes(tables, "method"),
        settings=tables.get("settings", {}),
        factors=tables.get("factors", {}),
    )


def _complete(tables: dict[str, Any]) -> dict[str, Any]:
    """The tables of a file, completed by those of the study that it names as its base."""
    _check_keys("a study file", tables, ("study", "settings", "task", "method", "factors"))
    for name in ("study", "settings", "factors"):
        if not isinstance(tables.get(name, {}), dict):
            raise InputError(f"expected [{name}] as a table, got {tables[name]!r}")
    for kind in ("task", "method"):
        entries = tables.get(kind, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"expected [[{kind}]] with two brackets, once for each {kind}, got {entries!r}")
    head = tables.get("study", {})
    _check_keys("[study]", head, _HEAD)
    if "base" not in head:
        return tables
    # A shipped study, not any path: files that name each other would recurse without end.
    if head["base"] not in shipped():
        raise InputError(
            f"expected base as a study that comes with mixout ({', '.join(shipped())}), "
            f"got {head['base']!r}{nearest(str(head['base']), shipped())}"
        )
    base = _complete(tomllib.loads((_SHIPPED / f"{head['base']}.toml").read_text(encoding="utf-8")))
    merged = {name: {**base.get(name, {}), **tables.get(name, {})} for name in ("study", "settings")}
    return {**base, **tables, **merged}


def _located(tables: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The tables with paths that begin in ``folder``, where something lies there; the names that mixout knows stay."""

    def located(name: str, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, list):  # of a factor
            return [located(name, item) for item in value]
        known = value == EMBEDDED if name == "model" else name in ("task", "name") and not is_path(str(value))
        beside = folder / str(value)
        # os.path.exists, unlike Path.exists, returns False for names that no file can have.
        return str(beside) if value and not known and os.path.exists(beside) else value

    def with_paths(table: Mapping[str, Any], names: Sequence[str] = PLACES) -> dict[str, Any]:
        return {name: located(name, value) if name in names else value for name, value in table.items()}

    return {
        **tables,
        "task": [with_paths(entry, (*PLACES, "name")) for entry in tables.get("task", [])],
        "method": [with_paths(entry) for entry in tables.get("method", [])],
        "settings": with_paths(tables.get("settings", {})),
        "factors": with_paths(tables.get("factors", {})),
    }


def _check_keys(where: str, table: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for name in table:
        if name not in allowed:
            raise InputError(f"expected {where} to hold {', '.join(allowed)}, got {name!r}{nearest(name, allowed)}")


def _axes(tables: Mapping[str, Any], kind: str) -> list[Axis]:
    entries = enumerate(tables.get(kind, []), start=1)
    return [_axis(kind, f"[[{kind}]] {number}", dict(entry)) for number, entry in entries]


def _axis(kind: str, where: str, entry: dict[str, Any]) -> Axis:
    names = [key for key in ("name", kind) if key in entry]
    if len(names) != 1:
        raise InputError(f"{where}: expected one name, got {' and '.join(names) or 'none'}; write name = ...")
    name, label = entry.pop(names[0]), entry.pop("label", None)
    check_settings(where, entry, also=("name", "label"))
    try:
        # Writes the method in its canonical spelling, and finds errors while the place in the file is known.
        canonical = getattr(Settings(**entry, **{kind: name}), kind)
        # The usual radius depends on the type of task, which may be named elsewhere in the file.
        usual = kind == "method" and any(bare[1] == "anchor_decay" for bare in BARE.finditer(str(name)))
        entry[kind] = name.strip() if usual else canonical
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if label is None and kind == "task":
        label = Path(name).name if is_path(name) else name
    elif label is None:
        # Interpolated models get labels of their own.
        extras = [f"{key} {text_of(value)}" for key, value in entry.items() if key not in (kind, "interpolate")]
        label = ", ".join([entry[kind], *extras])
    return Axis(label=label, settings=entry)
