"""Normalisations, and factors and offsets by channel."""

from __future__ import annotations

import numpy as np

from cnnc_numpy.kernels import Array


def per_channel(values: Array, x: Array) -> Array:
    """`values` [C] shaped to go with the channels of x [N, C, ...]."""
    return values.reshape(-1, *[1] * (x.ndim - 2))


def scale(x: Array, weight: Array, bias: Array | None = None, *, out: Array | None = None) -> Array:
    """weight[c] * x + bias[c] for x [N, C, ...]."""
    y = np.multiply(x, per_channel(weight, x), out=out)
    if bias is not None:
        y += per_channel(bias, x)
    return y


def batch_norm(
    x: Array, weight: Array, bias: Array, mean: Array, variance: Array, *, eps: float = 1e-5, out: Array | None = None
) -> Array:
    """weight * (x - mean) / sqrt(variance + eps) + bias for each channel of x [N, C, ...], as one factor and offset."""
    factor = weight / np.sqrt(variance + eps)
    return scale(x, factor, bias - mean * factor, out=out)


def normalize(x: Array, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """(x - mean[c]) / std[c] for x [N, C, ...]; one mean or std stands for all channels."""
    return (x - per_channel(np.array(mean, x.dtype), x)) / per_channel(np.array(std, x.dtype), x)


def standardized(x: Array, eps: float) -> Array:
    """x with mean 0 and variance 1 along its last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, axis: int = 1, eps: float = 1e-5
) -> Array:
    """weight * (x - mean) / sqrt(var + eps) + bias over all axes from `axis` on."""
    y = standardized(x.reshape(*x.shape[:axis], -1), eps).reshape(x.shape)
    return y if weight is None or bias is None else y * weight + bias


def group_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, groups: int, eps: float = 1e-5
) -> Array:
    """weight[c] * (x - mean) / sqrt(var + eps) + bias[c] over each of `groups` groups of channels of x [N, C, ...]."""
    y = standardized(x.reshape(len(x), groups, -1), eps).reshape(x.shape)
    return y if weight is None else scale(y, weight, bias)


def instance_norm(x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5) -> Array:
    """weight[c] * (x - mean) / sqrt(var + eps) + bias[c] over the places of each channel of x [N, C, ...]."""
    return group_norm(x, weight, bias, groups=x.shape[1], eps=eps)


def lrn(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, within: bool = False) -> Array:
    """x / (k + alpha/m * S)^beta, S the sum of squares over n channels of x [N, C, H, W], or over n x n places."""
    total = x * x
    for axis in (2, 3) if within else (1,):
        before = [(0, 0)] * 4
        before[axis] = (size // 2, size - 1 - size // 2)
        squares = np.pad(total, before)
        parts = [squares.take(range(i, i + x.shape[axis]), axis) for i in range(size)]
        total = np.sum(parts, axis=0)
    return x / (k + alpha / (size * size if within else size) * total) ** beta
