"""Mixout and its family: fine-tuning that stays close to the pretrained weights.

import mixout
mixout.apply_(model, mixout.Mixout(p=0.9))  # train as you always do
mixout.remove_(model)                       # a plain model again
"""

import importlib as _importlib
import typing as _typing
from importlib.util import find_spec as _find_spec

from mixout._names import renamed as _renamed

__version__ = "0.2.0"

_missing = _renamed(
    __name__,
    {
        "Dropout": "mixout.methods.Dropout",
        "Dropconnect": "mixout.methods.Dropconnect",
        "Plain": "mixout.methods.Plain",
        "state_dict": "mixout.save_state",
        "load_state_dict_": "mixout.load_state_",
    },
    lambda: [public for public in vars(_importlib.import_module("mixout._public")) if not public.startswith("_")],
)

if _typing.TYPE_CHECKING:
    from mixout._public import *  # noqa: F403
else:

    def __getattr__(name):  # noqa: ANN001, ANN202
        """Torch and the public names are loaded at the first use of one: the command line's help waits for neither."""
        if name == "__all__":
            return [public for public in vars(_importlib.import_module("mixout._public")) if not public.startswith("_")]
        if name.startswith("_"):
            return _missing(name)
        if _find_spec(f"mixout.{name}"):  # asked for by a module of the package, maybe while the names are loaded
            return _importlib.import_module(f"mixout.{name}")
        public = vars(_importlib.import_module("mixout._public"))
        if name not in public:
            return _missing(name)
        globals()[name] = public[name]
        return public[name]

    def __dir__():  # noqa: ANN202
        return sorted({*globals(), *vars(_importlib.import_module("mixout._public"))})
