"""Codes that may only be some of the codebook's."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldnq.codebook import Bounds
from ldnq.nesting import interval, merged
from ldnq.solvers.admm import Admm
from ldnq.solvers.coordinate_descent import CoordinateDescent
from ldnq.solvers.error_feedback import ErrorFeedback
from ldnq.solvers.nearest import Nearest
from tests.solvers.problems import DEGENERATE, SHAPES, least_error, make_problem, weights_of

ALL = {"nearest": Nearest(), "admm": Admm(), "error feedback": ErrorFeedback(), "descent": CoordinateDescent()}

every_solver = pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
every_scale = pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])


def bounded(problem, low=3):
    """The same, nested in what coordinate descent finds on `low` levels."""
    coarse = CoordinateDescent()(replace(problem, codebook=type(problem.codebook).power_of_two(low)))
    return replace(problem, bounds=interval(coarse.codes, low, problem.codebook.num_levels)), coarse.codes


@every_scale
@every_solver
@pytest.mark.parametrize(("low", "high"), [(5, 7), (3, 11)], ids=["5 in 7", "3 in 11"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_codes_merge_into_the_coarser_ones(shape, low, high, solver, per_channel):
    for seed, coupled in itertools.product(range(2), (False, True)):
        problem, coarse = bounded(make_problem(shape, high, per_channel, seed, coupled=coupled), low)
        solution = solver(problem)
        assert torch.equal(merged(solution.codes, high, low), coarse)
        assert bool(torch.isfinite(solution.scale).all() and (solution.scale > 0).all())


@every_scale
@every_solver
@pytest.mark.parametrize("change", DEGENERATE.values(), ids=DEGENERATE)
def test_codes_stay_within_bounds_where_gram_matrices_are_singular(change, solver, per_channel):
    problem, coarse = bounded(make_problem((2, 3, 6), 7, per_channel, change=change))
    assert torch.equal(merged(solver(problem).codes, 7, 3), coarse)


@every_scale
@every_solver
def test_bounds_that_allow_all_codes_change_nothing(solver, per_channel):
    problem = make_problem((2, 3, 12), 7, per_channel)
    codes = torch.zeros(problem.target.shape, dtype=torch.uint8)
    free, wide = solver(problem), solver(replace(problem, bounds=Bounds(codes, codes + 6)))
    assert torch.equal(wide.codes, free.codes)
    assert torch.equal(wide.scale, free.scale)
    assert wide.errors == free.errors


@every_solver
def test_codes_that_are_given_leave_the_scale_to_be_found(solver):
    problem = make_problem((1, 4, 6), 5)
    codes = CoordinateDescent()(problem).codes
    solution = solver(replace(problem, bounds=Bounds(codes, codes)))
    assert torch.equal(solution.codes, codes)
    fit = problem.fit(problem.codebook.values(codes, torch.float64), solution.scale)
    if not isinstance(solver, Nearest | Admm):  # whose scales fit the weights, not the outputs
        torch.testing.assert_close(solution.scale, fit.scale)


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [((1, 1, 6), 3, 5), ((1, 2, 3), 3, 7), ((1, 1, 6), 5, 7), ((1, 1, 5), 3, 9)],
    ids=["1x6, 3 in 5 levels", "2x3, 3 in 7 levels", "1x6, 5 in 7 levels", "1x5, 3 in 9 levels"],
)
def test_the_error_is_within_two_percent_of_the_least_of_all_assignments_allowed(shape, low, high):
    problems = [bounded(make_problem(shape, high, seed=seed), low)[0] for seed in range(25)]
    least = np.array([least_error(problem) for problem in problems])
    own = np.array([CoordinateDescent()(problem).errors[-1] for problem in problems])
    assert (own >= least * (1 - 1e-9)).all()
    assert own.sum() / least.sum() < 1.02


@every_scale
@pytest.mark.parametrize("coupled", [False, True], ids=["rows alone", "rows coupled"])
@pytest.mark.parametrize("block", [32, 2], ids="blocks of {}".format)
def test_no_other_allowed_level_of_any_one_code_is_better(block, coupled, per_channel):
    shape = (2, 3, 5)
    for seed in range(3):
        problem, _ = bounded(make_problem(shape, 9, per_channel, seed, coupled=coupled), 3)
        solution = CoordinateDescent(tolerance=0, block=block)(problem)
        G, scale = weights_of(problem, solution), solution.scale.expand(*shape[:2], 1)
        least = problem.error(G)
        for index in np.ndindex(*shape):
            allowed = range(int(problem.bounds.lower[index]), int(problem.bounds.upper[index]) + 1)
            for code in allowed:
                other = G.clone()
                other[index] = scale[index[:2]].item() * problem.codebook.levels[code]
                assert problem.error(other) >= least * (1 - 1e-9)


def test_a_beam_that_drops_nothing_finds_the_best_allowed_codes_for_its_scale():
    options = dict(damping=1e-9, scales=1, low=1.0, high=1.0)
    for seed in range(10):
        problem, _ = bounded(make_problem((1, 2, 4), 5, True, seed))
        solution = ErrorFeedback(beam=5**4, widest=1, **options)(problem)
        scale = ErrorFeedback(beam=1, **options)(problem).scale
        for row in range(2):
            bounds = problem.bounds[0, row]
            allowed = (problem.codebook.levels[a : b + 1] for a, b in zip(bounds.lower, bounds.upper))
            levels = torch.tensor(list(itertools.product(*allowed)), dtype=torch.float64)
            difference = problem.target[0, row] - scale[0, row] * levels
            best = levels[((difference @ problem.gram[0]) * difference).sum(1).argmin()]
            assert torch.equal(problem.codebook.values(solution.codes[0, row]).double(), best)
