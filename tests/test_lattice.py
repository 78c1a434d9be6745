import pytest
import torch

from ldnq import lattice
from ldnq.codebook import Bounds, Codebook
from ldnq.lattice import Lattice, ordered_factor
from tests.solvers.problems import correlate, make_problem

CODEBOOK = Codebook.power_of_two(5)


def problem(shape, seed=0):
    """Weights in units of their scale, and second moments."""
    found = make_problem(shape, seed=seed, change=correlate)
    return found.target, found.gram


def plane(W, H, damping):
    """The levels of a single row one by one, each nearest to what the errors before it leave, in float64."""
    order = (-H.diagonal()).argsort(stable=True)
    damped = H + damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    # The last input's error stands alone, so that the factor is that of the opposite order.
    L = torch.linalg.cholesky(damped[order.flip(0)][:, order.flip(0)])
    M = L.flip(0, 1)
    levels, error = torch.zeros_like(W), torch.zeros_like(W)
    for place, j in enumerate(order):
        left = sum(error[i] * M[before, place] / M[place, place] for before, i in enumerate(order[:place]))
        levels[j] = CODEBOOK.rounded(W[j] + left)
        error[j] = W[j] - levels[j]
    return levels


@pytest.mark.parametrize("n", [1, 7])
def test_a_factor_is_upper_triangular_and_gives_the_matrix_in_falling_order(n):
    _, H = problem((2, 1, n))
    order, M = ordered_factor(H, 0.5)
    for matrix, places, factor in zip(H, order, M):
        assert torch.equal(factor, factor.triu())
        assert (matrix.diagonal()[places].diff() <= 0).all()
        torch.testing.assert_close(factor @ factor.T, (matrix + 0.5 * torch.eye(n))[places][:, places])


@pytest.mark.parametrize(("block", "lazy"), [(32, 512), (4, 8), (4, 12), (3, 7)], ids="{}".format)
def test_one_rounding_is_that_of_the_nearest_plane_whatever_is_carried_at_once(block, lazy, monkeypatch):
    monkeypatch.setattr(lattice, "LAZY", lazy)
    W, H = problem((2, 3, 24))
    found = Lattice(H, CODEBOOK, 0.01, depth=128, block=block).nearest(W, 1)
    expected = torch.stack([torch.stack([plane(w, matrix, 0.01) for w in rows]) for rows, matrix in zip(W, H)])
    assert torch.equal(found.double(), expected)


@pytest.mark.parametrize("beam", [1, 8], ids="beam of {}".format)
def test_levels_are_within_bounds_and_bounds_belong_to_their_weights(beam):
    W, H = problem((2, 6, 24))
    lower = torch.randint(0, 5, W.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bounds = Bounds(lower, (lower + 1).clamp(max=4))
    codes = CODEBOOK.nearest(Lattice(H, CODEBOOK, 0.01, depth=128).nearest(W, beam, bounds))
    assert torch.equal(codes, bounds.clamp(codes))
    assert len(codes.unique()) == 5
