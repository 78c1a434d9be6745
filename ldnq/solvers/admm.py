"""L-DNQ's solver (Chen, Wang and Pan, AAAI 2019, section 3.3): ADMM on one layer's reconstruction error."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ldnq.problem import LayerProblem, LayerSolution, factorize, project
from ldnq.solvers.registry import solvers

log = logging.getLogger(__name__)


@solvers.register("admm")
@dataclass(frozen=True)
class Admm:
    """L-DNQ's alternating direction method of multipliers (AAAI 2019) with scaled dual U and penalty ρ.

    ρ is `rho` times the mean of H's diagonal, or H₁₁ as the authors take it when `rho` is None. Stops after
    `patience` iterations that do not lower the best error by a relative `tolerance`, at `max_iterations` at most, and
    returns the best G met.
    """

    rho: float | None = None
    max_iterations: int = 100
    patience: int = 3
    tolerance: float = 1e-6

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        return problem.solve(self._solve)

    def _solve(self, problem: LayerProblem) -> LayerSolution:
        W, H, codebook = problem.target, problem.gram, problem.codebook
        rho = self._penalty(H)
        identity = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
        inverse = torch.cholesky_inverse(factorize(H + rho * identity))
        WH = problem.by_rows().pushed_target
        codes, scale = project(W, codebook, problem.per_channel, bounds=problem.bounds)
        G = scale * codebook.values(codes, W.dtype)
        U = torch.zeros_like(W)
        best, errors, stale = (codes, scale), [problem.error(G)], 0
        lowest = errors[0]
        while len(errors) <= self.max_iterations and stale < self.patience and lowest > 0:
            W_next = (WH + rho * (G - U)) @ inverse
            V = W_next + U
            codes, scale = project(V, codebook, problem.per_channel, scale, bounds=problem.bounds)
            G = scale * codebook.values(codes, W.dtype)
            U = V - G
            errors.append(problem.error(G))
            stale = 0 if errors[-1] < lowest * (1 - self.tolerance) else stale + 1
            if errors[-1] < lowest:
                best, lowest = (codes, scale), errors[-1]
        return LayerSolution(*best, tuple(errors))

    def _penalty(self, H: Tensor) -> Tensor:
        """ρ of each group, (groups, 1, 1); 1 where a group has no input at all."""
        diagonal = H.diagonal(dim1=-2, dim2=-1)
        mean = diagonal.mean(-1)
        # The authors' H₁₁ belongs to one pixel of one channel, which may be dead: then the mean stands in.
        first = diagonal[:, 0]
        rho = torch.where(first > 1e-4 * mean, first, mean) if self.rho is None else self.rho * mean
        if bool((mean <= 0).any()):
            log.info("a group of the layer has no input but zeros: its weights are rounded to the nearest level")
        return torch.where(mean > 0, rho, 1.0).view(-1, 1, 1)
