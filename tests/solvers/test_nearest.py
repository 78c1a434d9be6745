import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldnq.codebook import Codebook
from ldnq.problem import LayerProblem
from ldnq.solvers import solvers
from ldnq.solvers.nearest import Nearest


def _problem(groups=1, rows=3, d=6, kbits=3, per_channel=False, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((groups, d, 4 * d))
    gram = torch.from_numpy(inputs @ inputs.transpose(0, 2, 1) / (4 * d))
    target = torch.from_numpy(rng.standard_normal((groups, rows, d)))
    return LayerProblem(target, gram, Codebook.power_of_two(kbits), per_channel)


def test_nearest_is_in_the_table_of_solvers():
    assert solvers.get("nearest") is Nearest


@pytest.mark.parametrize("per_channel", [False, True], ids=["per layer", "per channel"])
@pytest.mark.parametrize(("groups", "rows"), [(1, 3), (2, 2), (4, 1)], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("inner", [1 / 2, 1 / 3], ids=["exact in binary", "rounded"])
def test_the_one_error_is_that_of_the_weights_returned(groups, rows, per_channel, inner):
    problem = replace(_problem(groups, rows, per_channel=per_channel), codebook=Codebook((-1.0, -inner, inner, 1.0)))
    solution = Nearest()(problem)
    assert solution.codes.shape == problem.target.shape
    assert solution.scale.shape == ((groups, rows, 1) if per_channel else (1, 1, 1))
    weights = solution.scale * problem.codebook.values(solution.codes, torch.float64)
    assert solution.errors == (problem.error(weights),)


@pytest.mark.parametrize("seed", range(10), ids="draw {}".format)
def test_three_levels_are_the_best_of_all_assignments_in_the_plain_norm(seed):
    problem = _problem(rows=2, d=3, seed=seed)
    target = problem.target.numpy().ravel()
    assignments = np.array(list(itertools.product(problem.codebook.levels, repeat=6)))
    assignments = assignments[np.square(assignments).sum(1) > 0]
    scales = assignments @ target / np.square(assignments).sum(1)
    distances = np.square(target - scales[:, None] * assignments).sum(1)
    best = np.lexsort((-scales, distances.round(12)))[0]
    solution = Nearest()(problem)
    assert solution.scale.item() == pytest.approx(scales[best])
    np.testing.assert_array_equal(problem.codebook.values(solution.codes).numpy().ravel(), assignments[best])


def test_the_inputs_do_not_change_the_codes():
    problem = _problem()
    other = LayerProblem(problem.target, 1e6 * _problem(seed=1).gram, problem.codebook)
    assert torch.equal(Nearest()(problem).codes, Nearest()(other).codes)
    assert torch.equal(Nearest()(problem).scale, Nearest()(other).scale)


def test_weights_that_are_on_the_levels_already_lose_nothing():
    target = 0.3 * torch.tensor([[[2.0, -1.0, 0.0], [1.0, 1.0, -2.0]]], dtype=torch.float64)
    problem = LayerProblem(target, _problem(d=3).gram, Codebook.power_of_two(5))
    assert Nearest()(problem).errors[0] == pytest.approx(0, abs=1e-24)
