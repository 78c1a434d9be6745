"""Rounding with error feedback (OBQ, arXiv 2208.11580; GPTQ, arXiv 2210.17323), as a beam search."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ldnq.codebook import Bounds
from ldnq.problem import Fit, LayerProblem, LayerSolution, factorize, project
from ldnq.solvers.registry import solvers

# Numbers rounded at once: 512 MiB in float64.
MAX_ENTRIES = 1 << 26
# So many are rounded in no time.
CHEAP = 1 << 18


@solvers.register("error-feedback")
@dataclass(frozen=True)
class ErrorFeedback:
    """Rounds input by input, those of the largest second moment first, and lets the weights not yet rounded make up for
    the error through the Cholesky factor U of (H+λI)⁻¹ (GPTQ, arXiv 2210.17323, Algorithm 1, with its blocks).

    The scale is the best by reconstruction error of `scales` multiples, from `low` to `high`, of the one that fits the
    weights alone. With that scale the `beam` best partial roundings of every row are followed instead of one, the
    K-best search of lattice decoders. Of few weights more are followed, up to `widest`, and with every scale. λ is
    `damping` times the mean of H's diagonal. Rows are taken one by one, whatever the problem's sensitivity.
    """

    damping: float = 0.01
    scales: int = 17
    low: float = 0.6
    high: float = 2.2
    beam: int = 16
    widest: int = 128
    block: int = 64

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        return problem.by_rows().solve(self._solve)

    def _solve(self, problem: LayerProblem) -> LayerSolution:
        W, H, codebook = problem.target, problem.gram, problem.codebook
        order = H.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
        columns = order[:, None].expand_as(W)
        ordered, U = W.gather(2, columns), self._factor(H, order).float()
        choices = torch.tensor(codebook.levels, device=W.device)
        nearest, fitted = project(W, codebook, problem.per_channel, bounds=problem.bounds)
        bounds = problem.bounds and problem.bounds.map(lambda codes: codes.gather(2, columns))

        def fits(scales: list[Tensor], beam: int) -> Iterator[Fit]:
            # All scales in one pass, as if each were a layer of its own.
            scaled = torch.cat([(ordered / scale).float() for scale in scales], 1)
            allowed = bounds and bounds.map(lambda codes: codes.repeat(1, len(scales), 1))
            rounded = self._round(scaled, U, choices, beam, allowed)
            for levels, scale in zip(rounded.chunk(len(scales), 1), scales):
                yield problem.fit(torch.empty_like(W).scatter_(2, columns, levels.to(W)), scale)

        # Following correlations may lose where there are few: nearest levels are the first to beat.
        best = problem.fit(codebook.values(nearest, W.dtype), fitted)
        several = self._width(1, problem.num_weights * self.scales)
        for factors in torch.linspace(self.low, self.high, self.scales).split(max(1, MAX_ENTRIES // W.numel())):
            for fit in fits([fitted * float(factor) for factor in factors], several):
                best = best.or_better(fit)
        errors = [problem.total(best.error)]
        if self.beam > 1:
            (fit,) = fits([best.scale], self._width(self.beam, problem.num_weights))
            best = best.or_better(fit)
            errors.append(problem.total(best.error))
        return LayerSolution(codebook.nearest(best.levels), best.scale, tuple(errors))

    def _width(self, least: int, weights: int) -> int:
        """How many partial roundings of every row to follow: `least`, or as many as so few `weights` allow; one where
        the beam is one."""
        return max(least, min(self.widest, CHEAP // weights)) if self.beam > 1 else 1

    def _factor(self, H: Tensor, order: Tensor) -> Tensor:
        """U, upper triangular, with `UᵀU = (H+λI)⁻¹` but for a power of two, rows and columns in `order`."""
        H = H.gather(1, order[:, :, None].expand_as(H)).gather(2, order[:, None].expand_as(H))
        mean = H.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
        # Costs are compared in float32, which ends at 1e38: inputs of whatever size are brought near to 1, exactly.
        size = torch.exp2(2 * (torch.frexp(mean).exponent // 2).to(mean))
        H, mean = H / size, mean / size
        identity = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
        # Where a group has no input at all U = I: its weights are rounded to the nearest level.
        damped = torch.where(mean > 0, H + self.damping * mean * identity, identity)
        return torch.linalg.cholesky(torch.cholesky_inverse(factorize(damped)), upper=True)

    def _round(self, W: Tensor, U: Tensor, choices: Tensor, beam: int, bounds: Bounds | None) -> Tensor:
        """Levels (groups, rows, d), of the values in `choices`, for weights `W` in units of the scale."""
        # The third axis holds the partial roundings of a row.
        V = W.unsqueeze(2).clone()
        Q = torch.zeros_like(V)
        cost = torch.zeros_like(V[..., 0])
        for start in range(0, W.shape[2], self.block):
            block = slice(start, min(start + self.block, W.shape[2]))
            part, allowed = U[:, block, block], bounds and bounds[..., block]
            levels, errors, parents, cost = _round_block(V[..., block], part, choices, cost, beam, allowed)
            Q, V = _take(Q, parents), _take(V, parents)
            Q[..., block] = levels
            V[..., block.stop :] -= errors @ U[:, None, block, block.stop :]
        return _take(Q, cost.argmin(2, keepdim=True)).squeeze(2)


def _round_block(
    V: Tensor, U: Tensor, choices: Tensor, cost: Tensor, beam: int, bounds: Bounds | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round the columns of `V` (groups, rows, kept, columns), where what was kept has cost `cost` so far.

    `bounds` (groups, rows, columns) are those of the codes, places among the `choices`.

    Returns levels and errors (groups, rows, now kept, columns), which of those kept before each goes on from, and what
    each costs now.
    """
    columns, codes = [], torch.arange(len(choices), device=V.device)
    for j in range(V.shape[3]):
        pivot = U[:, None, None, j, j, None]
        total = cost[..., None] + ((V[..., :1] - choices) / pivot).square()
        if bounds:
            allowed = bounds[:, :, None, j, None]
            total = total.masked_fill((codes < allowed.lower) | (codes > allowed.upper), torch.inf)
        cost, chosen = total.flatten(2).topk(min(beam, total[0, 0].numel()), largest=False)
        source, levels = chosen // len(choices), choices[chosen % len(choices)]
        V = _take(V, source)
        errors = (V[..., 0] - levels) / pivot[..., 0]
        V = V[..., 1:] - errors[..., None] * U[:, None, None, j, j + 1 :]
        columns.append((levels, errors, source))
    return *_trace_back(columns), cost


def _trace_back(columns: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Levels and errors (groups, rows, kept, columns) of what was kept at last, and what each began with, from those of
    every column (groups, rows, kept then) and what each went on from."""
    levels, errors, parents = columns[-1]
    found = [(levels, errors)]
    for levels, errors, sources in reversed(columns[:-1]):
        found.append((levels.gather(2, parents), errors.gather(2, parents)))
        parents = sources.gather(2, parents)
    levels, errors = (torch.stack(entries[::-1], 3) for entries in zip(*found))
    return levels, errors, parents


def _take(values: Tensor, kept: Tensor) -> Tensor:
    """Of `values` (groups, rows, n, columns) those along the third axis that `kept` (groups, rows, m) names."""
    if values.shape[2] == kept.shape[2] == 1:
        return values
    # Whole rows of a table are copied many times faster than single entries are gathered.
    first = values.shape[2] * torch.arange(kept[..., 0].numel(), device=kept.device)
    return values.reshape(-1, values.shape[3])[first.view(*kept.shape[:2], 1) + kept]
