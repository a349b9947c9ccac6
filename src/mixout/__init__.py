"""Mixout and its family: fine-tune a pretrained model and stay close to what it knew.

import mixout
mixout.apply_(model, mixout.Mixout(p=0.9))  # train as you always do
mixout.remove_(model)                       # a plain model again
"""

import importlib as _importlib
import sys as _sys
import types as _types
import typing as _typing
from importlib.util import find_spec as _find_spec

from mixout._names import renamed as _renamed

if _typing.TYPE_CHECKING:
    from mixout._public import *  # noqa: F403

__version__ = "0.2.0"

# Functions, though modules have the same names.
_FUNCTIONS = ("coverage", "state")
_missing = _renamed(
    __name__,
    {
        "Dropout": "mixout.methods.Dropout",
        "Dropconnect": "mixout.methods.Dropconnect",
        "Plain": "mixout.methods.Plain",
        "state_dict": "mixout.save_state",
        "load_state_dict_": "mixout.load_state_",
    },
)


class _Package(_types.ModuleType):
    """Loads torch and the public names at the first use of one: the help of the command line waits for neither."""

    def __getattr__(self, name: str) -> object:
        if name not in _FUNCTIONS and _find_spec(f"mixout.{name}"):
            return _importlib.import_module(f"mixout.{name}")
        if not name.startswith("_"):
            public = vars(_importlib.import_module("mixout._public"))
            if name in public:
                super().__setattr__(name, public[name])
                return public[name]
        return _missing(name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _FUNCTIONS or not isinstance(value, _types.ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *vars(_importlib.import_module("mixout._public"))})


_sys.modules[__name__].__class__ = _Package
