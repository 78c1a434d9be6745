"""What a solver is given and what it gives back: matrices only."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ldnq import ranks
from ldnq.codebook import Bounds, Codebook
from ldnq.errors import NetworkError

# So many tell nearly which scale is the best for all.
ROWS = 64


@dataclass(frozen=True)
class LayerProblem:
    """Minimize `Σ tr(S (W−G) H (W−G)ᵀ)` over `G = scale · levels[codes]`, summed over the groups of a convolution.

    `target` W is (groups, rows, d) and `gram` H (groups, d, d), both float64, d = in/groups·kh·kw in the order
    (cin, kh, kw). `per_channel` gives each of the groups·rows rows its own scale, else one serves the layer.
    `sensitivity` S (groups, rows, rows), positive definite, tells how much the network minds errors of two outputs
    together; without it S = I, and rows are problems of their own. `bounds` (groups, rows, d) are those of the codes,
    if not all are allowed. Of a problem `divided` between processes these are some of the rows; `num_weights` are all.
    """

    target: Tensor
    gram: Tensor
    codebook: Codebook
    per_channel: bool = False
    sensitivity: Tensor | None = None
    bounds: Bounds | None = None
    divided: bool = False
    num_weights: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_weights", self.num_weights or self.target.numel())

    def solve(self, solver: "Solver") -> "LayerSolution":
        """By `solver`: where rows are problems of their own every process solves some, and is told all of them. What
        it decides of all rows together must be decided by `total`, `error` and `num_weights`."""
        axis = 1 if self.target.shape[1] >= ranks.size() else 0
        count = self.target.shape[axis]
        coupled = self.sensitivity is not None or not self.per_channel
        if ranks.size() == 1 or coupled or self.divided or count < ranks.size():
            return solver(self)
        own = ranks.share(count)
        solution = solver(self._part(own, axis))
        codes = torch.zeros(self.target.shape, dtype=torch.uint8, device=self.target.device)
        scale = torch.zeros_like(self.target[..., :1])
        for entire, part in ((codes, solution.codes), (scale, solution.scale)):
            entire.narrow(axis, own.start, own.stop - own.start).copy_(part)
            ranks.sum_(entire)
        return LayerSolution(codes, scale, solution.errors)

    def _part(self, rows: slice, axis: int) -> "LayerProblem":
        """The problem of some rows, or of all in some groups where `axis` is 0."""
        place = (slice(None), rows) if axis else (rows,)
        return replace(
            self,
            target=self.target[place],
            gram=self.gram if axis else self.gram[rows],
            bounds=self.bounds and self.bounds.map(lambda codes: codes[place]),
            divided=True,
        )

    def total(self, errors: Tensor) -> float:
        """The sum of the `errors` of rows, over all rows of the layer."""
        return ranks.total(float(errors.sum()))[0] if self.divided else float(errors.sum())

    def by_rows(self) -> "LayerProblem":
        """The same with S = I."""
        return self if self.sensitivity is None else replace(self, sensitivity=None)

    def every_row(self, step: int) -> "LayerProblem":
        """Of a problem whose S = I every so manieth row."""
        if step == 1:
            return self
        rows = (slice(None), slice(None, None, step))
        return replace(self, target=self.target[rows], bounds=self.bounds and self.bounds[rows], num_weights=0)

    @cached_property
    def pushed_target(self) -> Tensor:
        """`S W H` (groups, rows, d)."""
        return self.push(self.target) @ self.gram

    def push(self, weights: Tensor) -> Tensor:
        """`S · weights` (groups, rows, d)."""
        return weights if self.sensitivity is None else self.sensitivity @ weights

    def error(self, weights: Tensor) -> float:
        """The reconstruction error of `weights` (groups, rows, d)."""
        difference = self.target - weights
        return self.total(self.push(difference) @ self.gram * difference)

    def fit(self, levels: Tensor, scale: Tensor, moved: Tensor | None = None) -> "Fit":
        """`levels` Q (groups, rows, d) with the scale of least error, or with `scale` where Q does not point along W at
        all: `α = ⟨W,Q⟩/⟨Q,Q⟩` in the norm of H and S, or all rows' scales together where S couples them. `moved` is
        Q H, if it is known."""
        own = (2,) if self.per_channel else (0, 1, 2)
        coupled = self.sensitivity is not None and self.per_channel
        moved = levels @ self.gram if moved is None else moved
        if coupled:
            scale = self._coupled_scales(levels, moved, scale)
        else:
            overlap = (levels * self.pushed_target).sum(own, keepdim=True)
            norm = (levels * self.push(moved)).sum(own, keepdim=True)
            scale = torch.where((overlap > 0) & (norm > 0), overlap / norm, scale)
        gradient = self.pushed_target - self.push(scale * moved)
        # Whatever has a scale of its own has an error of its own, unless rows of a group are coupled.
        error = (gradient * (self.target - scale * levels)).sum((1, 2) if coupled else own, keepdim=True)
        return Fit(levels, scale, error, moved)

    def _coupled_scales(self, levels: Tensor, moved: Tensor, scale: Tensor) -> Tensor:
        """The α (groups, rows, 1) of least error, `(S ∘ Q H Qᵀ) α = (S ∘ Q H Wᵀ) 1`, with `moved` Q H; a row whose α
        would not be positive keeps its `scale`."""
        assert self.sensitivity is not None  # noqa: S101, for the type: callers have seen to it
        system = self.sensitivity * (moved @ levels.mT)
        wanted = (levels * self.pushed_target).sum(2, keepdim=True)
        diagonal = system.diagonal(dim1=-2, dim2=-1)
        # A row of zeros has no scale: an equation of its own keeps the system solvable.
        ridge = torch.where(diagonal > 0, 1e-9 * diagonal, 1.0)
        fitted = torch.linalg.solve(system + torch.diag_embed(ridge), wanted)
        return torch.where((fitted > 0) & (diagonal > 0).unsqueeze(2), fitted, scale)


@dataclass(frozen=True)
class Fit:
    """`levels` Q (groups, rows, d), the `scale` that suits them best, the `error` that is left of everything that can
    be decided by itself, each (groups, rows, 1) or (1, 1, 1), or the error (groups, 1, 1), and Q H."""

    levels: Tensor
    scale: Tensor
    error: Tensor
    moved: Tensor

    def or_better(self, other: "Fit") -> "Fit":
        """Of two the one with the smaller error, decided anew for everything that has its own error."""
        better = other.error < self.error
        if better.numel() == 1:
            return other if bool(better) else self
        return Fit(*(torch.where(better, *pair) for pair in zip(vars(other).values(), vars(self).values())))


@dataclass(frozen=True)
class LayerSolution:
    """`codes` (groups, rows, d) uint8; `scale` (groups, rows, 1) or (1, 1, 1); the `errors` by iteration."""

    codes: Tensor
    scale: Tensor
    errors: tuple[float, ...]


class Solver(Protocol):
    """A frozen dataclass whose fields are its options."""

    def __call__(self, problem: LayerProblem) -> LayerSolution: ...


def factorize(matrix: Tensor) -> Tensor:
    """Lower Cholesky factors of positive definite matrices (groups, d, d); raises `NetworkError` where they are not."""
    factor, failures = torch.linalg.cholesky_ex(matrix)
    if bool(failures.any()) or not bool(torch.isfinite(factor).all()):
        raise NetworkError(
            "the inputs of a layer, or the gradients of its outputs, have no usable second moments: the network gives "
            "infinite values"
        )
    return factor


def least_squares(gram: Tensor, cross: Tensor, prior: Tensor, damping: float) -> Tensor:
    """The weights W that minimize `‖Y − W X‖² + λ‖W − W₀‖²`, from `gram` X Xᵀ (groups, d, d), `cross` Y Xᵀ and `prior`
    W₀ (groups, rows, d); λ is `damping` times the mean of the Gram matrix's diagonal."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1).view(-1, 1, 1)
    penalty = torch.where(mean > 0, damping * mean, 1.0)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve((cross + penalty * prior).mT, factorize(gram + penalty * identity)).mT


