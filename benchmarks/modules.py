"""A task with many classes: which module is this sentence from? From the docstrings of the modules in this environment.

    python benchmarks/defaults.py run --tasks modules-16 modules-54 --rows 400

The classes are the modules with the most sentences. A sentence is the first of a docstring that has 25 letters or more;
one that several modules share is left out. Versions of the packages, which ``constraints.txt`` pins, decide which
sentences there are.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import random
from collections import Counter
from pathlib import Path

MODULES = """
    argparse asyncio collections concurrent.futures csv ctypes datetime decimal email fractions functools http.client
    http.server imaplib inspect ipaddress itertools logging mailbox math multiprocessing os pathlib pickle random re
    shutil smtplib socket sqlite3 ssl statistics string subprocess tarfile threading turtle unittest urllib.request uuid
    xml.dom.minidom zipfile jinja2 matplotlib.axes networkx numpy.fft numpy.linalg pandas scipy.optimize scipy.signal
    scipy.sparse scipy.stats sklearn.linear_model sklearn.metrics torch.distributions torch.nn torch.optim
"""
PER_CLASS = 150  # sentences at most, of which a fifth is the dev set
_LETTERS = 25, 300


def task(classes: int, folder: Path) -> Path:
    """The table ``modules-CLASSES.csv`` in ``folder``, made where it is not there yet."""
    place = folder / f"modules-{classes}.csv"
    if not place.exists():
        sentences = {name: _sentences(name) for name in MODULES.split()}
        shared = Counter(sentence for of_module in sentences.values() for sentence in of_module)
        own = {name: [text for text in of_module if shared[text] == 1] for name, of_module in sentences.items()}
        largest = sorted(own, key=lambda name: -len(own[name]))[:classes]
        draw = random.Random(0)
        rows = [(text, name) for name in largest for text in draw.sample(own[name], min(PER_CLASS, len(own[name])))]
        draw.shuffle(rows)
        with place.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return place


def _sentences(name: str) -> list[str]:
    """First sentences of what a module and its classes hold, each once."""
    module = importlib.import_module(name)
    members = [member for holder in vars(module).values() for member in (holder, *_members(holder))]
    package, sentences = name.partition(".")[0], []
    for member in members:
        text, origin = getattr(member, "__doc__", None), getattr(member, "__module__", None) or name
        if callable(member) and isinstance(text, str) and origin.startswith(package):
            first = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
            if len(first) >= _LETTERS[0]:
                sentences.append(first[: _LETTERS[1]])
    return list(dict.fromkeys(sentences))


def _members(holder: object) -> list[object]:
    return [*vars(holder).values()] if inspect.isclass(holder) else []
