import itertools

import numpy as np
import pytest
import torch

from ldnq.problem import LayerProblem
from ldnq.solvers import coordinate_descent, solvers
from ldnq.solvers.admm import Admm
from ldnq.solvers.coordinate_descent import CoordinateDescent
from ldnq.solvers.error_feedback import ErrorFeedback
from ldnq.solvers.nearest import Nearest
from tests.solvers.problems import (
    DEGENERATE,
    SHAPES,
    as_one_row,
    correlate,
    kill_middle,
    least_error,
    make_problem,
    weights_of,
)


def test_coordinate_descent_is_in_the_table_of_solvers():
    assert solvers.get("coordinate-descent") is CoordinateDescent


@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kbits", [3, 7], ids="{} levels".format)
@pytest.mark.parametrize("coupled", [False, True], ids=["rows alone", "rows coupled"])
@pytest.mark.parametrize("block", [32, 5, 1], ids="blocks of {}".format)
def test_no_other_level_of_any_one_code_is_better(block, coupled, kbits, shape, per_channel):
    for seed in range(3):
        problem = make_problem(shape, kbits, per_channel, seed, coupled=coupled)
        solution = CoordinateDescent(tolerance=0, block=block)(problem)
        G = weights_of(problem, solution)
        least = problem.error(G)
        assert least == pytest.approx(solution.errors[-1])
        scale = solution.scale.expand(*shape[:2], 1)
        for index in np.ndindex(*shape):
            for level in problem.codebook.levels:
                other = G.clone()
                other[index] = scale[index[:2]].item() * level
                assert problem.error(other) >= least * (1 - 1e-9)


@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
@pytest.mark.parametrize("coupled", [False, True], ids=["rows alone", "rows coupled"])
@pytest.mark.parametrize("start", [Nearest(), Admm(), ErrorFeedback(beam=1)], ids=["nearest", "admm", "error feedback"])
def test_every_sweep_lowers_the_error_of_its_start(start, coupled, per_channel):
    for seed in range(5):
        problem = make_problem((2, 3, 12), 5, per_channel, seed, coupled=coupled)
        errors = CoordinateDescent((start,), tolerance=0)(problem).errors
        started = problem.error(weights_of(problem, start(problem)))
        assert errors[0] <= started * (1 + 1e-9)
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))


def test_of_several_starts_the_best_is_taken_for_every_channel():
    problem = make_problem((1, 6, 12), per_channel=True)
    starts = (ErrorFeedback(beam=1), Admm())
    errors = [
        problem.fit(problem.codebook.values(s.codes).double(), s.scale).error
        for s in (CoordinateDescent((start,))(problem) for start in starts)
    ]
    assert CoordinateDescent(starts)(problem).errors[-1] == pytest.approx(float(torch.minimum(*errors).sum()))


@pytest.mark.parametrize(
    ("shape", "kbits", "bound"),
    [((1, 1, 6), 3, 0.02), ((1, 2, 4), 3, 0.02), ((1, 1, 5), 5, 0.02), ((1, 1, 4), 7, 0.02)],
    ids=["1x6, 3 levels", "2x4, 3 levels", "1x5, 5 levels", "1x4, 7 levels"],
)
def test_the_error_is_within_two_percent_of_the_least_of_all_assignments(shape, kbits, bound):
    problems = [make_problem(shape, kbits, seed=seed) for seed in range(25)]
    least = np.array([least_error(problem) for problem in problems])
    own = np.array([CoordinateDescent()(problem).errors[-1] for problem in problems])
    assert (own >= least * (1 - 1e-9)).all()
    assert own.sum() / least.sum() < 1 + bound


def test_coupled_rows_come_near_to_the_least_of_all_assignments():
    problems = [make_problem((1, 3, 3), seed=seed, coupled=True) for seed in range(25)]
    least = np.array([least_error(as_one_row(problem)) for problem in problems])
    own = np.array([CoordinateDescent()(problem).errors[-1] for problem in problems])
    assert (own >= least * (1 - 1e-9)).all()
    assert own.sum() / least.sum() < 1.25


