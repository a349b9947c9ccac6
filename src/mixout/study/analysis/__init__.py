"""Turns runs into numbers and plain sentences. It reads results, never runs anything and never draws."""

from mixout.errors import needs

with needs("hf", "the analysis of studies"):
    import scipy as scipy
