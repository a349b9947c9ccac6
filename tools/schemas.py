"""JSON schemas of the two kinds of files that people write, for their editors; the site has them under ``schemas/``.

PYTHONPATH=src python tools/schemas.py FOLDER    # run.json: mixout finetune --config; study.json: a study file
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from mixout.cli import finetune
from mixout.finetune.settings import Settings, kind_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
Schema = dict[str, Any]


def setting(item: Field[Any]) -> Schema:
    """One setting, with its help text."""
    found: Schema = {"description": item.metadata["help"]}
    kind = kind_of(item)
    if item.metadata["choices"]:
        found["enum"] = list(item.metadata["choices"])
    elif item.name == "save":
        found["type"] = ["string", "integer"]
    elif kind is tuple:
        found |= {"type": "array", "items": {"type": "number" if item.name == "interpolate" else "string"}}
    else:
        found["type"] = TYPES[kind]
    if item.default not in (None, ()):
        found["default"] = item.default
    return found


def table(properties: Schema, *needed: str) -> Schema:
    """A table that holds these keys and no others."""
    return {"type": "object", "properties": properties, "required": list(needed), "additionalProperties": False}


def run() -> Schema:
    """Of a file for ``mixout finetune --config``: every option of the command, with dashes or underscores."""
    commands = argparse.ArgumentParser().add_subparsers()
    finetune.add(commands)
    known = {item.name: setting(item) for item in fields(Settings)}
    options: Schema = {}
    for action in commands.choices["finetune"]._actions:
        for option in action.option_strings:
            value = known.get(action.dest, {"description": action.help})
            options |= dict.fromkeys((option.lstrip("-"), option.lstrip("-").replace("-", "_")), value)
    return {"$schema": DIALECT, **table(options)}


def study() -> Schema:
    """Of a study file; see :mod:`mixout.study.declaration`."""
    settings = {item.name: setting(item) for item in fields(Settings)}
    text, whole, truth = ({"type": name} for name in ("string", "integer", "boolean"))
    head = {"name": text, "restarts": whole, "baseline": text, "base": text, "own_subsets": truth, "search": whole}
    tables = {
        "study": table({**head, "rate": {"const": "best"}}),
        "settings": table(settings),
        "factors": table({name: {"type": "array", "items": value} for name, value in settings.items()}),
    }
    for kind in ("task", "method"):
        own = {"name": settings[kind], "label": text} | {name: one for name, one in settings.items() if name != kind}
        tables[kind] = {"type": "array", "items": table(own, "name")}
    return {"$schema": DIALECT, **table(tables, "study")}


def main(place: Path) -> None:
    """Write both."""
    place.mkdir(parents=True, exist_ok=True)
    for name, schema in (("run", run()), ("study", study())):
        (place / f"{name}.json").write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
