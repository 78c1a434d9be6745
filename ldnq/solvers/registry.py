"""The table of solvers."""

from ldnq.problem import Solver
from ldnq.registry import Registry

solvers: Registry[type[Solver]] = Registry("solver")
