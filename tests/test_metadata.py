"""What is said of the project in several files is one thing: version, addresses, citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import mixout

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WRITTEN = [
    *(ROOT / name for name in ("README.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")),
    ROOT / "mkdocs.yml",
    *sorted((ROOT / ".github").rglob("*.*ml")),
]


def bibtex():
    """Fields of the README's entries, by key."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{(\w+),(.*?)\}\n(?=@|```|\})", text, re.MULTILINE | re.DOTALL)
    return {key: dict(re.findall(r"(\w+) = \{+(.*?)\}+(?=[,\s]|$)", fields)) for key, fields in entries}


def test_one_version():
    assert PROJECT["version"] == mixout.__version__ == CITATION["version"] == bibtex()["mixout"]["version"]
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_bibtex_and_citation_agree():
    paper, software = bibtex()["lee2020mixout"], bibtex()["mixout"]
    cited = CITATION["preferred-citation"]
    assert paper["title"] == cited["title"]
    assert paper["author"].split(" and ") == [f"{a['family-names']}, {a['given-names']}" for a in cited["authors"]]
    assert (paper["year"], paper["url"]) == (str(cited["year"]), cited["url"])
    assert paper["booktitle"] == cited["collection-title"]
    assert software["title"] == CITATION["title"]
    assert software.get("url") == CITATION.get("repository-code") == PROJECT["urls"].get("Repository")
    assert software["license"] == CITATION["license"] == PROJECT["license"]
    assert CITATION["authors"] == PROJECT["authors"]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_addresses_are_the_projects(path):
    """None is named before ``pyproject.toml`` has it: it may be somebody else's."""
    roots = tuple(url.rstrip("/") for name, url in PROJECT["urls"].items() if name != "Paper")
    found = re.findall(r"https://(?:github\.com|[\w-]+\.github\.io)/[\w./-]*", path.read_text(encoding="utf-8"))
    assert [url for url in found if not url.startswith(roots)] == []


def test_workflows_call_what_the_makefile_has():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = [ROOT / ".ci" / "run", *WORKFLOWS]
    called = {name for path in commands for name in re.findall(r"\bmake ([\w-]+)", path.read_text(encoding="utf-8"))}
    assert called
    assert called <= targets


def test_every_python_that_is_promised_is_tested():
    promised = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)}
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert promised == set(jobs["tests"]["strategy"]["matrix"]["python"])
    assert PROJECT["requires-python"] == f">={min(promised, key=lambda text: int(text[2:]))}"


def test_the_badges_say_what_the_package_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    (torch,) = re.findall(r"torch>=(\S+)", project["dependencies"][0])
    said = f"python {pythons[0]} to {pythons[-1]}, pytorch {torch} or newer, license {project['license']}"
    badges = (ROOT / "docs" / "badges.svg").read_text(encoding="utf-8")
    assert f'aria-label="{said}"' in badges
    assert " ".join(re.findall(r">([^<>\n]+)</text>", badges)) == said.replace(",", "")


def test_the_map_of_files_names_each_file_of_the_library_and_none_that_is_gone():
    """The package's own folder and ``ops``; the other folders are described as wholes."""
    package = ROOT / "src" / "mixout"
    named = set(re.findall(r"`([\w/]+\.py)`", (ROOT / "docs" / "design.md").read_text(encoding="utf-8")))
    files = {str(path.relative_to(package)) for place in (package, package / "ops") for path in place.glob("*.py")}
    assert {name for name in files if "__" not in name} - named == set()
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name for row in table for name in re.findall(r"`((?:[\w]+/)*\w+\.py)`", row)}
    layers = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert {name for name in listed if name not in layers and f"layers/{name}" not in layers} == set()
