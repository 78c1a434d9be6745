import itertools

import pytest
import torch

from ldnq.codebook import Codebook
from ldnq.config import KBITS
from ldnq.errors import UsageError
from ldnq.nesting import JOINED, interval, merged

# Levels that merge, from those of the larger codebook to those of the smaller one, in units of their own scales.
STEPS = {
    (5, 3): {0: 0, 1: 1, 2: 1},
    (7, 5): {0: 0, 1: 0, 2: 1, 4: 2},
    (9, 7): {0: 0, 1: 1, 2: 2, 4: 4, 8: 4},
    (11, 9): {0: 0, 1: 0, 2: 1, 4: 2, 8: 4, 16: 8},
}
PAIRS = list(itertools.combinations_with_replacement(KBITS, 2))


@pytest.mark.parametrize(("high", "low"), STEPS, ids=str)
def test_every_level_merges_as_written_and_so_does_its_opposite(high, low):
    levels, expected = Codebook.power_of_two(high).levels, STEPS[high, low]
    found = Codebook.power_of_two(low).values(merged(torch.arange(high), high, low))
    assert found.tolist() == [(-1 if level < 0 else 1) * expected[abs(level)] for level in levels]


@pytest.mark.parametrize(("low", "high"), PAIRS, ids=str)
def test_tables_are_chains_of_steps_monotone_and_onto(low, high):
    codes = torch.arange(high)
    for step in range(high, low, -2):
        codes = merged(codes, step, step - 2)
    assert torch.equal(merged(torch.arange(high), high, low), codes.to(torch.uint8))
    assert codes.tolist() == sorted(codes.tolist())
    assert set(codes.tolist()) == set(range(low))


@pytest.mark.parametrize(("low", "high"), PAIRS, ids=str)
def test_the_interval_of_a_code_holds_all_that_merge_into_it(low, high):
    codes = torch.arange(low, dtype=torch.uint8).view(1, low, 1).expand(2, low, 3)
    bounds, table = interval(codes, low, high), merged(torch.arange(high), high, low)
    assert bounds.lower.dtype == bounds.upper.dtype == torch.uint8
    for code in range(low):
        alike = (table == code).nonzero().flatten()
        assert bounds.lower[:, code].unique().tolist() == [alike.min()]
        assert bounds.upper[:, code].unique().tolist() == [alike.max()]


@pytest.mark.parametrize(("low", "high"), [(5, 3), (3, 4), (2, 7), (3, 13)], ids=str)
def test_other_codebooks_are_not_nested(low, high):
    with pytest.raises(
        UsageError, match=rf"^expected kbits of 3, 5, 7, 9, 11, the smaller first, got {low} and {high}$"
    ):
        merged(torch.zeros(1), high, low)


@pytest.mark.parametrize("kind", ["normal", "Laplacian"])
def test_no_other_chain_of_tables_leaves_less_error(kind):
    share = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    weights = torch.special.ndtri((1 + share) / 2) if kind == "normal" else -share.log()
    # Magnitudes of three levels, which all chains share, and the excess of all widths over their own best, multiplied.
    chains = {(): (_best(weights, 1, 0, 1)[1], 1.0)}
    for largest in range(2, 6):
        least, _ = _best(weights, largest, 0, largest)
        longer = {}
        for (chain, (coarse, excess)), joined in itertools.product(chains.items(), range(largest)):
            lower, upper = coarse + (coarse > joined), coarse + (coarse >= joined)
            error, magnitudes = _best(weights, largest, lower, upper)
            longer[(*chain, joined)] = magnitudes, excess * error / least
        chains = longer
    assert len(chains) == 120
    assert min(chains, key=lambda chain: chains[chain][1]) == tuple(JOINED.values())


def _best(weights, largest, lower, upper):
    """The least mean squared error over a grid of scales, and the places (0: zero) of the magnitudes that have it."""
    levels = torch.tensor([0.0] + [2.0**exponent for exponent in range(largest)], dtype=torch.float64)
    scales = torch.logspace(-1.5, 0.4, 100, dtype=torch.float64)[:, None]
    places = torch.bucketize(weights / scales, (levels[1:] + levels[:-1]) / 2, right=True)
    places = places.clamp(torch.as_tensor(lower), torch.as_tensor(upper))
    fitted = (weights * levels[places]).sum(1) / levels[places].square().sum(1).clamp(min=1e-9)
    errors = (weights - fitted[:, None] * levels[places]).square().mean(1)
    return float(errors.min()), places[errors.argmin()]
