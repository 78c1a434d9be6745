import itertools

import pytest
import torch

from ldnq.codebook import Codebook
from ldnq.config import KBITS
from ldnq.errors import UsageError
from ldnq.nesting import BEGINNINGS, Nest, interval, merged

# Levels that merge, in units of their own scales.
MERGED = {
    (5, 3): {0: 0, 1: 1, 2: 1},
    (7, 3): {0: 0, 1: 0, 2: 1, 4: 1},
    (7, 5): {0: 0, 1: 0, 2: 1, 4: 2},
    (9, 3): {0: 0, 1: 0, 2: 1, 4: 1, 8: 1},
    (9, 5): {0: 0, 1: 0, 2: 1, 4: 2, 8: 2},
    (9, 7): {0: 0, 1: 1, 2: 2, 4: 4, 8: 4},
    (11, 3): {0: 0, 1: 0, 2: 0, 4: 1, 8: 1, 16: 1},
    (11, 5): {0: 0, 1: 0, 2: 1, 4: 1, 8: 2, 16: 2},
    (11, 7): {0: 0, 1: 1, 2: 1, 4: 2, 8: 4, 16: 4},
    (11, 9): {0: 0, 1: 1, 2: 1, 4: 2, 8: 4, 16: 8},
}
PAIRS = [(high, low) for low, high in itertools.combinations_with_replacement(KBITS, 2)]


@pytest.mark.parametrize(("high", "low"), PAIRS, ids="{}".format)
def test_every_level_merges_as_written_and_so_does_its_opposite(high, low):
    levels = Codebook.power_of_two(high).levels
    expected = MERGED.get((high, low)) or dict(zip(levels, levels))
    found = Codebook.power_of_two(low).values(merged(torch.arange(high), high, low))
    assert found.tolist() == [(-1 if level < 0 else 1) * expected[abs(level)] for level in levels]


@pytest.mark.parametrize(("high", "low"), PAIRS, ids="{}".format)
def test_the_interval_of_a_code_holds_all_that_merge_into_it(high, low):
    codes = torch.arange(low, dtype=torch.uint8).view(1, low, 1).expand(2, low, 3)
    bounds, table = interval(codes, low, high), merged(torch.arange(high), high, low)
    assert bounds.lower.dtype == bounds.upper.dtype == torch.uint8
    for code in range(low):
        alike = (table == code).nonzero().flatten()
        assert bounds.lower[:, code].unique().tolist() == [alike.min()]
        assert bounds.upper[:, code].unique().tolist() == [alike.max()]


@pytest.mark.parametrize(("low", "high"), [(5, 3), (3, 4), (2, 7), (3, 13)], ids="{}".format)
def test_other_codebooks_are_not_nested(low, high):
    with pytest.raises(
        UsageError, match=f"^expected kbits of 3, 5, 7, 9, 11, the smaller first, got {low} and {high}$"
    ):
        merged(torch.zeros(1), high, low)


@pytest.mark.parametrize(("high", "low"), PAIRS, ids="{}".format)
@pytest.mark.parametrize("settled", [(3,), (3, 5), (7, 3)], ids=str)
def test_a_nest_holds_whatever_merges_into_all_that_is_settled(settled, high, low):
    codes = torch.arange(high, dtype=torch.uint8)
    known = [levels for levels in settled if levels <= high]
    nest = Nest.around(merged(codes, high, known[0]), known[0], high)
    for levels in known[1:]:
        nest = nest.narrowed(merged(codes, high, levels), levels)
    bounds = nest.on(low)
    for code in codes.tolist():
        alike = [
            other for other in range(high)
            if all(merged(torch.tensor([other, code]), high, levels).unique().numel() == 1 for levels in known)
        ]  # fmt: skip
        possible = merged(torch.tensor(alike), high, low)
        assert (int(bounds.lower[code]), int(bounds.upper[code])) == (int(possible.min()), int(possible.max()))


# Of 9 levels and normal weights others come within 2%, and of 11 levels there are too many to try them all every time.
@pytest.mark.parametrize(
    ("high", "kind"), [(5, "normal"), (5, "Laplacian"), (7, "normal"), (7, "Laplacian"), (9, "Laplacian")]
)
def test_no_other_tables_leave_less_error(high, kind):
    share = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    weights = torch.special.ndtri((1 + share) / 2) if kind == "normal" else -share.log()
    whole = torch.zeros_like(weights, dtype=torch.long)
    beginnings = [*BEGINNINGS[high].values(), tuple(range(1, high // 2 + 1))]
    least = [_best(weights, size, whole, whole + size)[0] for size in range(1, high // 2 + 1)]

    def follow(lower, upper, tables, excess, most):
        """The least product of all widths' excess of error over their own best, if below `most`, and the tables."""
        if len(tables) == len(least):
            return excess, tables
        best, size = (most, ()), len(tables) + 1
        for choice in itertools.combinations(range(1, high // 2 + 1), size):
            table = torch.bucketize(torch.arange(high // 2 + 1), torch.tensor(choice), right=True)
            error, places = _best(weights, size, table[lower], table[upper])
            product = excess * error / least[size - 1]
            if product < best[0]:
                first, end = (torch.searchsorted(table, places, right=right) for right in (False, True))
                narrower = torch.maximum(lower, first), torch.minimum(upper, end - 1)
                found = follow(*narrower, (*tables, choice), product, best[0])
                best = min(best, found, key=lambda pair: pair[0])
        return best

    assert follow(whole, whole + high // 2, (), 1.0, float("inf"))[1] == tuple(beginnings)


def _best(weights, size, lower, upper):
    """The least mean squared error on zero and `size` magnitudes over a grid of scales, and the places of the
    magnitudes that have it, none outside of `lower` to `upper`."""
    levels = torch.tensor([0.0] + [2.0**exponent for exponent in range(size)], dtype=torch.float64)
    scales = torch.logspace(-1.5, 0.4, 100, dtype=torch.float64)[:, None]
    places = torch.bucketize(weights / scales, (levels[1:] + levels[:-1]) / 2, right=True).clamp(lower, upper)
    fitted = (weights * levels[places]).sum(1) / levels[places].square().sum(1).clamp(min=1e-9)
    errors = (weights - fitted[:, None] * levels[places]).square().mean(1)
    return float(errors.min()), places[errors.argmin()]
