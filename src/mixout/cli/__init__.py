"""The entry point: ``mixout <command>``. Reads the command line, calls the command's module and prints.

Exit status: 0 done, 1 the machine failed (a full disk) or a claim does not hold, 2 wrong input, 130 interrupted, 141
the reader of the output has closed it.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import io
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from mixout import __version__
from mixout._names import nearest
from mixout.errors import InputError, MixoutError
from mixout.finetune.record import WriteError

# Each module has add(commands), which adds commands whose parsers set ``run``, (args) -> exit status.
_MODULES = ("finetune", "demo", "study")
COMMANDS = ("finetune", "choose", "predict", "demo", "study")
# Options of version 0.1 and of other trainers: the option that replaces them, and what to write.
_FORMER = {
    "--p": ("--method", "write p into the method, such as --method 'mixout(0.9)'"),
    "--lr": ("--learning-rate", "write --learning-rate"),
    "--fp16": ("--precision", "write --precision fp16"),
    "--bf16": ("--precision", "write --precision bf16"),
    "--warmup-steps": ("--warmup", "write --warmup with the share of the steps, such as 0.1"),
    "--known": ("--ledger", "copy the folder runs of the other ledger into this one, in place of its table"),
    "--overwrite-output-dir": ("--output-dir", "write --output-dir with another folder: no run is overwritten"),
}
# Commands of version 0.1, and what replaces them.
_MOVED = {
    "bench": "in a clone of the repository call: make bench",
    "dare": "use mixout.delta.drop_ in Python (examples/dare_curve.py), or benchmarks/dare.py in a clone",
    "verify": "in a clone of the repository call: make verify",
}
# Seconds that a process waits for the first one of its machine to report an error.
PATIENCE = 30.0
# argparse's message on an unknown command or value.
_CHOICE = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<known>.*)\)")


class Parser(argparse.ArgumentParser):
    """argparse, but complaints become :class:`InputError` and options are not abbreviated."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Report a wrong command line as every other wrong input is reported."""
        hint = ""
        if choice := _CHOICE.search(message):
            hint = nearest(choice["given"], re.findall(r"[^\s,']+", choice["known"]))
        raise InputError(f"{message}{hint or f'; see {self.prog} --help'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    for stream in (sys.stdout, sys.stderr):
        # A console or pipe with a code page has no sign for every letter of a file's name.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = _parse(sys.argv[1:] if argv is None else list(argv))
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader, such as head, has closed the pipe. The rest of the output is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MixoutError as error:
        # Any other exception is a bug, and must show where it is.
        if int(os.environ.get("LOCAL_RANK") or 0) > 0:
            # The first process of a machine most likely reports the same error, and its end ends this one. If this one
            # ended earlier, the launcher would stop the first one before its report.
            time.sleep(PATIENCE)
        print(f"mixout: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except WriteError as error:
        print(f"mixout: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mixout: interrupted", file=sys.stderr)
        return 130


def command() -> int:
    """:func:`main`, as a process of its own: the only one of a machine, or one of several that share a run."""
    status = main()
    if "torch" in sys.modules:
        _leave(status)
    return status


def _leave(status: int) -> None:
    """Leave the other processes of a launch, if there are any; this ends the process.

    What is left of a parallel model keeps Gloo's threads, which may hold tensors of the last exchange. Freed during
    Python's finalisation, these end the process by SIGABRT, and the launcher calls a finished run failed, or an error
    that was told a crash.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if status == 0:  # after an error the others may wait in an exchange
        distributed.destroy_process_group()
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()  # loggers may send what is left
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _parse(argv: list[str]) -> argparse.Namespace:
    if argv and argv[0] in _MOVED:
        raise InputError(f"mixout {argv[0]} is no command any more; {_MOVED[argv[0]]}")
    parser = Parser(prog="mixout", description="Fine-tune pretrained models with mixout and its family.")
    parser.add_argument("--version", action="version", version=f"mixout {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _MODULES:
        importlib.import_module(f"mixout.cli.{name}").add(commands)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions of a word; docs/finetune.md
        import argcomplete  # type: ignore[import-not-found]

        argcomplete.autocomplete(parser)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        # A subcommand sets its own parser.
        raise unknown_option(getattr(args, "parser", commands.choices[args.command]), unknown[0])
    return args


def unknown_option(command: argparse.ArgumentParser, word: str) -> InputError:
    """The error for a word that is not an option of the command."""
    options = sorted({option for action in command._actions for option in action.option_strings})
    name = word.partition("=")[0]
    replacement, advice = _FORMER.get(name.replace("_", "-"), ("", ""))
    # The nearest one without the dashes, which all options have in common.
    hint = f"; {advice}" if replacement in options else nearest(name.lstrip("-"), options)
    return InputError(f"expected an option of {command.prog}, got {word!r}{hint or f'; see {command.prog} --help'}")
