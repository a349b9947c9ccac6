"""Hooks of MkDocs: pages that are generated, and links that leave docs/.

- ``index.md`` is the README; ``CHANGELOG.md`` and ``CONTRIBUTING.md`` are those of the repository.
- ``api.md`` lists what ``mixout`` exports, ``cli.md`` the commands' help, ``study-file.md`` the keys of a study file.
- A notebook of docs/notebooks/ becomes a page with its outputs.
- A link from a page to a file outside docs/ becomes a page (Python, text) or a file (figures, tables) of the site.
- Terms of the glossary get its words as tooltips, on every page.
- ``schemas/`` has the JSON schemas of run and study files, for editors.
- ``llms.txt`` lists the pages with their first sentences, for programs that read them.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import re
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

import schemas

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Pages of the site that lie elsewhere in the repository.
ELSEWHERE = {"index.md": "README.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
# Words of the glossary that guides also use with their everyday meaning: no tooltip.
EVERYDAY = {"p", "cell", "kept", "points", "unit", "head", "body", "chance", "pull"}
# What the pages import by module.
MODULES = (
    "mixout.methods", "mixout.optim", "mixout.schedule", "mixout.functional", "mixout.delta", "mixout.choose",
    "mixout.integrations.huggingface", "mixout.integrations.lightning", "mixout.integrations.ddp",
)  # fmt: skip
# Of them, what a user does not need.
HIDDEN = {"MixingMethod", "as_methods", "check_schedule"}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and what pages link to."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, make in (("api.md", api), ("cli.md", command_line), ("study-file.md", study_file)):
        files.append(File.generated(config, page, content=make()))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        for one in notebook(DOCS / file.src_uri, config):
            files.append(one)
    for file in list(files.documentation_pages()):
        for _, link, _ in LINK.findall(file.content_string):
            target = _target(file.src_uri, link)
            if target and files.get_file_from_path(_place(target)) is None:
                files.append(_file(target, config))
    return files


def notebook(path: Path, config: MkDocsConfig) -> list[File]:
    """The page of a notebook, and its figures."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(path))
    place = path.relative_to(DOCS).with_suffix("")
    # Beside the page, under a name of its own: every notebook has an output_1_0.png.
    for name in resources["outputs"]:
        text = text.replace(f"]({name})", f"]({place.name}-{name})")
    figures = [
        File.generated(config, f"{place}-{name}", content=content) for name, content in resources["outputs"].items()
    ]
    return [File.generated(config, f"{place}.md", content=text), *figures]


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links that leave docs/ lead to the places that they have in the site."""

    def moved(match: re.Match[str]) -> str:
        target = _target(page.file.src_uri, match[2])
        if target is None:
            return match[0]
        fragment = urldefrag(match[2]).fragment
        depth = "../" * page.file.src_uri.count("/")
        return f"{match[1]}{depth}{_place(target)}{f'#{fragment}' if fragment else ''}{match[3]}"

    return LINK.sub(moved, markdown) + ("" if page.file.src_uri == "glossary.md" else tooltips())


def tooltips() -> str:
    """The glossary as abbreviations, which Markdown shows where the words stand."""
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\*\*(.+?)\*\*.*\n:   ((?:.+\n?)+)", glossary, re.MULTILINE)
    lines = ["\n"]
    for term, words in entries:
        if term.lower() not in EVERYDAY:
            # As it stands in a sentence, at its beginning, and of several.
            forms = {form + end for form in (term, term[0].lower() + term[1:]) for end in ("", "s")}
            lines += [f"*[{form}]: {' '.join(words.replace('`', '').split())}" for form in sorted(forms)]
    return "\n".join(lines) + "\n"


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt, and schemas for editors."""
    schemas.main(Path(config.site_dir) / "schemas")
    lines = ["# mixout", "", f"> {config.site_description}", ""]
    for title, page in _pages(config.nav or []):
        source = _source(page)
        if source.exists():
            first = _first(source.read_text(encoding="utf-8"))
        elif source.with_suffix(".ipynb").exists():
            cells = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
            first = _first("".join(cells[0]["source"]))
        else:
            first = "generated reference"
        lines.append(f"- [{title}]({page.removesuffix('.md')}.html): {first}")
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _pages(nav: list[Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for item in nav:
        for title, value in item.items():
            found += [(title, value)] if isinstance(value, str) else _pages(value)
    return found


def _first(text: str) -> str:
    """The first sentence of a page."""
    for block in text.split("\n\n"):
        if block.strip() and not block.lstrip().startswith(("#", "|", "!", "```", "<")):
            plain = LINK.sub("", " ".join(block.split())).replace("[", "").replace("**", "")
            return re.split(r"(?<=\.)\s", plain)[0].rstrip(":")
    return ""


def _source(page: str) -> Path:
    return ROOT / ELSEWHERE[page] if page in ELSEWHERE else DOCS / page


def _target(page: str, link: str) -> Path | None:
    """The file of the repository that a link means, unless MkDocs resolves it by itself."""
    path = urldefrag(link).url
    if not path or ":" in path:
        return None
    target = (_source(page).parent / path).resolve()
    if not target.is_relative_to(ROOT) or not target.exists():
        return None  # a broken link, which MkDocs reports
    resolved = page not in ELSEWHERE and target.is_relative_to(DOCS) and target.suffix != ".ipynb"
    return None if resolved else target


def _place(target: Path) -> str:
    """Where a file of the repository is in the site."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix().replace(".ipynb", ".md")
    name = target.relative_to(ROOT).as_posix()
    for page, source in ELSEWHERE.items():
        if name == source:
            return page
    if target.is_dir():
        return f"files/{name}.md"
    return f"files/{name}.md" if target.suffix in {".py", ".toml"} else f"files/{name}"


def _file(target: Path, config: MkDocsConfig) -> File:
    name, place, hidden = target.relative_to(ROOT).as_posix(), _place(target), InclusionLevel.NOT_IN_NAV
    if target.is_dir():
        listed = "\n".join(f"- `{path.name}`" for path in sorted(target.iterdir()) if not path.name.startswith("."))
        return File.generated(config, place, content=f"# {name}\n\n{listed}\n", inclusion=hidden)
    if target.suffix in {".py", ".toml"}:
        code = target.read_text(encoding="utf-8")
        language = "python" if target.suffix == ".py" else "toml"
        content = f"# {name}\n\n```{language}\n{code}\n```\n"
        return File.generated(config, place, content=content, inclusion=hidden)
    return File.generated(config, place, abs_src_path=str(target))


def api() -> str:
    """A page of directives for mkdocstrings: what ``mixout`` exports, in groups, then what is imported by module."""
    groups: dict[str, list[str]] = {"Functions": [], "Methods and options": [], "Errors and warnings": []}
    for value in _defined("mixout._public", "mixout"):
        if inspect.isfunction(value):
            title = "Functions"
        else:
            title = "Errors and warnings" if issubclass(value, (Exception, Warning)) else "Methods and options"
        groups[title].append(f"{value.__module__}.{value.__qualname__}")
    shown = {path for paths in groups.values() for path in paths}
    for module in MODULES:
        paths = [f"{value.__module__}.{value.__qualname__}" for value in _defined(module, module)]
        groups[module] = [path for path in paths if path not in shown]
    if empty := [title for title, paths in groups.items() if not paths]:
        raise ValueError(f"expected something to show in each group of the Python reference, got nothing in {empty}")
    lines = ["# Python reference", "", "What `import mixout` gives, then what is imported from a module by name.", ""]
    for title, paths in groups.items():
        lines += [f"## {title}", "", *(f"::: {path}\n" for path in paths)]
    return "\n".join(lines)


def _defined(module: str, package: str) -> list[Any]:
    """The classes and functions of a module that its package defines, by name."""
    names = vars(importlib.import_module(module))
    values = [names[name] for name in sorted(names, key=str.lower) if name[0] != "_" and name not in HIDDEN]
    kinds = [value for value in values if inspect.isclass(value) or inspect.isfunction(value)]
    return [value for value in kinds if value.__module__.startswith(package)]


def command_line() -> str:
    """The help of every command, and of the steps of a study."""
    from mixout import cli
    from mixout.cli.study import SUBCOMMANDS

    lines = ["# Command line", "", "What `mixout COMMAND --help` prints."]
    commands = [[], *([name] for name in cli.COMMANDS), *(["study", step] for step in SUBCOMMANDS)]
    for command in commands:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.main([*command, "--help"])
        lines += ["", f"## {' '.join(['mixout', *command])}", "", "```text", text.getvalue().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def study_file() -> str:
    """What a study file may hold: the form, then the keys of ``[settings]`` with defaults and meaning."""
    from mixout.finetune.settings import Settings
    from mixout.study import declaration

    form = re.search(r"::\n\n((?:    .*\n|\n)+)", inspect.getdoc(declaration) or "")
    if form is None:
        raise ValueError("expected the form of a study file in the docstring of mixout.study.declaration")
    lines = [
        "# Study files",
        "",
        "A study file is TOML. How to run one is on [Studies](studies.md).",
        "",
        "```toml",
        textwrap.dedent(form[1]).strip(),
        "```",
        "",
        "Each key below may stand under `[settings]`, in a `[[task]]` or `[[method]]`, or under `[factors]`. It is an",
        "option of `mixout finetune`, too.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    for field in fields(Settings):
        meaning = str(field.metadata.get("help", "")).replace("|", "\\|")
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        lines.append(f"| `{field.name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"
