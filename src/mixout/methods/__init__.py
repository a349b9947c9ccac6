"""What can be applied to a model, as data: frozen dataclasses whose docstrings are their cards, and their text form."""

from mixout.methods import optimizer_hooks as optimizer_hooks  # a model that is unpickled may hold weights that decay
from mixout.methods.decay import AnchorDecay as AnchorDecay
from mixout.methods.mixing import Dropconnect as Dropconnect
from mixout.methods.mixing import Dropout as Dropout
from mixout.methods.mixing import GradientMask as GradientMask
from mixout.methods.mixing import Method as Method
from mixout.methods.mixing import Mixconnect as Mixconnect
from mixout.methods.mixing import MixingMethod as MixingMethod
from mixout.methods.mixing import Mixout as Mixout
from mixout.methods.mixing import Plain as Plain
from mixout.methods.output import OutputAnchor as OutputAnchor
from mixout.methods.text import METHODS as METHODS
from mixout.methods.text import as_methods as as_methods
from mixout.methods.text import parse as parse
from mixout.methods.text import spell as spell
