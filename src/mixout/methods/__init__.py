"""What is compared: one file, one method; its card is the docstring of its file."""

from mixout.methods.decay import AnchorDecay as AnchorDecay
from mixout.methods.dropconnect import Dropconnect as Dropconnect
from mixout.methods.dropout import Dropout as Dropout
from mixout.methods.gradient_mask import GradientMask as GradientMask
from mixout.methods.grammar import METHODS as METHODS
from mixout.methods.grammar import parse as parse
from mixout.methods.grammar import spell as spell
from mixout.methods.method import Method as Method
from mixout.methods.method import MixingMethod as MixingMethod
from mixout.methods.mixconnect import Mixconnect as Mixconnect
from mixout.methods.mixout import Mixout as Mixout
from mixout.methods.plain import Plain as Plain
