import itertools

import numpy as np
import pytest
import torch

from ldnq.codebook import Codebook
from ldnq.errors import NetworkError
from ldnq.problem import LayerProblem, factorize, least_squares, project
from tests.solvers.problems import make_problem

KBITS = [3, 5, 7, 9, 11]


def _distance(values, codebook, codes, scale):
    return float((values - scale * codebook.values(codes, values.dtype)).square().sum())


def _least_distance(values, levels):
    """Over every assignment of levels with its best positive scale."""
    flat = values.numpy().ravel()
    assignments = np.array(list(itertools.product(levels, repeat=flat.size)))
    overlap, norm = assignments @ flat, np.square(assignments).sum(1)
    gains = np.where(overlap > 0, np.square(overlap) / np.maximum(norm, 1e-12), 0)
    return float(np.square(flat).sum() - gains.max())


def test_a_two_by_two_layer_is_projected_as_by_hand():
    # Levels {0, ±α}: with 4, -2 and 3 kept, α = (4+2+3)/3 = 3 and 0.5 is under half of it.
    values = torch.tensor([[[4.0, -2.0], [0.5, 3.0]]], dtype=torch.float64)
    codes, scale = project(values, Codebook.power_of_two(3), per_channel=False)
    assert codes.tolist() == [[[2, 0], [1, 2]]]
    assert scale.tolist() == [[[3.0]]]


def test_each_channel_of_a_two_by_two_layer_is_projected_as_by_hand():
    # Row 1, {±4α, ±2α, ±α, 0} at α = 1: exact. Row 2: 30 and -30 alone, α = 7.5.
    values = torch.tensor([[[4.0, -1.0], [30.0, -30.0]]], dtype=torch.float64)
    codes, scale = project(values, Codebook.power_of_two(7), per_channel=True)
    assert scale.shape == (1, 2, 1)
    torch.testing.assert_close(scale * Codebook.power_of_two(7).values(codes, torch.float64), values)


@pytest.mark.parametrize("kbits", KBITS, ids="{} levels".format)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
def test_codes_are_nearest_at_a_scale_that_is_fitted_to_them(kbits, per_channel):
    codebook = Codebook.power_of_two(kbits)
    values = torch.randn(2, 3, 20, dtype=torch.float64)
    codes, scale = project(values, codebook, per_channel)
    assert codes.shape == values.shape
    assert codes.dtype == torch.uint8
    assert scale.shape == ((2, 3, 1) if per_channel else (1, 1, 1))
    levels = codebook.values(codes, torch.float64)
    gaps = (values[..., None] / scale[..., None] - torch.tensor(codebook.levels)).abs()
    assert torch.equal(gaps.argmin(-1).to(torch.uint8), codes)
    axes = (2,) if per_channel else (0, 1, 2)
    fitted = (values * levels).sum(axes, keepdim=True) / levels.square().sum(axes, keepdim=True)
    torch.testing.assert_close(scale, fitted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
@pytest.mark.parametrize("start", [0.05, 0.5, 3.0], ids="from scale {}".format)
def test_more_rounds_never_lead_away(per_channel, start):
    codebook = Codebook.power_of_two(5)
    values = torch.randn(2, 4, 16, dtype=torch.float64)
    scale = torch.full((2, 4, 1) if per_channel else (1, 1, 1), start, dtype=torch.float64)
    distances = [
        _distance(values, codebook, *project(values, codebook, per_channel, scale, iterations=rounds))
        for rounds in range(12)
    ]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(distances))
    assert distances[-1] < distances[0]


@pytest.mark.parametrize("kbits", KBITS, ids="{} levels".format)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
def test_the_projection_of_a_projection_is_itself(kbits, per_channel):
    codebook = Codebook.power_of_two(kbits)
    codes, scale = project(torch.randn(2, 3, 12, dtype=torch.float64), codebook, per_channel)
    quantized = scale * codebook.values(codes, torch.float64)
    again, same = project(quantized, codebook, per_channel, scale)
    assert torch.equal(again, codes)
    torch.testing.assert_close(same, scale, rtol=1e-12, atol=0)
    fresh, other = project(quantized, codebook, per_channel)
    torch.testing.assert_close(other * codebook.values(fresh, torch.float64), quantized)


@pytest.mark.parametrize(
    ("kbits", "d", "bound"),
    [(3, 6, 1e-9), (5, 5, 0.01), (7, 4, 0.01)],
    ids=["3 levels are exact", "5 levels within 1%", "7 levels within 1%"],
)
def test_the_projection_is_close_to_the_nearest_of_all_assignments(kbits, d, bound):
    # Measured over 40 draws: 0 for 3 levels, at most 0.55% and 0.32% of ‖V‖² for 5 and 7, on average 0.014%.
    codebook = Codebook.power_of_two(kbits)
    for _ in range(20):
        values = torch.randn(1, 1, d, dtype=torch.float64)
        excess = _distance(values, codebook, *project(values, codebook, False))
        excess -= _least_distance(values, codebook.levels)
        assert -1e-9 < excess <= bound * float(values.square().sum())


