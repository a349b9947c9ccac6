"""Does the wheel work where its declared dependencies are installed, and nothing else?

    python tools/wheel.py out/dist/mixout-0.2.0-py3-none-any.whl

Makes two environments in a temporary folder: torch alone, and ``[hf]``. The wheel is installed by pip. Its dependencies
are linked from the environment that runs this: nothing is downloaded. Then ``pip check`` and
``tools/smoke.py`` run there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from importlib.metadata import PathDistribution, distribution
from pathlib import Path
from zipfile import Path as ZipPath

from packaging.requirements import Requirement


def main(wheel: Path) -> None:
    """Try both."""
    for extra in ("", "hf"):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            link(needed(wheel, extra), place / "linked")
            python = environment(place)
            pip = (sys.executable, "-m", "pip", "--python", python)
            called(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
            called(*pip, "check")
            called(python, "-I", str(Path(__file__).with_name("smoke.py")), f"[{extra}]" if extra else "")


def needed(wheel: Path, extra: str) -> set[str]:
    """Names of the distributions that the wheel needs here, directly or not.

    Args:
        wheel: the file.
        extra: one of its extras, or "".
    """
    metadata = next(path for path in ZipPath(wheel).iterdir() if path.name.endswith(".dist-info"))
    own = PathDistribution(metadata)
    found: set[tuple[str, str]] = set()
    todo = [(requirement, extra) for requirement in own.requires or ()]
    while todo:
        text, of = todo.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": of}):
            continue
        # Its own dependencies, and those of each extra that is asked for.
        for key in {(requirement.name.lower(), one) for one in ("", *requirement.extras)} - found:
            found.add(key)
            asked = own if key[0] == "mixout" else distribution(key[0])
            todo += [(other, key[1]) for other in asked.requires or ()]
    return {name for name, _ in found} - {"mixout"}


def link(names: Iterable[str], place: Path) -> None:
    """Links to what these distributions have installed."""
    place.mkdir()
    for name in names:
        one = distribution(name)
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            target = place / top
            if not target.exists():
                target.symlink_to(Path(str(one.locate_file(top))).resolve())


def environment(place: Path) -> str:
    """The Python of an environment that holds nothing and sees the links."""
    venv.create(place / "venv")
    python = str(place / "venv" / "bin" / "python")
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    Path(packages, "linked.pth").write_text(f"{place / 'linked'}\n", encoding="utf-8")
    return python


def called(*words: str) -> None:
    """Run it, and end where it fails."""
    if subprocess.run(words, check=False).returncode:
        sys.exit(f"failed: {' '.join(words)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
