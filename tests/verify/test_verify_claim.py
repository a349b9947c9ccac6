"""A claim holds or not; tables say so."""

import csv
import io
import math

import pytest

from mixout.verify.claim import Claim, at_least, claims_csv, equals, table


def claim(relation, expected, found, tolerance=0.0):
    return Claim(
        topic="topic", statement="said", p=0.5, relation=relation, expected=expected, found=found, tolerance=tolerance
    )


@pytest.mark.parametrize(
    ("relation", "found", "tolerance", "holds"),
    [
        ("=", 1.0, 0.0, True),
        ("=", 1.1, 0.05, False),
        ("=", 0.9, 0.15, True),
        (">=", 0.9, 0.05, False),
        (">=", 7.0, 0.0, True),
        ("<=", 7.0, 1.0, False),
        ("<=", 1.05, 0.1, True),
    ],
)
def test_a_claim_compares_in_its_direction(relation, found, tolerance, holds):
    assert claim(relation, 1.0, found, tolerance).holds is holds


@pytest.mark.parametrize("relation", ["=", ">=", "<="])
def test_a_number_that_is_not_finite_never_holds(relation):
    assert not claim(relation, 1.0, math.nan, 100.0).holds
    assert not claim(relation, math.nan, 1.0, 100.0).holds


def test_exact_claims_allow_rounding_and_no_more():
    assert equals("t", "s", None, 100.0, 100.0 + 1e-9).holds
    assert not equals("t", "s", None, 100.0, 100.0 + 1e-6).holds
    assert at_least("t", "s", None, 1.0, 1.0 - 1e-14).holds
    assert not at_least("t", "s", None, 1.0, 1.0 - 1e-9).holds


def test_the_table_and_the_file_say_what_does_not_hold():
    found = [claim("=", 1.0, 1.0), claim(">=", 2.0, 1.0)]
    lines = table(found).splitlines()
    assert [line.split()[-1] for line in lines] == ["holds", "topic", "yes", "NO"]
    rows = list(csv.DictReader(io.StringIO(claims_csv(found, {"torch": "2"}))))
    assert [(row["holds"], row["expected"], row["torch"]) for row in rows] == [
        ("True", "1.0", "2"),
        ("False", "2.0", "2"),
    ]
