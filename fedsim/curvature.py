"""How strongly a loss curves, from gradients alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedsim.arrays import Arrays, add, norm, scale, subtract

STEP = 1e-2
"""Distance of the points between which gradients are compared, on either side."""


def largest_curvature(
    gradient: Callable[[Arrays], Arrays], at: Arrays, iterations: int, rng: np.random.Generator
) -> float:
    """Largest magnitude of the Hessian's eigenvalues at a point, by power iteration.

    A product with the Hessian is the central difference of two gradients, so the gradient is
    computed ``2 * iterations`` times. For a quadratic the result is a lower bound, with a relative
    error of the order of ``(second / first eigenvalue)^(2 * iterations)``.

    >>> slopes = {"x": np.array([1.0, 50.0, 1.0])}
    >>> rng = np.random.default_rng(0)
    >>> round(largest_curvature(lambda a: {"x": slopes["x"] * a["x"]}, slopes, 4, rng), 6)
    50.0
    """
    direction = {n: rng.standard_normal(x.shape).astype(x.dtype) for n, x in at.items()}
    found = 0.0
    for _ in range(iterations):
        step = scale(direction, STEP / norm(direction))
        change = subtract(gradient(add(at, step)), gradient(subtract(at, step)))
        direction = scale(change, 1 / (2 * STEP))
        found = norm(direction)
        if not found:
            break
    return found
