"""Levels of every layer under a budget of bits, as an integer program."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from ldnq.errors import UsageError


def allocate(errors: Sequence[Sequence[float]], bits: Sequence[Sequence[float]], budget: float) -> list[int]:
    """For each layer the position of one of its choices: those of the least sum of `errors` whose `bits` add up to
    `budget` at most, a multiple-choice knapsack. `errors[layer][choice]` and `bits[layer][choice]` are not negative.

    Raises `UsageError` where even the smallest choices are too large.

    >>> allocate([[9.0, 1.0], [5.0, 4.0]], [[10, 20], [10, 20]], 30)
    [1, 0]
    """
    least = sum(map(min, bits))
    if least > budget:
        raise UsageError(f"expected a budget of at least {least:g} bits, got {budget:g}")
    costs, sizes = np.concatenate(errors), np.concatenate(bits)
    ends = list(accumulate(map(len, bits)))
    one_each = np.zeros((len(bits), len(sizes)))
    for row, end, count in zip(one_each, ends, map(len, bits)):
        row[end - count : end] = 1
    # The program's tolerances are absolute: costs and sizes in units of what matters.
    unit = sum(map(min, errors)) or costs.max() or 1.0
    solution = milp(
        costs / unit,
        integrality=np.ones_like(costs),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes / budget, -np.inf, 1)],
        options={"mip_rel_gap": 0},
    )
    assert solution.success, solution.message  # the smallest choices are a solution
    return [int(part.argmax()) for part in np.split(solution.x, ends[:-1])]