def project(
    values: Tensor,
    codebook: Codebook,
    per_channel: bool,
    scale: Tensor | None = None,
    iterations: int = 30,
    bounds: Bounds | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes, within `bounds`, and scale near `values` (groups, rows, d) in the plain norm, by alternating nearest
    levels and `α = ⟨V,Q⟩/⟨Q,Q⟩` from `scale`, or from the best of a grid of starts (L-DNQ, section 3.3).

    Returns uint8 codes and a scale of shape (groups, rows, 1) if `per_channel`, else (1, 1, 1). All-zero values have
    scale 1 and the codes nearest to zero.
    """
    axes = (2,) if per_channel else (0, 1, 2)
    if scale is None and not per_channel and values.shape[1] > 2 * ROWS:
        # What serves some of the rows is a good start for all.
        some = (slice(None), slice(None, None, values.shape[1] // ROWS))
        _, scale = project(values[some], codebook, per_channel, bounds=bounds and bounds[some])
    elif scale is None:
        scale = _best_start(values, codebook, axes, bounds)
    for _ in range(iterations):
        levels = codebook.rounded(values / scale, bounds)
        norm = levels.square().sum(axes, keepdim=True)
        fitted = (values * levels).sum(axes, keepdim=True) / norm
        # A scale so large that every value rounds to zero cannot be refitted: keep it.
        fitted = torch.where((norm > 0) & (fitted > 0), fitted, scale)
        converged = torch.allclose(fitted, scale, rtol=1e-7, atol=0)
        scale = fitted
        if converged:
            break
    return codebook.nearest(values / scale, bounds), scale


def _best_start(
    values: Tensor, codebook: Codebook, axes: tuple[int, ...], bounds: Bounds | None, starts: int = 24
) -> Tensor:
    largest = values.abs().amax(axes, keepdim=True) / codebook.levels[-1]
    best = torch.ones_like(largest)
    lowest = torch.full_like(largest, torch.inf)
    for fraction in torch.linspace(1 / starts, 1, starts).tolist():
        scale = torch.where(largest > 0, largest * fraction, 1.0)
        rounded = scale * codebook.rounded(values / scale, bounds)
        error = (values - rounded).square().sum(axes, keepdim=True)
        best = torch.where(error < lowest, scale, best)
        lowest = torch.minimum(error, lowest)
    return best
