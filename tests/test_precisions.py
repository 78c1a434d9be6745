"""Codes of few bits out of codes of many, against the rounding of what those stand for."""

from fractions import Fraction
from math import floor

import pytest
import torch

from ldnq.codebook import Codebook
from ldnq.errors import UsageError
from ldnq.nesting import merged
from ldnq.precisions import Precisions, requantized


@pytest.mark.parametrize("high", range(1, 9))
@pytest.mark.parametrize("low", range(1, 9))
def test_the_narrower_code_is_that_of_the_nearest_value(high, low):
    if low > high:
        return
    steps, fewer = 2**high - 1, 2**low - 1
    expected = [floor(Fraction(code * fewer, steps) + Fraction(1, 2)) for code in range(steps + 1)]
    assert requantized(torch.arange(steps + 1), high, low).tolist() == expected


def test_a_fifth_of_the_codes_are_not_the_most_significant_bits():
    codes = torch.arange(256)
    different = (requantized(codes, 8, 2) != codes >> 6).sum()
    assert 40 < different < 60


def test_what_is_stored_is_the_widest_that_is_no_float():
    assert Precisions("bits", (2, 4), ()).stored == 4
    assert Precisions("bits", (2, 4, 32), ()).stored == 8
    assert Precisions("bits", (32,), ()).stored == 8


def test_power_of_two_codes_are_merged():
    precisions = Precisions("kbits", (3, 5), ())
    codes = torch.arange(5)
    assert torch.equal(precisions.narrowed(codes, 3), merged(codes, 5, 3))
    assert precisions.codebook(3) == Codebook.power_of_two(3)


def test_another_unit_is_another_width():
    precisions = Precisions("bits", (3, 5), ())
    assert precisions.check(3, "bits") == 3
    for width, unit in ((4, "bits"), (3, "kbits")):
        with pytest.raises(UsageError, match=f"expected bits of 3, 5, which the network has, got {unit} {width}"):
            precisions.check(width, unit)


@pytest.mark.parametrize("widths", [(), (2, 1), (2, 2), (9,), (0, 1), (2.0,), (True, 2)], ids=str)
def test_widths_that_are_none_are_refused(widths):
    with pytest.raises(UsageError, match="expected ascending bits"):
        Precisions("bits", widths, ())


@pytest.mark.parametrize("names", [(1,), ("a", "a"), (["a"],)], ids=str)
def test_names_that_are_none_are_refused(names):
    with pytest.raises(UsageError, match="expected names of parameters"):
        Precisions("bits", (2, 4), names)
