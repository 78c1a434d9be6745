import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldnq.problem import LayerProblem
from ldnq.solvers import error_feedback, solvers
from ldnq.solvers.error_feedback import ErrorFeedback
from ldnq.solvers.nearest import Nearest
from tests.solvers.problems import DEGENERATE, SHAPES, as_one_row, correlate, make_problem, weights_of

PLAIN = dict(scales=1, low=1.0, high=1.0)


def _optimal_brain_quantizer(problem, scale, damping):
    """Levels of all rows, each by itself."""
    Q = np.empty(problem.target.shape)
    for group, row in np.ndindex(*Q.shape[:2]):
        H = problem.gram[group].numpy()
        damped = H + damping * np.diag(H).mean() * np.eye(len(H))
        alpha = scale.expand(*Q.shape[:2], 1)[group, row].item()
        order = np.argsort(-np.diag(H), kind="stable")
        Q[group, row] = _round_in_order(problem.target[group, row].numpy(), damped, order, alpha, problem.codebook)
    return Q


def _round_in_order(w, H, order, scale, codebook):
    """Levels by the formulas of OBQ: after each input the inverse Hessian loses that row and column."""
    w, inverse, levels, q = w.copy(), np.linalg.inv(H), np.array(codebook.levels), np.empty(len(w))
    for j in order:
        q[j] = levels[np.abs(w[j] / scale - levels).argmin()]
        w -= (w[j] - scale * q[j]) / inverse[j, j] * inverse[:, j]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return q


def test_error_feedback_is_in_the_table_of_solvers():
    assert solvers.get("error-feedback") is ErrorFeedback


@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kbits", [3, 7], ids="{} levels".format)
def test_one_path_rounds_as_optimal_brain_quantization_does(kbits, shape, per_channel):
    for seed in range(5):
        problem = make_problem(shape, kbits, per_channel, seed)
        solution = ErrorFeedback(beam=1, damping=0.05, **PLAIN)(problem)
        nearest = Nearest()(problem)
        rounded = torch.from_numpy(_optimal_brain_quantizer(problem, nearest.scale, 0.05))
        # Nearest levels stay where they are better, for every channel by itself.
        levels = problem.codebook.values(nearest.codes, torch.float64)
        expected = problem.fit(levels, nearest.scale).or_better(problem.fit(rounded, nearest.scale)).levels
        assert torch.equal(problem.codebook.values(solution.codes, torch.float64), expected)


@pytest.mark.parametrize("kbits", [3, 7], ids="{} levels".format)
def test_one_path_through_coupled_rows_rounds_them_as_one_row_of_all_weights(kbits, monkeypatch):
    monkeypatch.setattr(error_feedback, "LEAST_ROWS", 1)
    for seed in range(10):
        problem = make_problem((1, 4, 6), kbits, seed=seed, coupled=True)
        solution = ErrorFeedback(beam=1, damping=1e-9, parts=4, **PLAIN)(problem)
        whole = as_one_row(problem)
        # What fits rows rounded by themselves is the scale of all.
        nearest = Nearest()(problem)
        alone = torch.from_numpy(_optimal_brain_quantizer(problem, nearest.scale, 1e-9))
        scale = problem.by_rows().fit(alone, nearest.scale).scale
        felt, met = (-matrix[0].diagonal() for matrix in (problem.sensitivity, problem.gram))
        order = [6 * row + j for row in felt.argsort() for j in met.argsort()]
        target, H = whole.target[0, 0].numpy(), whole.gram[0].numpy()
        rounded = _round_in_order(target, H, order, scale.item(), problem.codebook)
        expected = problem.fit(torch.from_numpy(rounded).view_as(problem.target), scale)
        # Rows by themselves, and nearest levels, stay where they are better.
        assert solution.errors[-1] == pytest.approx(min(solution.errors[0], float(expected.error)))
        if solution.errors[-1] < solution.errors[0]:
            assert torch.equal(problem.codebook.values(solution.codes, torch.float64), expected.levels)