@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
def test_coupled_rows_make_up_for_each_other(per_channel):
    gains = []
    for seed in range(5):
        problem = make_problem((2, 12, 24), per_channel=per_channel, seed=seed, coupled=True)
        alone = CoordinateDescent()(problem.by_rows())
        gains.append(CoordinateDescent()(problem).errors[-1] / problem.error(weights_of(problem, alone)))
    assert np.mean(gains) < 0.8


def test_it_is_far_under_admm_where_inputs_are_correlated():
    gains = []
    for seed in range(10):
        problem = make_problem((1, 8, 24), seed=seed, change=correlate)
        gains.append(
            CoordinateDescent()(problem).errors[-1] / min(Admm(max_iterations=1000, patience=50)(problem).errors)
        )
    assert np.mean(gains) < 0.7


def test_the_weight_of_a_dead_input_is_rounded_to_nearest():
    problem = make_problem((1, 2, 6), change=kill_middle)
    solution = CoordinateDescent()(problem)
    nearest = problem.codebook.nearest(problem.target / solution.scale)
    assert torch.equal(solution.codes[..., 2:4], nearest[..., 2:4])


@pytest.mark.parametrize("change", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
def test_singular_gram_matrices_are_solved_all_the_same(change, per_channel):
    problem = make_problem((2, 3, 6), 5, per_channel, change=change)
    solution = CoordinateDescent()(problem)
    assert bool(torch.isfinite(solution.scale).all() and (solution.scale > 0).all())
    assert solution.errors[-1] == pytest.approx(problem.error(weights_of(problem, solution)))


def test_weights_on_the_levels_already_are_left_alone():
    target = 0.25 * torch.tensor([[[2.0, -1.0, 0.0], [1.0, 1.0, -2.0]]], dtype=torch.float64)
    problem = LayerProblem(target, make_problem((1, 2, 3)).gram, make_problem(kbits=5).codebook)
    torch.testing.assert_close(weights_of(problem, CoordinateDescent()(problem)), target)


def test_it_ends_with_the_first_sweep_that_hardly_lowers_the_error():
    problem = make_problem((1, 6, 24), change=correlate)
    *errors, _ = CoordinateDescent(starts=(Nearest(),), tolerance=0.05)(problem).errors
    shares = [later / earlier for earlier, later in itertools.pairwise(errors)]
    assert len(shares) > 1
    assert max(shares[:-1]) < 0.95 <= shares[-1]


def test_batches_of_blocks_do_not_change_the_result(monkeypatch):
    problem = make_problem((2, 6, 24), 5, change=correlate)
    expected = CoordinateDescent(block=4)(problem)
    monkeypatch.setattr(coordinate_descent, "LAZY", 6)
    solution = CoordinateDescent(block=2)(problem)
    assert solution.errors[-1] == pytest.approx(expected.errors[-1], rel=0.05)
    monkeypatch.setattr(coordinate_descent, "LAZY", 8)
    assert torch.equal(CoordinateDescent(block=4)(problem).codes, expected.codes)


def test_coupled_rows_that_change_some_at_a_time_end_where_no_single_change_helps(monkeypatch):
    monkeypatch.setattr(coordinate_descent, "COUPLED", 3)
    problem = make_problem((2, 7, 6), 5, coupled=True)
    solution = CoordinateDescent(tolerance=0)(problem)
    G = weights_of(problem, solution)
    least = problem.error(G)
    assert least == pytest.approx(solution.errors[-1])
    for index, level in itertools.product(np.ndindex(*G.shape), problem.codebook.levels):
        other = G.clone()
        other[index] = solution.scale.item() * level
        assert problem.error(other) >= least * (1 - 1e-9)


@pytest.mark.parametrize("coupled", [False, True], ids=["", "coupled"])
def test_an_input_whose_square_rounding_left_below_zero_does_not_matter(coupled):
    problem = make_problem(coupled=coupled)
    problem.gram[:, 2] = problem.gram[:, :, 2] = 0.0
    problem.gram[:, 2, 2] = -1e-12
    solution = CoordinateDescent((Nearest(),))(problem)
    assert solution.errors[-1] <= solution.errors[0]
