"""Rounding with error feedback (OBQ, arXiv 2208.11580; GPTQ, arXiv 2210.17323), as a beam search."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldnq.codebook import Bounds, Codebook
from ldnq.problem import ROWS, Fit, LayerProblem, LayerSolution, factorize, project
from ldnq.solvers.registry import solvers

# Numbers rounded at once: 256 MiB in float32.
MAX_ENTRIES = 1 << 26
# So many are rounded in no time.
CHEAP = 1 << 18


@solvers.register("error-feedback")
@dataclass(frozen=True)
class ErrorFeedback:
    """Rounds input by input, those of the largest second moment first, and lets the weights not yet rounded make up for
    the error (GPTQ, arXiv 2210.17323, Algorithm 1, with its blocks).

    The scale is the best by reconstruction error of `scales` multiples, from `low` to `high`, of the one that fits the
    weights alone. With that scale the `beam` best partial roundings of every row are followed instead of one, the
    K-best search of lattice decoders; they may differ in the last `depth` inputs. Of few weights more are followed, up
    to `widest`, and with every scale. λ, added to the diagonal of H, is `damping` times its mean. Rows are taken one by
    one, whatever the problem's sensitivity.
    """

    damping: float = 0.01
    scales: int = 17
    low: float = 0.6
    high: float = 2.2
    beam: int = 16
    widest: int = 128
    block: int = 32
    depth: int = 128

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        return problem.by_rows().solve(self._solve)

    def _solve(self, problem: LayerProblem) -> LayerSolution:
        W, codebook = problem.target, problem.codebook
        nearest, fitted = project(W, codebook, problem.per_channel, bounds=problem.bounds)
        # Following correlations may lose where there are few: nearest levels are the first to beat.
        best = problem.fit(codebook.values(nearest, W.dtype), fitted)
        scaled = _near_one(problem, fitted)
        search = Search(scaled.gram, codebook, self.damping, self.block, self.depth)
        rough = replace(scaled, target=scaled.target.float(), gram=scaled.gram.float())
        # A scale that serves all rows is found by some of them.
        step = 1 if problem.per_channel else max(1, W[..., 0].numel() // ROWS)
        found = self._best_of_scales(search, rough.every_row(step))
        scale = fitted * found.scale
        if step == 1:
            best = best.or_better(problem.fit(found.levels.to(W), scale))
            scale = best.scale
        errors = [problem.total(best.error)]
        if self.beam > 1 or step > 1:
            (levels,) = search(rough, [(scale / fitted).float()], self._width(self.beam, problem.num_weights))
            best = best.or_better(problem.fit(levels.to(W), scale))
            errors.append(problem.total(best.error))
        return LayerSolution(codebook.nearest(best.levels), best.scale, tuple(errors))

    def _best_of_scales(self, search: "Search", problem: LayerProblem) -> Fit:
        """What the best multiple of the scale leads to."""
        weights = problem.target.numel()
        beam, best = self._width(1, problem.num_weights * self.scales), None
        for factors in torch.linspace(self.low, self.high, self.scales).split(max(1, MAX_ENTRIES // weights)):
            scales = list(factors.view(-1, 1, 1, 1).to(problem.target))
            for levels, scale in zip(search(problem, scales, beam), scales):
                fit = problem.fit(levels, scale)
                best = best.or_better(fit) if best else fit
        assert best, "there is a scale"  # noqa: S101, for the type
        return best

    def _width(self, least: int, weights: int) -> int:
        """How many partial roundings of every row to follow: `least`, or as many as so few `weights` allow; one where
        the beam is one."""
        return max(least, min(self.widest, CHEAP // weights)) if self.beam > 1 else 1


def _near_one(problem: LayerProblem, scale: Tensor) -> LayerProblem:
    """The same with weights in units of `scale` and inputs of whatever size near to 1: float32 ends at 1e38."""
    mean = problem.gram.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
    size = torch.exp2(2 * (torch.frexp(mean).exponent // 2).to(mean))
    return replace(problem, target=problem.target / scale, gram=problem.gram / size)


class Search:
    """Levels for rows of weights, input by input: K-best search; with one partial rounding Babai's nearest plane, which
    is what GPTQ does (arXiv 2507.18553).

    With `H + λI = M Mᵀ`, M upper triangular, the error of a row is a sum over inputs, `Σ ((W−G) M)ⱼ²`, and each of its
    terms depends on the levels before it only: these have left `(W−G) N`, where N is M with a diagonal of ones, and the
    best level at j is the one nearest to Wⱼ and that.
    """

    def __init__(self, H: Tensor, codebook: Codebook, damping: float, block: int, depth: int) -> None:
        self.block, self.depth = block, depth
        self.choices = torch.tensor(codebook.levels, device=H.device)
        diagonal = H.diagonal(dim1=-2, dim2=-1)
        order = diagonal.argsort(dim=-1, descending=True, stable=True)
        self.columns = order[:, None]
        mean = diagonal.mean(-1).view(-1, 1, 1)
        # Where a group has no input at all M = I: its weights are rounded to the nearest level.
        penalty = torch.where(mean > 0, damping * mean, 1.0).squeeze(2)
        # Cholesky's factor is lower: it is that of the inputs in the opposite order.
        last = order.flip(1)
        damped = H.gather(1, last[:, :, None].expand_as(H)).gather(2, last[:, None].expand_as(H))
        damped.diagonal(dim1=-2, dim2=-1).add_(penalty)
        M = factorize(damped).float().flip(1, 2)
        self.pivots = M.diagonal(dim1=-2, dim2=-1)
        self.N = M / self.pivots[:, None]

    def __call__(self, problem: LayerProblem, scales: Sequence[Tensor], beam: int) -> Iterable[Tensor]:
        """Levels for the weights of `problem` by each of the `scales`, all in one pass, as if each were a layer of its
        own."""
        columns = self.columns.expand_as(problem.target)
        ordered = problem.target.gather(2, columns)
        bounds = problem.bounds and problem.bounds.map(lambda codes: codes.gather(2, columns).repeat(1, len(scales), 1))
        found = self._round(torch.cat([ordered / scale for scale in scales], 1), beam, bounds).chunk(len(scales), 1)
        return (torch.empty_like(ordered).scatter_(2, columns, levels) for levels in found)

    def _round(self, W: Tensor, beam: int, bounds: Bounds | None) -> Tensor:
        """Levels (groups, rows, d) for weights `W` in units of the scale."""
        d = W.shape[2]
        Q, errors = torch.empty_like(W), torch.empty_like(W)
        cost = W.new_zeros(*W.shape[:2], 1)
        # Inputs up to `settled` are rounded in one way, the `recent` ones after them in several: a third axis.
        settled, recent = 0, W.new_empty(*W.shape[:2], 1, 0)
        for start in range(0, d, self.block):
            block, window = slice(start, min(start + self.block, d)), slice(settled, start)
            values = (W[..., block] + errors[..., :settled] @ self.N[:, :settled, block]).unsqueeze(2)
            values = values + (W[:, :, None, window] - recent) @ self.N[:, None, window, block]
            levels, parents, cost = self._round_block(values, W, block, cost, beam, bounds)
            recent = torch.cat([_take(recent, parents), levels], 3)
            until = max(settled, block.stop - self.depth) if block.stop < d else d
            old, number = slice(settled, until), until - settled
            best = _take(recent, cost.argmin(2, keepdim=True)).squeeze(2)[..., :number]
            Q[..., old], errors[..., old] = best, W[..., old] - best
            # Those that have rounded them in another way are given up.
            cost = cost.masked_fill((recent[..., :number] != best.unsqueeze(2)).any(3), torch.inf)
            settled, recent = until, recent[..., number:]
        return Q

    def _round_block(
        self, V: Tensor, W: Tensor, block: slice, cost: Tensor, beam: int, bounds: Bounds | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Round the inputs in `block`, of which what was kept so far makes `V` (groups, rows, kept, inputs) at cost
        `cost`.

        Returns levels (groups, rows, now kept, inputs), which of those kept before each goes on from, and what each
        costs now.
        """
        columns, codes = [], torch.arange(len(self.choices), device=V.device)
        for j, place in enumerate(range(block.start, block.stop)):
            pivot = self.pivots[:, None, None, place, None]
            total = cost[..., None] + ((V[..., j, None] - self.choices) * pivot).square()
            if bounds:
                allowed = bounds[:, :, None, place, None]
                total = total.masked_fill((codes < allowed.lower) | (codes > allowed.upper), torch.inf)
            cost, chosen = _least(total.flatten(2), beam)
            source, levels = chosen // len(codes), self.choices[chosen % len(codes)]
            V = _take(V, source)
            left = W[:, :, place, None] - levels
            V[..., j + 1 :].addcmul_(left[..., None], self.N[:, None, None, place, place + 1 : block.stop])
            columns.append((levels, source))
        return *_trace_back(columns), cost


def _least(costs: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """So many of the `costs` along the last axis, or all, and their places."""
    if number == 1:
        return costs.min(2, keepdim=True)
    return costs.topk(min(number, costs.shape[2]), largest=False)


def _trace_back(columns: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Levels (groups, rows, kept, columns) of what was kept at last, and what each began with, from those of every
    column (groups, rows, kept then) and what each went on from."""
    levels, parents = columns[-1]
    found = [levels]
    for levels, sources in reversed(columns[:-1]):
        found.append(levels.gather(2, parents))
        parents = sources.gather(2, parents)
    return torch.stack(found[::-1], 3), parents


def _take(values: Tensor, kept: Tensor) -> Tensor:
    """Of `values` (groups, rows, n, columns) those along the third axis that `kept` (groups, rows, m) names."""
    if values.shape[2] == kept.shape[2] == 1:
        return values
    # Whole rows of a table are copied many times faster than single entries are gathered.
    first = values.shape[2] * torch.arange(kept[..., 0].numel(), device=kept.device)
    places = first.view(*kept.shape[:2], 1) + kept
    return values.flatten(0, 2).index_select(0, places.flatten()).view(*kept.shape, values.shape[3])
