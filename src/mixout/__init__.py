"""Mixout and its family: fine-tune a pretrained model and stay close to what it knew.

import mixout
mixout.apply_(model, mixout.Mixout(p=0.9))  # train as you always do
mixout.remove_(model)                       # a plain model again
"""

from mixout import functional as functional
from mixout import methods as methods
from mixout import schedule as schedule
from mixout.anchor import Distance as Distance
from mixout.apply import apply_ as apply_
from mixout.apply import remove_ as remove_
from mixout.coverage import Coverage as Coverage
from mixout.coverage import coverage as coverage
from mixout.errors import AlreadyAppliedError as AlreadyAppliedError
from mixout.errors import AnchorMismatchError as AnchorMismatchError
from mixout.errors import FineTunedAnchorWarning as FineTunedAnchorWarning
from mixout.errors import FrozenLayersWarning as FrozenLayersWarning
from mixout.errors import InputError as InputError
from mixout.errors import MissingExtraError as MissingExtraError
from mixout.errors import MixoutError as MixoutError
from mixout.errors import MixoutWarning as MixoutWarning
from mixout.errors import NotAppliedError as NotAppliedError
from mixout.errors import NothingMixedError as NothingMixedError
from mixout.errors import RankMismatchError as RankMismatchError
from mixout.errors import ZeroDecayWarning as ZeroDecayWarning
from mixout.measure import distance as distance
from mixout.measure import fingerprint as fingerprint
from mixout.measure import interpolate_ as interpolate_
from mixout.measure import radius_used as radius_used
from mixout.methods import AnchorDecay as AnchorDecay
from mixout.methods import Dropconnect as Dropconnect
from mixout.methods import Dropout as Dropout
from mixout.methods import GradientMask as GradientMask
from mixout.methods import Method as Method
from mixout.methods import Mixconnect as Mixconnect
from mixout.methods import Mixout as Mixout
from mixout.methods import OutputAnchor as OutputAnchor
from mixout.methods import Plain as Plain
from mixout.methods.fisher import fisher as fisher
from mixout.methods.output import output_penalty as output_penalty
from mixout.record import set_p_ as set_p_
from mixout.schedule import PScheduler as PScheduler
from mixout.selection import Where as Where
from mixout.state import load_state_dict_ as load_state_dict_
from mixout.state import state_dict as state_dict

__version__ = "0.1.0"
