"""The schemas for editors take what the commands take, and name a key that is wrong."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import jsonschema
import pytest
import yaml
from tests.docs.test_docs_pages import ROOT  # puts tools/ on the path

import schemas
from mixout.cli import main

RUN, STUDY = (jsonschema.Draft202012Validator(schema) for schema in (schemas.run(), schemas.study()))
STUDIES = [*(files("mixout") / "studies").iterdir(), *ROOT.glob("benchmarks/evidence/*.toml")]


def test_the_schemas_are_schemas():
    for one in (RUN, STUDY):
        one.check_schema(one.schema)


@pytest.mark.parametrize("path", [path for path in STUDIES if path.name.endswith(".toml")], ids=lambda path: path.name)
def test_every_study_file(path):
    STUDY.validate(tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("options", [[], ["--recipe", "paper", "--interpolate", "0.5", "1", "--save", "7"]])
def test_the_configuration_that_is_printed(tiny_bert, tiny_task, capsys, options):
    fits = ["--max-length", "32"]  # the model has 64 positions
    assert main(["finetune", tiny_task, "--model", tiny_bert, *options, *fits, "--print-config"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["model"] == tiny_bert
    RUN.validate(values)


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (RUN, {"learning_rte": 1e-4}),
        (RUN, {"epochs": "three"}),
        (RUN, {"task_type": "translation"}),
        (STUDY, {"study": {"name": "a", "restarts": 2}, "method": [{"label": "no name"}]}),
        (STUDY, {"study": {"name": "a", "restart": 2}}),
        (STUDY, {"study": {"name": "a"}, "factors": {"learning_rate": 1e-4}}),
    ],
)
def test_a_mistake_is_found(schema, values):
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(values)


def test_other_names_of_options():
    RUN.validate({"num-train-epochs": 3, "output_dir": "out", "learning-rate": 1e-4})
