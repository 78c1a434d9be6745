"""Coordinate descent over the codes with closed-form scales (COMQ, arXiv 2403.07134)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldnq.problem import Fit, LayerProblem, LayerSolution, Solver
from ldnq.solvers.error_feedback import ErrorFeedback
from ldnq.solvers.registry import solvers

# Of what a step from one level to the next would cost: less may be rounding.
LEAST_GAIN = 1e-9
# Inputs whose changes are carried to all others at once.
LAZY = 512
# Rows that change at once, where they are coupled.
COUPLED = 128


@solvers.register("coordinate-descent")
@dataclass(frozen=True)
class CoordinateDescent:
    """Puts codes on the level of least reconstruction error while all others stand, in each row one at a time and of a
    `block` of inputs the most rewarding first, then refits `α = ⟨W,Q⟩/⟨Q,Q⟩` in the norm of H, and again (COMQ, arXiv
    2403.07134).

    Starts from the best that any of `starts` finds, decided anew for everything that has its own error. Ends when a
    sweep has not lowered the error by a relative `tolerance`, after `max_sweeps` at most.

    Where the problem's sensitivity S couples rows it ends when a sweep gains less than `coupled_tolerance`: what later
    ones gain, other images do not know of. Rows change a code at once: a change must lower the error beside all the
    others, or only the best is made.
    """

    starts: tuple[Solver, ...] = (ErrorFeedback(),)
    max_sweeps: int = 30
    tolerance: float = 5e-3
    coupled_tolerance: float = 1e-2
    block: int = 32

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        return problem.solve(self._solve)

    def _solve(self, problem: LayerProblem) -> LayerSolution:
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
        codes = problem.codebook.nearest(best.levels)
        return LayerSolution(codes, best.scale, (*errors, problem.total(best.error)))

    def _descend(self, problem: LayerProblem, fit: Fit) -> tuple[Fit, list[float]]:
        """Where the sweeps end, and the errors by sweep."""
        tolerance = self.tolerance if problem.sensitivity is None else self.coupled_tolerance
        errors = [problem.total(fit.error)]
        for _ in range(self.max_sweeps):
            fit = self._sweep(problem, fit).or_better(fit)
            errors.append(problem.total(fit.error))
            if errors[-1] >= errors[-2] * (1 - tolerance):
                break
        return fit, errors

    def _sweep(self, problem: LayerProblem, fit: Fit) -> Fit:
        """What one pass over the inputs makes of `fit`: in blocks, and what changes is carried to the rest by matrix
        products of many blocks (as GPTQ's lazy batches)."""
        H, codebook = problem.gram, problem.codebook
        Q, dead = fit.levels.clone(), H.diagonal(dim1=-2, dim2=-1)[:, None] == 0
        if bool(dead.any()):
            # Of an input that is always zero any level will do: the one nearest to the weight.
            Q = torch.where(dead, codebook.rounded(problem.target / fit.scale, problem.bounds), Q)
        changes, moved, d = Q - fit.levels, fit.moved.clone(), Q.shape[2]
        for first in range(0, d, LAZY):
            batch = slice(first, min(first + LAZY, d))
            for start in range(first, batch.stop, self.block):
                inputs = slice(start, min(start + self.block, batch.stop))
                known = moved[..., inputs] + changes[..., first:start] @ H[:, first:start, inputs]
                gradient = problem.pushed_target[..., inputs] - problem.push(fit.scale * known)
                changes[..., inputs] = (
                    self._descend_in(problem, fit.scale, inputs, Q, gradient) - fit.levels[..., inputs]
                )
            moved.baddbmm_(changes[..., batch], H[:, batch])
        return problem.fit(fit.levels + changes, fit.scale, moved)

    def _descend_in(self, problem: LayerProblem, scale: Tensor, inputs: slice, Q: Tensor, gradient: Tensor) -> Tensor:
        """Levels of the `inputs`, from `Q`."""
        if problem.sensitivity is None:
            return Block(problem, scale, slice(None), inputs).descend(Q[..., inputs], gradient)
        levels = Q[..., inputs].clone()
        for start in range(0, Q.shape[1], COUPLED):
            rows = slice(start, start + COUPLED)
            found = Block(problem, scale, rows, inputs).descend(levels[:, rows], gradient[:, rows])
            changed = scale.expand(*Q.shape[:2], 1)[:, rows] * (found - levels[:, rows])
            gradient = gradient - problem.sensitivity[:, :, rows] @ (changed @ problem.gram[:, inputs, inputs])
            levels[:, rows] = found
        return levels


class Block:
    """The codes of some `rows` and `inputs`, while all others and the `scale` stand."""

    def __init__(self, problem: LayerProblem, scale: Tensor, rows: slice, inputs: slice) -> None:
        self.codebook = problem.codebook
        self.H, self.S = problem.gram[:, inputs, inputs], problem.sensitivity
        # Rounding may leave the square of an input below zero: such a weight does not matter.
        curvature = self.H.diagonal(dim1=-2, dim2=-1)[:, None].clamp(min=0)
        if self.S is not None:
            self.S = self.S[:, rows, rows]
            curvature = self.S.diagonal(dim1=-2, dim2=-1)[..., None] * curvature
        scale = scale.expand(*problem.target.shape[:2], 1)[:, rows]
        self.scale, self.curvature = torch.broadcast_tensors(scale, curvature)
        self.bounds = problem.bounds and problem.bounds[:, rows, inputs]

    def descend(self, Q: Tensor, gradient: Tensor) -> Tensor:
        """Levels (groups, rows, inputs) from `Q`, where no row can lower the error any more by changing one code.

        `gradient` is minus half of the error's by the weights. In every step each row makes its best change.
        """
        Q, gradient = Q.clone(), gradient.clone()
        S = self.S
        # Rows that may still change: where they are coupled, all of them.
        rows = torch.arange(Q.shape[1], device=Q.device)
        while True:
            change, gain = self._best_changes(Q[:, rows], gradient[:, rows], rows)
            best, place = gain.max(2, keepdim=True)
            better = (best > 0).any(0).flatten().nonzero().flatten()
            if not len(better):
                return Q
            change = torch.where(best > 0, change.gather(2, place), 0.0)[:, better]
            place, found = place[:, better], rows[better]
            moved = self.H.gather(1, place.expand(*place.shape[:2], self.H.shape[2]))
            if S is None:
                rows = found
                gradient[:, rows] -= change * moved
            else:
                coupling = S[:, found[:, None], found] * moved.gather(2, place.mT.expand(-1, len(found), -1))
                change = self._agree(change, gradient[:, found].gather(2, place), coupling)
                gradient -= S[:, :, found] @ (change * moved)
            Q[:, found] = Q[:, found].scatter_add(2, place, change / self.scale[:, found, :1])

    def _best_changes(self, Q: Tensor, gradient: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best change of each weight of some `rows` by itself, and what it gains."""
        scale, curvature = self.scale[:, rows], self.curvature[:, rows]
        codebook, bounds = self.codebook, self.bounds and self.bounds[:, rows]
        # The error is a parabola of one code: of the levels within bounds too the nearest is the best.
        step = torch.where(curvature > 0, gradient / (scale * curvature), 0.0)
        change = scale * (codebook.rounded(Q + step, bounds) - Q)
        return change, change * (2 * gradient - curvature * change) - LEAST_GAIN * curvature * scale.square()

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
