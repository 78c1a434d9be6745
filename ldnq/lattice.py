"""Rows of weights rounded input by input so that the errors make up for each other: decoders of lattices."""

import torch
from torch import Tensor

from ldnq.codebook import Bounds, Codebook
from ldnq.problem import factorize

# Inputs that are rounded one by one before the others hear of it.
BLOCK = 32
# Inputs whose errors are carried to all others at once.
LAZY = 512


def ordered_factor(matrix: Tensor, ridge: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """The order in which the diagonals of positive definite matrices (groups, n, n) fall, (groups, n), and the upper
    triangular M with M Mᵀ = `matrix` + `ridge`·I in that order."""
    order = matrix.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
    # Cholesky's factor is lower: it is that of the opposite order.
    last = order.flip(1)
    ordered = matrix.gather(1, last[:, :, None].expand_as(matrix)).gather(2, last[:, None].expand_as(matrix))
    ordered.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return order, factorize(ordered).flip(1, 2)


class Lattice:
    """The levels of rows of weights, which it looks for input by input: Babai's nearest plane, which is what GPTQ does
    (arXiv 2507.18553), or K-best search.

    With `H + λI = M Mᵀ`, M upper triangular, λ `damping` times the mean of H's diagonal, the error of a row is a sum
    over inputs, `Σ ((W−G) M)ⱼ²`, and each of its terms depends on the levels before it only: these have left `(W−G) N`,
    where N is M with a diagonal of ones, and the best level at j is the one nearest to Wⱼ and that. The partial
    roundings that K-best search follows may differ in the last `depth` inputs.
    """

    def __init__(self, H: Tensor, codebook: Codebook, damping: float, depth: int, block: int = BLOCK) -> None:
        self.codebook, self.depth, self.block = codebook, depth, block
        mean = H.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        # Where a group has no input at all M = I: its weights are rounded to the nearest level.
        order, M = ordered_factor(H, torch.where(mean > 0, damping * mean, 1.0))
        self.columns, M = order[:, None], M.float()
        pivots = M.diagonal(dim1=-2, dim2=-1)
        self.M, self.N = M, M / pivots[:, None]
        # The levels, and what each makes of its input's term in the sum.
        self.levels = codebook.values(torch.arange(codebook.num_levels, dtype=torch.uint8, device=H.device))
        self.terms = pivots[..., None] * self.levels

    def nearest(self, W: Tensor, beam: int, bounds: Bounds | None = None) -> Tensor:
        """Levels (groups, rows, d), float32, for weights `W` in units of their scale, the best that come of the `beam`
        best partial roundings of every row."""
        columns = self.columns.expand_as(W)
        ordered = W.float().gather(2, columns)
        bounds = bounds and bounds.map(lambda codes: codes.gather(2, columns))
        found = self._nearest_plane(ordered, bounds) if beam == 1 else self._best_of(ordered, beam, bounds)
        return torch.empty_like(ordered).scatter_(2, columns, found)

    def _nearest_plane(self, W: Tensor, bounds: Bounds | None) -> Tensor:
        """Levels of `W`, whose inputs are in order, each the nearest to what those before it leave."""
        # Inputs first: what one step reads and writes lies together.
        errors, d = W.mT.contiguous(), W.shape[2]
        V = errors.clone()
        for first in range(0, d, LAZY):
            batch = slice(first, min(first + LAZY, d))
            for start in range(first, batch.stop, self.block):
                stop = min(start + self.block, batch.stop)
                V[:, start:stop].baddbmm_(self.N[:, first:start, start:stop].mT, errors[:, first:start])
                for j in range(start, stop):
                    V[:, j] = self.codebook.rounded(V[:, j], bounds and bounds[:, :, j])
                    errors[:, j] -= V[:, j]
                    V[:, j + 1 : stop].addcmul_(errors[:, j, None], self.N[:, j, j + 1 : stop, None])
            V[:, batch.stop :].baddbmm_(self.N[:, batch, batch.stop :].mT, errors[:, batch])
        return V.mT

    def _best_of(self, W: Tensor, beam: int, bounds: Bounds | None) -> Tensor:
        """The same by the cheapest of the `beam` best partial roundings."""
        d = W.shape[2]
        Q, errors = torch.empty_like(W), torch.empty_like(W)
        cost = W.new_zeros(*W.shape[:2], 1)
        # Inputs up to `settled` are rounded in one way, the `recent` ones after them in several: a third axis.
        settled, recent = 0, W.new_empty(*W.shape[:2], 1, 0)
        for start in range(0, d, self.block):
            block, window = slice(start, min(start + self.block, d)), slice(settled, start)
            own = W[..., block] * self.M.diagonal(dim1=-2, dim2=-1)[:, None, block]
            shared = (own + errors[..., :settled] @ self.M[:, :settled, block]).unsqueeze(2)
            left = (W[:, :, None, window] - recent).flatten(1, 2) @ self.M[:, window, block]
            V = shared + left.view(*recent.shape[:3], -1)
            levels, parents, cost = self._round_block(V, W, block, cost, beam, bounds)
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
        """Round the inputs in `block`, of whose terms what was kept so far makes `V` (groups, rows, kept, inputs) at
        cost `cost`.

        Returns levels (groups, rows, now kept, inputs), which of those kept before each goes on from, and what each
        costs now.
        """
        columns, codes = [], torch.arange(len(self.levels), device=V.device)
        # What is kept goes on with each level in turn.
        turns = self.levels.repeat(beam)
        for j, place in enumerate(range(block.start, block.stop)):
            total = cost[..., None] + (V[..., j, None] - self.terms[:, None, None, place]).square()
            if bounds:
                allowed = bounds[:, :, None, place, None]
                total = total.masked_fill((codes < allowed.lower) | (codes > allowed.upper), torch.inf)
            total = total.flatten(2)
            cost, chosen = total.topk(min(beam, total.shape[2]), largest=False)
            source, levels = chosen // len(codes), turns.take(chosen)
            V = _take(V, source)
            left = W[:, :, place, None] - levels
            V[..., j + 1 :].addcmul_(left[..., None], self.M[:, None, None, place, place + 1 : block.stop])
            columns.append((levels, source))
        return *_trace_back(columns), cost


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
    # Whole rows of a table are copied many times faster than single entries are gathered.
    first = values.shape[2] * torch.arange(kept[..., 0].numel(), device=kept.device)
    places = first.view(*kept.shape[:2], 1) + kept
    return values.flatten(0, 2).index_select(0, places.flatten()).view(*kept.shape, values.shape[3])
