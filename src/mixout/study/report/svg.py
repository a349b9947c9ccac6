"""An SVG file of matplotlib as an element of a page: its colors follow the page's, its ids are its own.

Every color of :mod:`mixout.study.report.looks` becomes a CSS variable (ink becomes ``currentColor``), so that one
drawing is right in light, in dark and in print. Ids are prefixed where something refers to them and dropped elsewhere;
an id ``method-3`` becomes a class, by which the page finds a method in every figure. It draws nothing.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from mixout.study.report.looks import COLORS, INK, MUTED, PAPER, RULE

_VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
_VARIABLES |= {color: f"var(--m{number})" for number, color in enumerate(COLORS)}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_METHOD = re.compile(r"method-(\d+)")
# What the page decides: its font, and a size that follows the width of the column.
_DROPPED = {"font-family", "font"}


def inline(text: str, *, prefix: str, title: str = "", description: str = "") -> str:
    """The file's content as an ``<svg>`` element for an HTML page.

    Args:
        text: an SVG file as matplotlib writes it.
        prefix: put before each id; different for every figure of a page.
        title: a few words, read aloud and shown on hovering; a drawing without it is decoration and is hidden.
        description: the figure in words.

    Returns:
        HTML, all text escaped.
    """
    root = ElementTree.fromstring(text)
    _drop(root, {"metadata", "style"})
    for element in root.iter():
        element.tag = _bare(element.tag)
        element.attrib = {_bare(name): value for name, value in element.attrib.items()}
        # matplotlib indents and breaks lines inside of paths.
        element.text = element.text if (element.text or "").strip() else None
        element.tail = None
        if "d" in element.attrib:
            element.attrib["d"] = " ".join(element.attrib["d"].split())
    used = set(_references(root))
    for element in root.iter():
        _rewrite(element, used, prefix)
    # The rule of the file's own <style>, which in a page would reach everything else.
    root.attrib = {"viewBox": root.attrib["viewBox"], "stroke-linejoin": "round"}
    _name(root, prefix, title, description)
    return ElementTree.tostring(root, encoding="unicode")


def _bare(name: str) -> str:
    """A name without its namespace, which HTML does not know."""
    return name.rpartition("}")[2]


def _drop(root: ElementTree.Element, names: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if _bare(child.tag) in names:
                parent.remove(child)


def _references(root: ElementTree.Element) -> list[str]:
    found = []
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "href":
                found.append(value.removeprefix("#"))
            found += _REFERENCE.findall(value)
    return found


def _rewrite(element: ElementTree.Element, used: set[str], prefix: str) -> None:
    attributes = element.attrib
    identity = attributes.pop("id", "")
    if method := _METHOD.fullmatch(identity):
        attributes["class"] = f"method m{method[1]}"
    elif identity in used:
        attributes["id"] = f"{prefix}-{identity}"
    for name, value in attributes.items():
        if name == "href":
            attributes[name] = f"#{prefix}-{value.removeprefix('#')}"
        elif name == "style":
            attributes[name] = _restyle(value)
        attributes[name] = _REFERENCE.sub(rf"url(#{prefix}-\1)", attributes[name])


def _restyle(style: str) -> str:
    declarations = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name and name not in _DROPPED:
            declarations.append(f"{name}:{_VARIABLES.get(value.lower(), value)}")
    return ";".join(declarations)


def _name(root: ElementTree.Element, prefix: str, title: str, description: str) -> None:
    if not title:
        root.attrib["aria-hidden"] = "true"
        return
    root.attrib |= {"role": "img", "aria-labelledby": f"{prefix}-title", "aria-describedby": f"{prefix}-desc"}
    for at, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(tag, {"id": f"{prefix}-{tag}"})
        child.text = text
        root.insert(at, child)