def test_a_channel_has_the_scale_that_it_has_alone():
    codebook = Codebook.power_of_two(5)
    values = torch.randn(2, 3, 10, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 50.0])[:, None]
    codes, scale = project(values, codebook, per_channel=True)
    for g, row in itertools.product(range(2), range(3)):
        own_codes, own_scale = project(values[g : g + 1, row : row + 1], codebook, per_channel=False)
        assert torch.equal(codes[g, row], own_codes[0, 0])
        torch.testing.assert_close(scale[g, row], own_scale[0, 0], rtol=1e-6, atol=0)


def test_scales_per_channel_are_nearer_than_one_for_the_layer():
    codebook = Codebook.power_of_two(3)
    values = torch.randn(1, 6, 10, dtype=torch.float64) * torch.logspace(-1, 1, 6)[:, None]
    channels = _distance(values, codebook, *project(values, codebook, True))
    assert channels < _distance(values, codebook, *project(values, codebook, False))


def test_one_scale_serves_all_groups_of_a_layer():
    codebook = Codebook.power_of_two(3)
    values = torch.randn(4, 2, 5, dtype=torch.float64)
    codes, scale = project(values, codebook, False)
    as_one, same = project(values.view(1, 1, 40), codebook, False)
    assert torch.equal(codes.flatten(), as_one.flatten())
    torch.testing.assert_close(scale, same)


@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
@pytest.mark.parametrize(
    ("codebook", "code"), [(Codebook.power_of_two(5), 2), (Codebook((-1.0, 1.0)), 1)], ids=["zero level", "binary"]
)
def test_all_zero_values_have_scale_one_and_the_codes_nearest_to_zero(per_channel, codebook, code):
    codes, scale = project(torch.zeros(2, 3, 4), codebook, per_channel)
    assert codes.unique().tolist() == [code]
    if 0.0 in codebook.levels:
        assert scale.unique().tolist() == [1.0]


def test_one_zero_channel_leaves_the_others_alone():
    codebook = Codebook.power_of_two(5)
    values = torch.randn(1, 3, 8, dtype=torch.float64)
    without, scales = project(values, codebook, True)
    values[0, 1] = 0
    codes, scale = project(values, codebook, True)
    assert codes[0, 1].unique().tolist() == [2]
    assert scale[0, 1].item() == 1
    assert torch.equal(codes[0, [0, 2]], without[0, [0, 2]])
    torch.testing.assert_close(scale[0, [0, 2]], scales[0, [0, 2]], rtol=1e-6, atol=0)


def test_a_start_too_large_to_keep_any_value_is_kept():
    codes, scale = project(torch.tensor([[[0.1, -0.2]]]), Codebook.power_of_two(3), False, torch.full((1, 1, 1), 9.0))
    assert codes.tolist() == [[[1, 1]]]
    assert scale.item() == 9


@pytest.mark.parametrize("size", [1e-20, 1e-3, 1e3, 1e20], ids="times {}".format)
def test_the_codes_do_not_depend_on_the_size_of_the_values(size):
    codebook = Codebook.power_of_two(5)
    values = torch.randn(1, 4, 16, dtype=torch.float64)
    codes, scale = project(values, codebook, True)
    same, scaled = project(values * size, codebook, True)
    assert torch.equal(same, codes)
    torch.testing.assert_close(scaled, scale * size, rtol=1e-9, atol=0)


def test_the_values_given_are_left_as_they_are():
    values = torch.randn(1, 3, 8, dtype=torch.float64)
    start = torch.full((1, 1, 1), 0.7, dtype=torch.float64)
    before = values.clone(), start.clone()
    project(values, Codebook.power_of_two(3), False, start)
    assert torch.equal(values, before[0])
    assert torch.equal(start, before[1])


def test_the_error_of_a_two_by_two_layer_is_as_by_hand():
    # W - G = (1, -1): 2·1 - 2·1 + 3·1 = 3; and (0, 2): 3·4 = 12.
    target = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]], dtype=torch.float64)
    gram = torch.tensor([[[2.0, 1.0], [1.0, 3.0]]], dtype=torch.float64)
    problem = LayerProblem(target, gram, Codebook.power_of_two(3))
    assert problem.error(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)) == 15
    assert problem.error(target) == 0


def test_the_error_is_the_squared_difference_of_the_outputs_summed_over_groups():
    rng = np.random.default_rng(0)
    inputs, target, weights = (rng.standard_normal(shape) for shape in [(3, 4, 50), (3, 2, 4), (3, 2, 4)])
    gram = np.stack([x @ x.T / 50 for x in inputs])
    problem = LayerProblem(torch.from_numpy(target), torch.from_numpy(gram), Codebook.power_of_two(3))
    expected = sum(np.square((w - g) @ x).sum() / 50 for w, g, x in zip(target, weights, inputs))
    assert problem.error(torch.from_numpy(weights)) == pytest.approx(expected)


