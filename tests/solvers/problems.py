"""Layer problems small enough to be solved in other ways, shared by the tests of all solvers."""

import itertools
from dataclasses import replace

import numpy as np
import torch

from ldnq.codebook import Codebook
from ldnq.problem import LayerProblem

SHAPES = {"dense": (1, 4, 6), "grouped": (2, 3, 5), "depthwise": (5, 1, 4)}


def make_problem(shape=(1, 4, 6), kbits=3, per_channel=False, seed=0, change=None, coupled=False):
    """Weights and correlated inputs; `change` edits the inputs (groups, d, positions) in place, `coupled` makes a
    sensitivity that couples the rows."""
    groups, rows, d = shape
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((groups, d, 3 * d)) + 0.5 * rng.standard_normal((groups, 1, 3 * d))
    if change:
        change(inputs)
    gram = inputs @ inputs.transpose(0, 2, 1) / (3 * d)
    target = rng.standard_normal((groups, rows, d))
    problem = LayerProblem(torch.from_numpy(target), torch.from_numpy(gram), Codebook.power_of_two(kbits), per_channel)
    if not coupled:
        return problem
    gradients = rng.standard_normal((groups, rows, 2 * rows)) + 0.7 * rng.standard_normal((groups, 1, 2 * rows))
    return replace(problem, sensitivity=torch.from_numpy(gradients @ gradients.transpose(0, 2, 1) / (2 * rows)))


def as_one_row(problem):
    """A problem of one group and one scale as a single row of all its weights, with the Gram matrix S ⊗ H."""
    gram = torch.kron(problem.sensitivity[0], problem.gram[0])[None]
    return LayerProblem(problem.target.reshape(1, 1, -1), gram, problem.codebook)


def weights_of(problem, solution):
    return solution.scale * problem.codebook.values(solution.codes, torch.float64)


def least_error(problem):
    """Over every assignment of allowed levels to one group with its best positive scale."""
    W, H, levels = problem.target[0].numpy(), problem.gram[0].numpy(), problem.codebook.levels
    allowed = [levels] * W.size
    if problem.bounds:
        ends = zip(problem.bounds.lower.flatten(), problem.bounds.upper.flatten())
        allowed = [levels[first : last + 1] for first, last in ends]
    Q = np.array(list(itertools.product(*allowed))).reshape(-1, *W.shape)
    overlap, norm = (Q @ H * W).sum((1, 2)), (Q @ H * Q).sum((1, 2))
    return float(np.trace(W @ H @ W.T) - np.where(overlap > 0, overlap**2 / np.maximum(norm, 1e-12), 0).max())


def kill_middle(inputs):
    inputs[:, 2:4] = 0


def kill_first(inputs):
    inputs[:, 0] = 0


def nearly_kill_first(inputs):
    inputs[:, 0] *= 1e-5


def correlate(inputs):
    """As neighbouring pixels are: each input is 0.95 of the one before it, and something new."""
    for j in range(1, inputs.shape[1]):
        inputs[:, j] += 0.95 * inputs[:, j - 1]


def _double(inputs):
    inputs[:, 3] = inputs[:, 1]


def _keep_two_positions(inputs):
    inputs[:, :, 2:] = 0


DEGENERATE = {
    "two dead inputs": kill_middle,
    "first input dead": kill_first,
    "first input nearly dead": nearly_kill_first,
    "two equal inputs": _double,
    "fewer positions than inputs": _keep_two_positions,
}
