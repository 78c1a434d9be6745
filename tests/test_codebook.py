import itertools
import math
from fractions import Fraction

import pytest
import torch

from ldnq.codebook import Codebook
from ldnq.errors import UsageError

POWERS = {
    3: (-1, 0, 1),
    5: (-2, -1, 0, 1, 2),
    7: (-4, -2, -1, 0, 1, 2, 4),
    9: (-8, -4, -2, -1, 0, 1, 2, 4, 8),
    11: (-16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16),
}
WITHOUT_ZERO = [Codebook((-1.0, 1.0)), Codebook((-3.0, -1.0, 1.0, 3.0)), Codebook((-1.0, -0.25, 0.25, 1.0))]
CODEBOOKS = [Codebook.power_of_two(kbits) for kbits in POWERS] + WITHOUT_ZERO


def _nearest_by_search(x, levels):
    """The least distance; of two the one further from zero; of ±x the upper."""
    distances = [abs(Fraction(x) - Fraction(level)) for level in levels]
    return min(range(len(levels)), key=lambda code: (distances[code], -abs(levels[code]), -levels[code]))


@pytest.mark.parametrize("kbits", POWERS, ids="{} levels".format)
def test_kbits_is_the_number_of_levels(kbits):
    codebook = Codebook.power_of_two(kbits)
    assert codebook.levels == POWERS[kbits]
    assert codebook.num_levels == kbits
    assert codebook.bits == pytest.approx(math.log(kbits) / math.log(2))


@pytest.mark.parametrize("kbits", [0, 1, 2, 4, 8, 13, -3], ids=str)
def test_other_kbits_are_refused(kbits):
    with pytest.raises(UsageError, match=rf"^expected kbits of 3, 5, 7, 9, 11, got {kbits}$"):
        Codebook.power_of_two(kbits)


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_value_goes_to_the_level_that_search_finds(codebook, dtype):
    halves = [(a + b) / 2 for a, b in itertools.pairwise(codebook.levels)]
    random = (torch.randn(200, dtype=torch.float64) * codebook.levels[-1]).to(dtype).tolist()
    values = [*codebook.levels, *halves, *random, 0.0, 1e-30, -1e-30, 1e6, -1e6]
    expected = [_nearest_by_search(value, codebook.levels) for value in values]
    assert codebook.nearest(torch.tensor(values, dtype=dtype)).tolist() == expected


@pytest.mark.parametrize(
    ("codebook", "value", "level"),
    [
        (Codebook.power_of_two(3), 0.5, 1.0),
        (Codebook.power_of_two(3), -0.5, -1.0),
        (Codebook.power_of_two(5), 1.5, 2.0),
        (Codebook.power_of_two(5), -1.5, -2.0),
        (Codebook.power_of_two(7), 3.0, 4.0),
        (Codebook.power_of_two(7), -3.0, -4.0),
        (Codebook.power_of_two(7), 2.99, 2.0),
        (Codebook((-3.0, -1.0, 1.0, 3.0)), 2.0, 3.0),
        (Codebook((-3.0, -1.0, 1.0, 3.0)), -2.0, -3.0),
    ],
    ids=lambda value: f"{value}",
)
def test_ties_go_away_from_zero(codebook, value, level):
    assert codebook.values(codebook.nearest(torch.tensor([value]))).tolist() == [level]


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=str)
@pytest.mark.parametrize("zero", [0.0, -0.0], ids=["0", "-0"])
def test_zero_stays_zero_or_goes_up(codebook, zero):
    expected = 0.0 if 0.0 in codebook.levels else min(level for level in codebook.levels if level > 0)
    assert codebook.values(codebook.nearest(torch.tensor([zero]))).tolist() == [expected]


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=str)
def test_codes_count_the_levels_from_below(codebook):
    codes = torch.arange(codebook.num_levels, dtype=torch.uint8)
    assert codebook.values(codes).tolist() == list(codebook.levels)
    assert torch.equal(codebook.nearest(codebook.values(codes)), codes)


def test_codes_have_the_shape_of_the_values_and_one_byte_each():
    codes = Codebook.power_of_two(5).nearest(torch.randn(2, 3, 4))
    assert codes.shape == (2, 3, 4)
    assert codes.dtype == torch.uint8


def test_all_256_codes_of_the_largest_codebook_are_reached():
    levels = tuple(float(level) for level in range(-255, 256, 2))
    codebook = Codebook(levels)
    assert codebook.nearest(torch.tensor(levels)).tolist() == list(range(256))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_values_come_in_the_dtype_asked_for(dtype):
    values = Codebook.power_of_two(11).values(torch.tensor([0, 5, 10], dtype=torch.uint8), dtype)
    assert values.dtype == dtype
    assert values.tolist() == [-16, 0, 16]


@pytest.mark.parametrize(
    "levels",
    [
        (-1.0, 0.0, 2.0),
        (0.0, 1.0),
        (1.0, 0.0, -1.0),
        (-1.0, -1.0, 1.0, 1.0),
        (-1.0, 0.0, 0.0, 1.0),
        (-1.0, math.nan, 1.0),
    ],
    ids=["lopsided", "one-sided", "descending", "doubled", "two zeros", "not a number"],
)
def test_levels_that_are_not_ascending_and_symmetric_are_refused(levels):
    with pytest.raises(UsageError, match="ascending levels symmetric about zero"):
        Codebook(levels)


@pytest.mark.parametrize("count", [0, 1, 257], ids=str)
def test_too_few_or_too_many_levels_are_refused(count):
    levels = tuple(float(level - count // 2) for level in range(count))
    with pytest.raises(UsageError, match=f"^expected 2 to 256 levels, got {count}$"):
        Codebook(levels)


@pytest.mark.parametrize(
    ("codebook", "text"),
    [
        (Codebook.power_of_two(3), "{0, ±α}"),
        (Codebook.power_of_two(5), "{0, ±α, ±2α}"),
        (Codebook.power_of_two(11), "{0, ±α, ±2α, ±4α, ±8α, ±16α}"),
        (Codebook((-1.0, 1.0)), "{±α}"),
        (Codebook((-1.0, -0.25, 0.25, 1.0)), "{±0.25α, ±α}"),
    ],
    ids=["3", "5", "11", "binary", "quarters"],
)
def test_a_codebook_prints_as_its_levels(codebook, text):
    assert str(codebook) == text


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=str)
def test_a_cell_holds_the_values_that_round_to_its_level(codebook):
    values = torch.linspace(codebook.levels[0], codebook.levels[-1], 3001)
    codes = codebook.nearest(values)
    lower, upper = codebook.cell(codes)
    assert bool(((lower <= values) & (values <= upper)).all())
    outside = (codebook.nearest(lower - 1e-3) != codes) | (lower == codebook.levels[0])
    assert bool(outside.all())
    assert bool(((codebook.nearest(upper + 1e-3) != codes) | (upper == codebook.levels[-1])).all())


def test_cells_come_in_the_dtype_asked_for():
    lower, upper = Codebook((-1.0, -1 / 3, 1 / 3, 1.0)).cell(torch.tensor([2], dtype=torch.uint8), torch.float64)
    assert (lower.tolist(), upper.tolist()) == ([0.0], [(1 + 1 / 3) / 2])


def test_numbers_in_double_precision_are_rounded_in_double_precision():
    middle = (1 + 1 / 3) / 2
    values = torch.tensor([middle, math.nextafter(middle, 0), -middle, math.nextafter(-middle, 0)], dtype=torch.float64)
    assert Codebook((-1.0, -1 / 3, 1 / 3, 1.0)).nearest(values).tolist() == [3, 2, 0, 1]
