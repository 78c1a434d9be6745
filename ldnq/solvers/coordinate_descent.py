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

    Starts from the best that any of `starts` finds, decided anew for everything that has its own scale. Ends when a
    sweep has not lowered the error by a relative `tolerance`, after `max_sweeps` at most.
    """

    starts: tuple[Solver, ...] = (ErrorFeedback(), Admm())
    max_sweeps: int = 30
    tolerance: float = 1e-4
    block: int = 64

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        best, errors = None, []
        for start in self.starts:
            solution = start(problem)
            fit = problem.fit(problem.codebook.values(solution.codes, problem.target.dtype), solution.scale)
            fit, history = self._descend(problem, fit)
            best = best.or_better(fit) if best else fit
            errors += history
        codes = problem.codebook.nearest(best.levels)
        return LayerSolution(codes, best.scale, (*errors, float(best.error.sum())))

    def _descend(self, problem: LayerProblem, fit: Fit) -> tuple[Fit, list[float]]:
        """Where the sweeps end, and the errors by sweep."""
        errors = [float(fit.error.sum())]
        for _ in range(self.max_sweeps):
            fit = problem.fit(self._sweep(problem, fit), fit.scale)
            errors.append(float(fit.error.sum()))
            if errors[-1] >= errors[-2] * (1 - self.tolerance):
                break
        return fit, errors

    def _sweep(self, problem: LayerProblem, fit: Fit) -> Tensor:
        """Levels after one pass over the inputs, in blocks, so that matrix products carry what changes to the rest."""
        H, codebook = problem.gram, problem.codebook
        wanted = problem.target / fit.scale
        diagonal = H.diagonal(dim1=-2, dim2=-1)[:, None]
        dead = diagonal == 0
        # Of an input that is always zero any level will do: the one nearest to the weight.
        Q = torch.where(dead, codebook.values(codebook.nearest(wanted), wanted.dtype), fit.levels)
        step = torch.where(dead, 0.0, 1 / diagonal)
        gradient = (wanted - Q) @ H
        for start in range(0, Q.shape[2], self.block):
            block = slice(start, start + self.block)
            before = Q[..., block].clone()
            within, inner = gradient[..., block].clone(), H[:, block, block]
            for j in range(before.shape[2]):
                column = start + j
                optimum = Q[..., column] + within[..., j] * step[..., column]
                level = codebook.values(codebook.nearest(optimum), Q.dtype)
                within -= (level - Q[..., column])[..., None] * inner[:, j, None]
                Q[..., column] = level
            gradient -= (Q[..., block] - before) @ H[:, block]
        return Q
