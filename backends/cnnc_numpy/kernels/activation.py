"""Functions of one tensor that keep its shape."""

from __future__ import annotations

import math

import numpy as np

from cnnc_numpy.kernels import Array


def relu(x: Array, *, out: Array | None = None) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0, out=out)


def leaky_relu(x: Array, *, slope: float = 0.01) -> Array:
    """x where x >= 0, else slope * x."""
    return np.where(x >= 0, x, slope * x)


def prelu(x: Array, weight: Array) -> Array:
    """x where x >= 0, else weight[c] * x, for x [N, C, ...]."""
    return np.where(x >= 0, x, weight.reshape(-1, *[1] * (x.ndim - 2)) * x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def tanh(x: Array, *, out: Array | None = None) -> Array:
    return np.tanh(x, out=out)


def step(x: Array) -> Array:
    """1 where x >= 0, else 0."""
    return (x >= 0).astype(x.dtype)


def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """x where x > 0, else alpha * (exp(x) - 1)."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def selu(x: Array) -> Array:
    """elu with the slope and the alpha that keep mean 0 and variance 1."""
    return 1.0507009873554805 * elu(x, alpha=1.6732632423543772)


def gelu(x: Array, *, approx: str = "none") -> Array:
    """x times the normal distribution function of x, or of its tanh approximation."""
    if approx == "tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    erf = np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))  # NumPy has none
    return x / 2 * (1 + erf)


def silu(x: Array) -> Array:
    """x / (1 + exp(-x))."""
    return x * sigmoid(x)


def hard_sigmoid(x: Array) -> Array:
    """clip(x/6 + 1/2, 0, 1)."""
    return np.clip(x / 6 + 0.5, 0, 1)


def hard_swish(x: Array) -> Array:
    """x * clip(x/6 + 1/2, 0, 1)."""
    return x * hard_sigmoid(x)


def clip(x: Array, *, low: float, high: float, out: Array | None = None) -> Array:
    """min(max(x, low), high)."""
    return np.clip(x, low, high, out=out)


def softmax(x: Array, *, axis: int = 1) -> Array:
    """exp(x) over its sum along `axis`."""
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x: Array, *, axis: int = 1) -> Array:
    """The logarithm of softmax."""
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def absolute(x: Array) -> Array:
    return np.abs(x)


def exp(x: Array) -> Array:
    return np.exp(x)


def log(x: Array) -> Array:
    return np.log(x)


def sqrt(x: Array) -> Array:
    return np.sqrt(x)


def neg(x: Array) -> Array:
    return np.negative(x)


def dropout(x: Array) -> Array:
    """x: dropout does nothing outside training."""
    return x
