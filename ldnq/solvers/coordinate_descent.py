"""Coordinate descent over the codes with closed-form scales (COMQ, arXiv 2403.07134)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldnq.problem import Fit, LayerProblem, LayerSolution, Solver
from ldnq.solvers.admm import Admm
from ldnq.solvers.error_feedback import ErrorFeedback
from ldnq.solvers.registry import solvers


@solvers.register("coordinate-descent")
@dataclass(frozen=True)
class CoordinateDescent:
    """Puts one code after the other on the level of least reconstruction error while all others stand, then refits
    `α = ⟨W,Q⟩/⟨Q,Q⟩` in the norm of H, and again (COMQ, arXiv 2403.07134).

    Starts from the best that any of `starts` finds, decided anew for everything that has its own error. Ends when a
    sweep has not lowered the error by a relative `tolerance`, after `max_sweeps` at most.

    Where the problem's sensitivity S couples rows, that goes on from where it ended for each row alone. The codes of an
    input change in all rows at once: a change must lower the error beside all the others, or only the best is made.
    """

    starts: tuple[Solver, ...] = (ErrorFeedback(), Admm())
    max_sweeps: int = 30
    tolerance: float = 1e-4
    block: int = 64

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        best, errors = self._solve_rows(problem.by_rows())
        if problem.sensitivity is not None:
            best, errors = self._descend(problem, problem.fit(best.levels, best.scale))
        return LayerSolution(problem.codebook.nearest(best.levels), best.scale, tuple(errors))

    def _solve_rows(self, problem: LayerProblem) -> tuple[Fit, list[float]]:
        """The best of all starts, and the errors by sweep of one after the other."""
        best, errors = None, []
        for start in self.starts:
            solution = start(problem)
            fit = problem.fit(problem.codebook.values(solution.codes, problem.target.dtype), solution.scale)
            fit, history = self._descend(problem, fit)
            best = best.or_better(fit) if best else fit
            errors += history
        return best, [*errors, float(best.error.sum())]

    def _descend(self, problem: LayerProblem, fit: Fit) -> tuple[Fit, list[float]]:
        """Where the sweeps end, and the errors by sweep."""
        errors = [float(fit.error.sum())]
        for _ in range(self.max_sweeps):
            fit = problem.fit(self._sweep(problem, fit), fit.scale).or_better(fit)
            errors.append(float(fit.error.sum()))
            if errors[-1] >= errors[-2] * (1 - self.tolerance):
                break
        return fit, errors

    def _sweep(self, problem: LayerProblem, fit: Fit) -> Tensor:
        """Levels after one pass over the inputs, in blocks, so that matrix products carry what changes to the rest."""
        H, codebook = problem.gram, problem.codebook
        wanted = problem.target / fit.scale
        curvature = H.diagonal(dim1=-2, dim2=-1)[:, None]
        dead = curvature == 0
        # Of an input that is always zero any level will do: the one nearest to the weight.
        Q = torch.where(dead, codebook.values(codebook.nearest(wanted), wanted.dtype), fit.levels)
        gradient = problem.push(problem.target - fit.scale * Q) @ H
        rows = Rows(problem, fit.scale)
        for start in range(0, Q.shape[2], self.block):
            block = slice(start, start + self.block)
            before = Q[..., block].clone()
            within, inner = gradient[..., block].clone(), H[:, block, block]
            for j in range(before.shape[2]):
                column = slice(start + j, start + j + 1)
                Q[..., column], change = rows.choose(Q[..., column], within[..., j, None], curvature[..., column])
                within -= change * inner[:, j, None]
            gradient -= problem.push(fit.scale * (Q[..., block] - before)) @ H[:, block]
        return Q


class Rows:
    """The rows of a problem, with their scales, where they choose the codes of one input."""

    def __init__(self, problem: LayerProblem, scale: Tensor) -> None:
        self.problem, self.scale = problem, scale
        sensitivity = problem.sensitivity
        self.weights = torch.ones_like(scale) if sensitivity is None else _diagonal(sensitivity)

    def choose(self, levels: Tensor, gradient: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
        """The best levels of an input, and S times the change of its weights, each (groups, rows, 1).

        `gradient` is minus half of the error's by the input's weights, (groups, rows, 1), and `curvature` its H_jj,
        (groups, 1, 1).
        """
        codebook = self.problem.codebook
        step = torch.where(curvature == 0, 0.0, 1 / (self.scale * self.weights * curvature))
        chosen = codebook.values(codebook.nearest(levels + step * gradient), levels.dtype)
        change = self.scale * (chosen - levels)
        if self.problem.sensitivity is None:
            return chosen, change
        change = self._agree(change, gradient, curvature)
        return torch.where(change == 0, levels, chosen), self.problem.push(change)

    def _agree(self, change: Tensor, gradient: Tensor, curvature: Tensor) -> Tensor:
        """Of the changes that each lower the error those that do so together, or the best single one."""
        alone = change * (2 * gradient - curvature * self.weights * change)
        among_all = alone - 2 * curvature * change * (self.problem.push(change) - self.weights * change)
        several = torch.where(among_all > 0, change, 0.0)
        together = (several * (2 * gradient - curvature * self.problem.push(several))).sum(1, keepdim=True)
        best, row = alone.max(1, keepdim=True)
        single = torch.zeros_like(change).scatter_(1, row, change.gather(1, row))
        return torch.where(together >= best, several, single)


def _diagonal(matrices: Tensor) -> Tensor:
    """(groups, d, d) to (groups, d, 1)."""
    return matrices.diagonal(dim1=-2, dim2=-1).unsqueeze(2)