def test_least_squares_weights_are_those_of_the_stacked_system():
    # ‖Y − W X‖² + λ‖W − W₀‖² is one plain least-squares problem with the prior as further observations.
    rng = np.random.default_rng(0)
    X, Y, prior = rng.standard_normal((5, 12)), rng.standard_normal((3, 12)), rng.standard_normal((3, 5))
    penalty = 0.3 * np.trace(X @ X.T) / 5
    stacked = np.hstack([X, np.sqrt(penalty) * np.eye(5)]), np.hstack([Y, np.sqrt(penalty) * prior])
    expected = np.linalg.lstsq(stacked[0].T, stacked[1].T, rcond=None)[0].T
    found = least_squares(*(torch.from_numpy(m)[None] for m in (X @ X.T, Y @ X.T, prior)), damping=0.3)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9)


def test_least_squares_without_inputs_keeps_the_prior():
    prior = torch.randn(1, 2, 4, dtype=torch.float64)
    nothing = torch.zeros(1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(least_squares(nothing, torch.zeros_like(prior), prior, 0.01), prior)


@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
def test_a_fit_has_the_best_scale_and_its_error(per_channel):
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((2, 4, 400))  # nearly white: the signs of the weights point along them
    gram = torch.from_numpy(inputs @ inputs.transpose(0, 2, 1))
    problem = LayerProblem(
        torch.from_numpy(rng.standard_normal((2, 3, 4))), gram, Codebook.power_of_two(3), per_channel
    )
    levels = problem.target.sign()
    fit = problem.fit(levels, torch.ones(1, 1, 1, dtype=torch.float64))
    assert fit.scale.numel() == (6 if per_channel else 1)
    assert float(fit.error.sum()) == pytest.approx(problem.error(fit.scale * levels))
    for factor in (0.99, 1.01):
        assert problem.error(factor * fit.scale * levels) > float(fit.error.sum())


def test_of_two_fits_the_better_is_taken_row_by_row():
    rng = np.random.default_rng(2)
    problem = LayerProblem(
        torch.from_numpy(rng.standard_normal((1, 6, 4))), torch.eye(4).double()[None], Codebook.power_of_two(3), True
    )
    one, other = (
        problem.fit(torch.from_numpy(rng.integers(-1, 2, (1, 6, 4)).astype(float)), torch.ones(1, 6, 1).double())
        for _ in range(2)
    )
    best = one.or_better(other)
    assert torch.equal(best.error, torch.minimum(one.error, other.error))
    assert problem.error(best.scale * best.levels) == pytest.approx(float(best.error.sum()))


@pytest.mark.parametrize("coupled", [False, True], ids=["rows alone", "rows coupled"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
def test_a_fit_is_that_of_stacked_equations(per_channel, coupled):
    problem = make_problem((2, 3, 5), 5, per_channel, coupled=coupled)
    codes, scale = project(problem.target, problem.codebook, per_channel)
    levels = problem.codebook.values(codes, torch.float64)
    fit = problem.fit(levels, torch.ones_like(scale))
    # ‖A (w − Q α)‖² with AᵀA = S ⊗ H for each group, all groups one under the other
    equations, wanted = [], []
    for g in range(2):
        S = problem.sensitivity[g] if coupled else torch.eye(3, dtype=torch.float64)
        A = torch.linalg.cholesky(torch.kron(S, problem.gram[g])).T
        columns = torch.zeros(2, 3, 3, 5, dtype=torch.float64)
        columns[g, torch.arange(3), torch.arange(3)] = levels[g]
        Q = columns.view(6, 15) if per_channel else columns.view(6, 15).sum(0, keepdim=True)
        equations.append((A @ Q.T).numpy())
        wanted.append((A @ problem.target[g].flatten()).numpy())
    expected, residual, *_ = np.linalg.lstsq(np.concatenate(equations), np.concatenate(wanted), rcond=None)
    assert (expected > 0).all()
    assert fit.scale.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert float(fit.error.sum()) == pytest.approx(residual.item(), rel=1e-6)
    assert problem.error(fit.scale * levels) == pytest.approx(residual.item(), rel=1e-6)


def test_a_row_of_zeros_among_coupled_ones_keeps_its_scale():
    problem = make_problem((1, 3, 4), per_channel=True, coupled=True)
    levels = torch.ones(1, 3, 4, dtype=torch.float64) * problem.target.sign()
    levels[0, 1] = 0
    fit = problem.fit(levels, torch.full((1, 3, 1), 0.5, dtype=torch.float64))
    assert fit.scale[0, 1].item() == 0.5
    assert bool(torch.isfinite(fit.scale).all() and (fit.scale > 0).all())


def test_a_matrix_without_a_cholesky_factor_is_one_line():
    indefinite = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]], dtype=torch.float64)
    with pytest.raises(NetworkError, match=r"^the inputs of a layer, or .* have no usable second moments") as error:
        factorize(indefinite)
    assert "\n" not in str(error.value)
