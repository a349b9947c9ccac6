"""How long are the sentences of the pages? At most 18 words in the mean of a page, and none over 35.

    python tools/sentences.py            # every page; exit status 1 if one has too long ones
    python tools/sentences.py PAGE ...   # these pages

Counted are paragraphs and list items; code, tables, headings, links' targets and front matter are not.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEAN, MOST = 18.0, 35


def pages() -> list[Path]:
    """The README and every page."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def sentences(text: str) -> Iterator[str]:
    r"""The sentences of a page.

    Example:
        >>> list(sentences("# Title\n\nOne two. Three `x.y()` four?\n\n- item one\n- item [two](a.md), p = 0.5."))
        ['One two.', 'Three x four?', 'item one', 'item two, p = 0.5.']
    """
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*:]|\d+\.) )", text):
        if re.match(r"\s*(#|\||\!\[|    \S)", block):
            continue
        block = re.sub(r"^\s*([-*:]|\d+\.)\s+", "", block.strip())
        block = re.sub(r"\!?\[([^\]]*)\]\([^)]*\)", r"\1", block)
        block = " ".join(re.sub(r"`[^`]*`", "x", block).replace("*", "").split())
        yield from filter(None, re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(x])", block))


def lengths(text: str) -> list[tuple[int, str]]:
    """Words of each sentence, the longest last; what is one word is none."""
    counted = ((len(re.findall(r"[^\W_]+(?:['.,][^\W_]+)*", one)), one) for one in sentences(text))
    return sorted(one for one in counted if one[0] > 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Say what is too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    wrong = 0
    for page in parser.parse_args(argv).pages or pages():
        found = lengths(page.read_text(encoding="utf-8"))
        mean = sum(words for words, _ in found) / max(1, len(found))
        name = page.resolve().relative_to(ROOT) if page.resolve().is_relative_to(ROOT) else page
        if mean > MEAN:
            wrong += 1
            print(f"{name}: {mean:.1f} words a sentence in the mean, at most {MEAN:g} are wanted")
        for words, sentence in found:
            if words > MOST:
                wrong += 1
                print(f"{name}: {words} words, at most {MOST} are wanted: {sentence}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
