"""Coordinate descent over the codes with closed-form scales (COMQ, arXiv 2403.07134)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldnq.problem import Fit, LayerProblem, LayerSolution, Solver
from ldnq.solvers.error_feedback import ErrorFeedback
from ldnq.solvers.registry import solvers

# Of what a step from one level to the next would cost: less may be rounding.
LEAST_GAIN = 1e-9


@solvers.register("coordinate-descent")
@dataclass(frozen=True)
class CoordinateDescent:
    """Puts codes on the level of least reconstruction error while all others stand, in each row one at a time and of a
    `block` of inputs the most rewarding first, then refits `α = ⟨W,Q⟩/⟨Q,Q⟩` in the norm of H, and again (COMQ, arXiv
    2403.07134).

    Starts from the best that any of `starts` finds, decided anew for everything that has its own error. Ends when a
    sweep has not lowered the error by a relative `tolerance`, after `max_sweeps` at most.

    Where the problem's sensitivity S couples rows, that goes on from where it ended for each row alone. All rows change
    a code at once: a change must lower the error beside all the others, or only the best is made.
    """

    starts: tuple[Solver, ...] = (ErrorFeedback(),)
    max_sweeps: int = 30
    tolerance: float = 1e-3
    block: int = 32

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        found = problem.by_rows().solve(self._solve_rows)
        if problem.sensitivity is None:
            return found
        levels = problem.codebook.values(found.codes, problem.target.dtype)
        return _solution(problem, *self._descend(problem, problem.fit(levels, found.scale)))

    def _solve_rows(self, problem: LayerProblem) -> LayerSolution:
        """The best of all starts, and the errors by sweep of one after the other."""
        best: Fit | None = None
        errors: list[float] = []
        for start in self.starts:
            solution = start(problem)
            fit = problem.fit(problem.codebook.values(solution.codes, problem.target.dtype), solution.scale)
            fit, history = self._descend(problem, fit)
            best = best.or_better(fit) if best else fit
            errors += history
        assert best, "there is a start"  # noqa: S101, for the type
        return _solution(problem, best, [*errors, problem.total(best.error)])

    def _descend(self, problem: LayerProblem, fit: Fit) -> tuple[Fit, list[float]]:
        """Where the sweeps end, and the errors by sweep."""
        errors = [problem.total(fit.error)]
        for _ in range(self.max_sweeps):
            fit = problem.fit(self._sweep(problem, fit), fit.scale).or_better(fit)
            errors.append(problem.total(fit.error))
            if errors[-1] >= errors[-2] * (1 - self.tolerance):
                break
        return fit, errors

    def _sweep(self, problem: LayerProblem, fit: Fit) -> Tensor:
        """Levels after one pass over the inputs, in blocks, so that matrix products carry what changes to the rest."""
        H, codebook = problem.gram, problem.codebook
        wanted = problem.target / fit.scale
        dead = H.diagonal(dim1=-2, dim2=-1)[:, None] == 0
        # Of an input that is always zero any level will do: the one nearest to the weight.
        Q = torch.where(dead, codebook.values(codebook.nearest(wanted, problem.bounds), wanted.dtype), fit.levels)
        gradient = problem.push(problem.target - fit.scale * Q) @ H
        for start in range(0, Q.shape[2], self.block):
            inputs = slice(start, start + self.block)
            levels = Block(problem, fit.scale, inputs).descend(Q[..., inputs], gradient[..., inputs])
            gradient -= problem.push(fit.scale * (levels - Q[..., inputs])) @ H[:, inputs]
            Q[..., inputs] = levels
        return Q


def _solution(problem: LayerProblem, fit: Fit, errors: list[float]) -> LayerSolution:
    return LayerSolution(problem.codebook.nearest(fit.levels), fit.scale, tuple(errors))


class Block:
    """The codes of some of the `inputs`, while those of all others and the `scale` stand."""

    def __init__(self, problem: LayerProblem, scale: Tensor, inputs: slice) -> None:
        self.problem = problem
        self.scale = scale.expand(*problem.target.shape[:2], 1)
        self.H = problem.gram[:, inputs, inputs]
        S = problem.sensitivity
        curvature = self.H.diagonal(dim1=-2, dim2=-1)[:, None]
        self.curvature = curvature if S is None else S.diagonal(dim1=-2, dim2=-1)[..., None] * curvature
        self.step = torch.where(self.curvature > 0, 1 / (scale * self.curvature), 0.0)
        self.least = LEAST_GAIN * self.curvature * scale.square()
        self.bounds = problem.bounds and problem.bounds[..., inputs]

    def descend(self, Q: Tensor, gradient: Tensor) -> Tensor:
        """Levels (groups, rows, inputs) from `Q`, where no row can lower the error any more by changing one code.

        `gradient` is minus half of the error's by the weights. In every step each row makes its best change.
        """
        Q, gradient = Q.clone(), gradient.clone()
        codebook, S = self.problem.codebook, self.problem.sensitivity
        while True:
            # The error is a parabola of one code: of the levels within bounds too the nearest is the best.
            chosen = codebook.values(codebook.nearest(Q + self.step * gradient, self.bounds), Q.dtype)
            change = self.scale * (chosen - Q)
            gain = change * (2 * gradient - self.curvature * change) - self.least
            best, place = gain.max(2, keepdim=True)
            rows = (best > 0).any(0).flatten().nonzero().flatten()
            if not len(rows):
                return Q
            change = torch.where(best > 0, change.gather(2, place), 0.0)[:, rows]
            place = place[:, rows]
            moved = self.H.gather(1, place.expand(*place.shape[:2], self.H.shape[2]))
            if S is None:
                gradient[:, rows] -= change * moved
            else:
                coupling = S[:, rows[:, None], rows] * moved.gather(2, place.mT.expand(-1, len(rows), -1))
                change = self._agree(change, gradient[:, rows].gather(2, place), coupling)
                gradient -= S[:, :, rows] @ (change * moved)
            Q[:, rows] = Q[:, rows].scatter_add(2, place, change / self.scale[:, rows])

    @staticmethod
    def _agree(change: Tensor, gradient: Tensor, coupling: Tensor) -> Tensor:
        """Of the changes (groups, rows, 1) that each lower the error those that do so together, or the best single one.

        `coupling` (groups, rows, rows) is what the changes of two rows cost together.
        """
        own = coupling.diagonal(dim1=-2, dim2=-1).unsqueeze(2)
        alone = change * (2 * gradient - own * change)
        among_all = alone - 2 * change * (coupling @ change - own * change)
        several = torch.where(among_all > 0, change, 0.0)
        together = (several * (2 * gradient - coupling @ several)).sum(1, keepdim=True)
        best, row = alone.max(1, keepdim=True)
        single = torch.zeros_like(change).scatter_(1, row, change.gather(1, row))
        return torch.where(together >= best, several, single)
