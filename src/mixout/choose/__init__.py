"""From a table of a few hundred rows to a model: rates, then methods, then one honest sentence."""

from mixout.choose.run import choose as choose
from mixout.choose.search import METHODS as METHODS
from mixout.choose.verdict import Choice as Choice