def test_coupled_rows_make_up_for_each_other():
    gains = []
    for seed in range(5):
        problem = make_problem((2, 64, 24), per_channel=True, seed=seed, coupled=True)
        alone = ErrorFeedback()(problem.by_rows())
        gains.append(ErrorFeedback()(problem).errors[-1] / problem.error(weights_of(problem, alone)))
    # Measured: 0.65 on average.
    assert np.mean(gains) < 0.8


def test_coupled_rows_come_out_the_same_in_any_order():
    problem = make_problem((2, 40, 12), 5, per_channel=True, coupled=True)
    # Scales that differ by far show whose is whose.
    problem.target.mul_(torch.logspace(-1, 1, 40)[:, None])
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    order = replace(
        problem, target=problem.target[:, shuffled], sensitivity=problem.sensitivity[:, shuffled][:, :, shuffled]
    )
    found, other = ErrorFeedback()(problem), ErrorFeedback()(order)
    assert torch.equal(found.codes[:, shuffled], other.codes)
    torch.testing.assert_close(found.scale[:, shuffled], other.scale)


def test_more_parts_of_coupled_rows_leave_less_of_the_error():
    def mean_error(parts):
        problems = [make_problem((1, 128, 16), per_channel=True, seed=seed, coupled=True) for seed in range(3)]
        return np.mean([ErrorFeedback(parts=parts)(problem).errors[-1] for problem in problems])

    one, two, eight = map(mean_error, (1, 2, 8))
    assert eight < two < one


def test_groups_are_problems_of_their_own():
    problem = make_problem((3, 4, 8), per_channel=True, coupled=True)
    together = ErrorFeedback()(problem)
    for group in range(3):
        part = (slice(group, group + 1),)
        alone = replace(
            problem, target=problem.target[part], gram=problem.gram[part], sensitivity=problem.sensitivity[part]
        )
        assert torch.equal(ErrorFeedback()(alone).codes, together.codes[part])


@pytest.mark.parametrize("shape", [(1, 2, 4), (2, 1, 4)], ids=["one group", "two groups"])
def test_a_beam_that_drops_nothing_finds_the_best_codes_for_its_scale(shape):
    for seed in range(10):
        problem = make_problem(shape, per_channel=True, seed=seed)
        solution = ErrorFeedback(beam=3**4, widest=1, damping=1e-9, **PLAIN)(problem)
        scale = ErrorFeedback(beam=1, damping=1e-9, **PLAIN)(problem).scale
        for group, row in np.ndindex(*shape[:2]):
            w, H, alpha = problem.target[group, row], problem.gram[group], scale[group, row]
            options = torch.tensor(list(itertools.product(problem.codebook.levels, repeat=4)), dtype=torch.float64)
            difference = w - alpha * options
            best = options[((difference @ H) * difference).sum(1).argmin()]
            assert torch.equal(problem.codebook.values(solution.codes[group, row]).double(), best)


@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
@pytest.mark.parametrize("kbits", [3, 5, 11], ids="{} levels".format)
def test_the_error_is_that_of_what_is_returned_and_the_scale_fits_it(kbits, per_channel):
    problem = make_problem((2, 3, 12), kbits, per_channel)
    solution = ErrorFeedback()(problem)
    assert solution.scale.shape == ((2, 3, 1) if per_channel else (1, 1, 1))
    least = problem.error(weights_of(problem, solution))
    assert least == pytest.approx(solution.errors[-1])
    for factor in (0.999, 1.001):
        assert problem.error(factor * weights_of(problem, solution)) > least


def test_more_scales_and_a_wider_beam_lower_the_error():
    def mean_error(**options):
        problems = [make_problem((1, 8, 24), seed=seed, change=correlate) for seed in range(10)]
        return np.mean([ErrorFeedback(**options)(p).errors[-1] / Nearest()(p).errors[-1] for p in problems])

    one, grid, wide = mean_error(beam=1, **PLAIN), mean_error(beam=1), mean_error(beam=16)
    # Measured: 0.041, 0.037 and less of nearest's error.
    assert wide < 0.9 * grid
    assert grid < 0.95 * one
    assert one < 0.06


@pytest.mark.parametrize("options", [dict(block=1), dict(block=5)], ids=["blocks of 1", "blocks of 5"])
def test_blocks_do_not_change_the_result(options):
    problem = make_problem((2, 3, 12), 5)
    assert torch.equal(ErrorFeedback(**options)(problem).codes, ErrorFeedback()(problem).codes)


