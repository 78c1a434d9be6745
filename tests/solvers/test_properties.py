"""What holds for every solver and any problem: drawn by Hypothesis, the same ones every time."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldnq.solvers import solvers
from ldnq.solvers.admm import Admm
from ldnq.solvers.coordinate_descent import CoordinateDescent
from ldnq.solvers.error_feedback import ErrorFeedback
from ldnq.solvers.nearest import Nearest
from tests.solvers.problems import least_error, make_problem, weights_of

# Error feedback takes rows one by one, whatever couples them.
ALL = {name: solvers.get(name)() for name in ("nearest", "admm", "error-feedback", "coordinate-descent")}
BLIND_TO_ORDER = {"nearest": Nearest(), "admm, ρ = 0.5 mean": Admm(rho=0.5)}
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=12, database=None)
UNCOUPLED = st.just(False)

every_solver = pytest.mark.parametrize("solver", ALL.values(), ids=ALL)


@st.composite
def problems(draw, coupled=UNCOUPLED, spread=0):
    """Layers of 1 to 3 groups, 1 to 4 rows and 1 to 6 inputs, which may be always zero, fewer than they seem, or
    10^`spread` times as large as others."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    positions, dead = draw(st.integers(1, 3 * shape[2])), draw(st.integers(0, 2))
    exponents = np.array(draw(st.lists(st.integers(-spread, spread), min_size=shape[2], max_size=shape[2])))

    def change(inputs):
        inputs *= 10.0 ** exponents[:, None]
        inputs[:, :, positions:] = 0
        inputs[:, :dead] = 0

    kbits, seed = draw(st.sampled_from([3, 5, 7, 11])), draw(st.integers(0, 2**31))
    return make_problem(shape, kbits, draw(st.booleans()), seed, change, draw(coupled))


@st.composite
def definite_problems(draw, coupled=UNCOUPLED):
    """Layers of which no two solutions are equally good: of three inputs or more, none made up of the others."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(3, 6))
    kbits, seed = draw(st.sampled_from([3, 5, 7, 11])), draw(st.integers(0, 2**31))
    return make_problem(shape, kbits, draw(st.booleans()), seed, coupled=draw(coupled))


def energy(problem):
    """The error of no weights at all."""
    return problem.error(torch.zeros_like(problem.target))


@every_solver
@EXAMPLES
@given(problem=problems(spread=6))
def test_no_solver_is_worse_than_nearest(solver, problem):
    solution = solver(problem)
    assert solution.codes.shape == problem.target.shape
    assert int(solution.codes.max()) < problem.codebook.num_levels
    assert bool(torch.isfinite(solution.scale).all() and (solution.scale > 0).all())
    assert problem.error(weights_of(problem, solution)) <= Nearest()(problem).errors[0] + 1e-9 * energy(problem)


@every_solver
@EXAMPLES
@given(problem=definite_problems(), weights=st.integers(-30, 30), inputs=st.integers(-30, 30))
def test_the_sizes_of_weights_and_inputs_do_not_change_the_codes(solver, problem, weights, inputs):
    scaled = replace(problem, target=problem.target * 10.0**weights, gram=problem.gram * 10.0 ** (2 * inputs))
    solution, other = solver(problem), solver(scaled)
    assert torch.equal(other.codes, solution.codes)
    torch.testing.assert_close(other.scale, solution.scale * 10.0**weights, rtol=1e-6, atol=0)


@every_solver
@EXAMPLES
@given(problem=definite_problems(coupled=st.booleans()), data=st.data())
def test_the_order_of_outputs_does_not_matter(solver, problem, data):
    rows = list(data.draw(st.permutations(range(problem.target.shape[1]))))
    S = problem.sensitivity
    shuffled = replace(problem, target=problem.target[:, rows], sensitivity=S if S is None else S[:, rows][:, :, rows])
    solution, other = solver(problem), solver(shuffled)
    assert torch.equal(other.codes, solution.codes[:, rows])
    scale = solution.scale[:, rows] if problem.per_channel else solution.scale
    torch.testing.assert_close(other.scale, scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("solver", BLIND_TO_ORDER.values(), ids=BLIND_TO_ORDER)
@EXAMPLES
@given(problem=definite_problems(), data=st.data())
def test_the_order_of_inputs_does_not_matter(solver, problem, data):
    columns = list(data.draw(st.permutations(range(problem.target.shape[2]))))
    gram = problem.gram[:, columns][:, :, columns]
    shuffled = replace(problem, target=problem.target[..., columns], gram=gram)
    solution, other = solver(problem), solver(shuffled)
    assert torch.equal(other.codes, solution.codes[..., columns])
    torch.testing.assert_close(other.scale, solution.scale, rtol=1e-6, atol=0)


@EXAMPLES
@given(problem=problems(coupled=st.booleans(), spread=6))
def test_no_sweep_of_coordinate_descent_raises_the_error(problem):
    solution, rounding = CoordinateDescent(tolerance=0)(problem), 1e-9 * energy(problem)
    assert all(later <= earlier + rounding for earlier, later in itertools.pairwise(solution.errors))
    assert problem.error(weights_of(problem, solution)) == pytest.approx(solution.errors[-1], abs=rounding)


@EXAMPLES
@given(problem=problems(spread=6))
def test_no_wider_beam_raises_the_error(problem):
    errors = ErrorFeedback()(problem).errors
    assert errors[1] <= errors[0]


@EXAMPLES
@given(problem=problems(spread=6), iterations=st.integers(0, 12))
def test_more_iterations_of_admm_never_raise_the_error_of_what_it_keeps(problem, iterations):
    errors = [
        problem.error(weights_of(problem, Admm(max_iterations=most, patience=100)(problem)))
        for most in (iterations, iterations + 1)
    ]
    assert errors[1] <= errors[0]


@every_solver
@EXAMPLES
@given(rows=st.integers(1, 3), d=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_three_levels_are_the_best_of_all_where_inputs_are_white(solver, rows, d, seed):
    problem = make_problem((1, rows, d), 3, seed=seed)
    problem = replace(problem, gram=torch.eye(d, dtype=torch.float64)[None])
    error = problem.error(weights_of(problem, solver(problem)))
    assert error == pytest.approx(least_error(problem), rel=1e-9, abs=1e-12)


@every_solver
@EXAMPLES
@given(problem=problems(spread=6), value=st.sampled_from([0.0, 0.3, -0.3, 1e-30, -1e30]))
def test_weights_that_are_all_equal_lose_nothing(solver, problem, value):
    problem = replace(problem, target=torch.full_like(problem.target, value))
    solution = solver(problem)
    torch.testing.assert_close(weights_of(problem, solution), problem.target, rtol=1e-9, atol=0)
    assert bool(torch.isfinite(solution.scale).all() and (solution.scale > 0).all())


@every_solver
@EXAMPLES
@given(rows=st.integers(1, 4), seed=st.integers(0, 2**31), kbits=st.sampled_from([3, 5, 7, 11]))
def test_one_input_with_scales_per_channel_loses_nothing(solver, rows, seed, kbits):
    problem = make_problem((1, rows, 1), kbits, per_channel=True, seed=seed)
    torch.testing.assert_close(weights_of(problem, solver(problem)), problem.target, rtol=1e-9, atol=0)
