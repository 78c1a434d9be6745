"""Rounding to the nearest level: the baseline of all solvers."""

from dataclasses import dataclass

from ldnq.problem import LayerProblem, LayerSolution, project
from ldnq.solvers.registry import solvers


@solvers.register("nearest")
@dataclass(frozen=True)
class Nearest:
    """Codes and scale with the least squared error on the weights themselves, blind to the inputs."""

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        codes, scale = project(problem.target, problem.codebook, problem.per_channel, bounds=problem.bounds)
        weights = scale * problem.codebook.values(codes, scale.dtype)
        return LayerSolution(codes, scale, (problem.error(weights),))
