"""Rounding with error feedback (OBQ, arXiv 2208.11580; GPTQ, arXiv 2210.17323), as a beam search."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldnq.codebook import Bounds
from ldnq.lattice import BLOCK, Lattice, ordered_factor
from ldnq.problem import ROWS, Fit, LayerProblem, LayerSolution, project
from ldnq.solvers.registry import solvers

# Numbers rounded at once: 256 MiB in float32.
MAX_ENTRIES = 1 << 26
# So many are rounded in no time.
CHEAP = 1 << 18
# The fewest coupled rows that are rounded at once.
LEAST_ROWS = 16


@solvers.register("error-feedback")
@dataclass(frozen=True)
class ErrorFeedback:
    """Rounds input by input, those of the largest second moment first, and lets the weights not yet rounded make up for
    the error (GPTQ, arXiv 2210.17323, Algorithm 1, with its blocks).

    The scale is the best by reconstruction error of `scales` multiples, from `low` to `high`, of the one that fits the
    weights alone. With that scale the `beam` best partial roundings of every row are followed instead of one, the
    K-best search of lattice decoders; they may differ in the last `depth` inputs. Of few weights more are followed, up
    to `widest`, and with every scale. λ, added to the diagonal of H, is `damping` times its mean.

    Where the problem's sensitivity couples rows, they are rounded in up to `parts`, those felt most first, and the rows
    not yet rounded make up for the error as well (YAQA, arXiv 2505.22988), with the scales that suit rows alone.
    """

    damping: float = 0.01
    scales: int = 17
    low: float = 0.6
    high: float = 2.2
    beam: int = 8
    widest: int = 128
    block: int = BLOCK
    depth: int = 128
    parts: int = 8

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        return problem.solve(self._solve)

    def _solve(self, problem: LayerProblem) -> LayerSolution:
        W, codebook = problem.target, problem.codebook
        nearest, fitted = project(W, codebook, problem.per_channel, bounds=problem.bounds)
        # Following correlations may lose where there are few: nearest levels are the first to beat.
        best = problem.fit(codebook.values(nearest, W.dtype), fitted)
        gram = _near_one(problem.gram)
        lattice = Lattice(gram, codebook, self.damping, self.depth, self.block)
        rough = replace(problem.by_rows(), target=(W / fitted).float(), gram=gram.float())
        del gram
        # A scale that serves all rows is found by some of them.
        step = 1 if problem.per_channel else max(1, W[..., 0].numel() // ROWS)
        found = self._best_of_scales(lattice, rough.every_row(step))
        scale = fitted * found.scale
        if step == 1:
            best = best.or_better(problem.fit(found.levels.to(W), scale))
        errors = [problem.total(best.error)]
        if self.beam > 1 or step > 1 or problem.sensitivity is not None:
            best = best.or_better(problem.fit(self._rounded(lattice, problem, scale), scale))
            errors.append(problem.total(best.error))
        return LayerSolution(codebook.nearest(best.levels), best.scale, tuple(errors))

    def _best_of_scales(self, lattice: Lattice, problem: LayerProblem) -> Fit:
        """What the best multiple of the scale leads to, of each row alone."""
        W, bounds = problem.target, problem.bounds
        beam, best = self._width(1, problem.num_weights * self.scales), None
        for factors in torch.linspace(self.low, self.high, self.scales).split(max(1, MAX_ENTRIES // W.numel())):
            scales = [W.new_full((1, 1, 1), factor) for factor in factors.tolist()]
            copies = bounds and Bounds(*(codes.repeat(1, len(scales), 1) for codes in vars(bounds).values()))
            found = lattice.nearest(torch.cat([W / scale for scale in scales], 1), beam, copies)
            for levels, scale in zip(found.chunk(len(scales), 1), scales):
                fit = problem.fit(levels, scale)
                best = best.or_better(fit) if best else fit
        assert best, "there is a scale"  # noqa: S101, for the type
        return best

    def _rounded(self, lattice: Lattice, problem: LayerProblem, scale: Tensor) -> Tensor:
        """Levels for weights of that `scale`, rows together as far as they are coupled."""
        W, S, bounds = problem.target, problem.sensitivity, problem.bounds
        beam = self._width(self.beam, problem.num_weights)
        if S is None:
            return lattice.nearest(W / scale, beam, bounds).to(W)
        # As the inputs are: S = M Mᵀ makes the error a sum over rows of terms that depend on those before only.
        order, M = ordered_factor(S)
        rows = order[..., None].expand_as(W)
        W, scale = W.gather(1, rows), scale.expand(*W.shape[:2], 1).gather(1, rows[..., :1])
        bounds = bounds and bounds.map(lambda codes: codes.gather(1, rows))
        levels, errors = torch.empty_like(W), torch.empty_like(W)
        step = max(LEAST_ROWS, -(-W.shape[1] // self.parts))
        for start in range(0, W.shape[1], step):
            own = slice(start, start + step)
            owed = M[:, :start, own].mT @ errors[:, :start]
            wanted = W[:, own] + torch.linalg.solve_triangular(M[:, own, own].mT, owed, upper=False)
            levels[:, own] = lattice.nearest(wanted / scale[:, own], beam, bounds and bounds[:, own]).to(W)
            errors[:, own] = W[:, own] - scale[:, own] * levels[:, own]
        return torch.empty_like(levels).scatter_(1, rows, levels)

    def _width(self, least: int, weights: int) -> int:
        """How many partial roundings of every row to follow: `least`, or as many as so few `weights` allow; one where
        the beam is one."""
        return max(least, min(self.widest, CHEAP // weights)) if self.beam > 1 else 1


def _near_one(gram: Tensor) -> Tensor:
    """The second moments of inputs of whatever size as if these were near to 1: float32 ends at 1e38."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
    return gram / torch.exp2(2 * (torch.frexp(mean).exponent // 2).to(mean))
