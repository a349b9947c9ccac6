"""Mixout and its family: fine-tune a pretrained model and stay close to what it knew.

import mixout
mixout.apply_(model, mixout.Mixout(p=0.9))  # train as you always do
mixout.remove_(model)                       # a plain model again
"""

import typing as _typing

from mixout import functional as functional
from mixout import methods as methods
from mixout import optim as optim
from mixout import schedule as schedule
from mixout._names import renamed as _renamed
from mixout.apply import apply_ as apply_
from mixout.apply import remove_ as remove_
from mixout.bylayer import by_depth as by_depth
from mixout.coverage import Coverage as Coverage
from mixout.coverage import coverage as coverage
from mixout.disabling import disabled as disabled
from mixout.distances import Distance as Distance
from mixout.errors import AlreadyAppliedError as AlreadyAppliedError
from mixout.errors import AnchorMismatchError as AnchorMismatchError
from mixout.errors import FineTunedAnchorWarning as FineTunedAnchorWarning
from mixout.errors import FrozenLayersWarning as FrozenLayersWarning
from mixout.errors import GenerationWarning as GenerationWarning
from mixout.errors import InputError as InputError
from mixout.errors import LowCoverageWarning as LowCoverageWarning
from mixout.errors import MissingExtraError as MissingExtraError
from mixout.errors import MixoutError as MixoutError
from mixout.errors import MixoutWarning as MixoutWarning
from mixout.errors import NotAppliedError as NotAppliedError
from mixout.errors import NothingMixedError as NothingMixedError
from mixout.errors import RankMismatchError as RankMismatchError
from mixout.errors import ZeroDecayWarning as ZeroDecayWarning
from mixout.layers import register as register
from mixout.measure import distance as distance
from mixout.measure import fingerprint as fingerprint
from mixout.measure import interpolate_ as interpolate_
from mixout.measure import radius_used as radius_used
from mixout.methods import AnchorDecay as AnchorDecay
from mixout.methods import GradientMask as GradientMask
from mixout.methods import Method as Method
from mixout.methods import Mixconnect as Mixconnect
from mixout.methods import Mixout as Mixout
from mixout.methods import OutputAnchor as OutputAnchor
from mixout.methods.fisher import fisher as fisher
from mixout.methods.output import output_penalty as output_penalty
from mixout.record import set_p_ as set_p_
from mixout.schedule import PScheduler as PScheduler
from mixout.selection import ALL as ALL
from mixout.selection import BODY as BODY
from mixout.selection import PAPER as PAPER
from mixout.selection import Where as Where
from mixout.state import State as State
from mixout.state import load_state_ as load_state_
from mixout.state import save_state as save_state
from mixout.state import state as state

__version__ = "0.2.0"

if not _typing.TYPE_CHECKING:
    __getattr__ = _renamed(
        __name__,
        {
            "Dropout": "mixout.methods.Dropout",
            "Dropconnect": "mixout.methods.Dropconnect",
            "Plain": "mixout.methods.Plain",
            "state_dict": "mixout.save_state",
            "load_state_dict_": "mixout.load_state_",
        },
    )
