"""Linear layers and matrix products."""

from __future__ import annotations

import numpy as np

from cnnc_numpy.kernels import Array


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x [N, F] times weight [O, F] transposed, plus bias [O]: [N, O]."""
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


def matmul(x: Array, y: Array) -> Array:
    """The matrix product of the last two axes; those before broadcast."""
    return np.matmul(x, y)


def rbf(x: Array, weight: Array) -> Array:
    """The squared distance of each row of x [N, F] to each row of weight [O, F]: [N, O]."""
    return np.stack([((row - weight) ** 2).sum(1) for row in x])