def test_scales_that_do_not_fit_in_memory_together_are_tried_one_by_one(monkeypatch):
    problem = make_problem((2, 3, 12), 5)
    expected = ErrorFeedback()(problem)
    monkeypatch.setattr(error_feedback, "MAX_ENTRIES", 1)
    assert torch.equal(ErrorFeedback()(problem).codes, expected.codes)


def test_rows_with_scales_per_channel_are_problems_of_their_own():
    problem = make_problem((1, 3, 8), kbits=5, per_channel=True)
    together = ErrorFeedback()(problem)
    for row in range(3):
        alone = ErrorFeedback()(LayerProblem(problem.target[:, row : row + 1], problem.gram, problem.codebook))
        assert torch.equal(alone.codes[0, 0], together.codes[0, row])


@pytest.mark.parametrize("change", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
def test_singular_gram_matrices_are_solved_all_the_same(change, per_channel):
    problem = make_problem((2, 3, 6), 5, per_channel, change=change)
    solution = ErrorFeedback()(problem)
    assert bool(torch.isfinite(solution.scale).all() and (solution.scale > 0).all())
    assert solution.errors[-1] <= Nearest()(problem).errors[0]


def test_a_layer_without_input_is_rounded_to_nearest():
    problem = make_problem((2, 3, 6), change=lambda inputs: inputs.fill(0))
    solution, nearest = ErrorFeedback(**PLAIN)(problem), Nearest()(problem)
    assert torch.equal(solution.codes, nearest.codes)
    assert torch.equal(solution.scale, nearest.scale)


def test_of_few_weights_the_codes_and_the_scale_are_nearly_the_best_of_all():
    ratios = []
    for seed in range(10):
        problem = make_problem((1, 1, 8), per_channel=True, seed=seed, change=correlate)
        w, H = problem.target[0, 0], problem.gram[0]
        Q = torch.tensor(list(itertools.product(problem.codebook.levels, repeat=8)), dtype=torch.float64)
        overlap, norm = Q @ H @ w, (Q @ H * Q).sum(1)
        gains = torch.where((overlap > 0) & (norm > 0), overlap.square() / norm, 0.0)
        ratios.append(ErrorFeedback()(problem).errors[-1] / float(w @ H @ w - gains.max()))
    assert min(ratios) > 1 - 1e-9
    # Measured: 1.000 at most; 1.8 with a beam of 16 for one scale.
    assert max(ratios) < 1.02


def test_of_few_weights_any_beam_but_one_follows_as_many_roundings():
    problem = make_problem((1, 6, 24), change=correlate)
    one, two, many = (ErrorFeedback(beam=beam)(problem) for beam in (1, 2, 16))
    assert torch.equal(two.codes, many.codes)
    assert two.errors == many.errors
    assert two.errors[-1] < one.errors[-1]


@pytest.mark.parametrize("block", [1, 4, 32], ids="blocks of {}".format)
def test_partial_roundings_that_settle_early_lose_little(block):
    ratios = []
    for seed in range(5):
        problem = make_problem((1, 8, 48), seed=seed, change=correlate)
        settled = ErrorFeedback(widest=1, depth=16, block=block)(problem)
        assert problem.error(weights_of(problem, settled)) == pytest.approx(settled.errors[-1])
        ratios.append(settled.errors[-1] / ErrorFeedback(widest=1)(problem).errors[-1])
    # Measured: 1.02; with a depth of 0 and blocks of one 1.30.
    assert np.mean(ratios) < 1.1


@pytest.mark.parametrize("beam", [1, 16], ids="beam of {}".format)
def test_some_rows_tell_the_scale_of_many(beam):
    problem = make_problem((1, 256, 12), change=correlate)
    found = ErrorFeedback(beam=beam)(problem)
    tried = [
        ErrorFeedback(scales=1, low=factor, high=factor, beam=beam)(problem).errors[-1]
        for factor in torch.linspace(0.6, 2.2, 17).tolist()
    ]
    assert found.errors[-1] == pytest.approx(problem.error(weights_of(problem, found)))
    assert found.errors[-1] < 1.05 * min(tried)
