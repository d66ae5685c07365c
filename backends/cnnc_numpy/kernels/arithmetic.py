"""Arithmetic of several tensors with broadcasting, and reductions."""

from __future__ import annotations

import numpy as np

from cnnc_numpy.kernels import Array


def add(x: Array, *others: Array, out: Array | None = None) -> Array:
    """The sum of the operands, from the left."""
    for y in others:
        x = np.add(x, y, out=out)
    return x


def mul(x: Array, *others: Array, out: Array | None = None) -> Array:
    """The product of the operands, from the left."""
    for y in others:
        x = np.multiply(x, y, out=out)
    return x


def maximum(x: Array, *others: Array, out: Array | None = None) -> Array:
    """The largest of the operands at each place."""
    for y in others:
        x = np.maximum(x, y, out=out)
    return x


def minimum(x: Array, *others: Array, out: Array | None = None) -> Array:
    """The smallest of the operands at each place."""
    for y in others:
        x = np.minimum(x, y, out=out)
    return x


def sub(x: Array, y: Array, *, out: Array | None = None) -> Array:
    return np.subtract(x, y, out=out)


def div(x: Array, y: Array, *, out: Array | None = None) -> Array:
    return np.divide(x, y, out=out)


def reduce_mean(x: Array, *, axes: tuple[int, ...], keep: bool = False) -> Array:
    return np.asarray(x.mean(axes, keepdims=keep))


def reduce_sum(x: Array, *, axes: tuple[int, ...], keep: bool = False) -> Array:
    return np.asarray(x.sum(axes, keepdims=keep))


def reduce_max(x: Array, *, axes: tuple[int, ...], keep: bool = False) -> Array:
    return np.asarray(x.max(axes, keepdims=keep))


def reduce_min(x: Array, *, axes: tuple[int, ...], keep: bool = False) -> Array:
    return np.asarray(x.min(axes, keepdims=keep))
