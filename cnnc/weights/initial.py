"""Initial weights: seeded, one stream a parameter, so that a change to one layer leaves the weights of others alone."""

from __future__ import annotations

from hashlib import sha256
from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from cnnc import ops
from cnnc.diagnostics import error
from cnnc.ir.graph import Graph, Param
from cnnc.ir.op import Op
from cnnc.target import numpy_dtype

if TYPE_CHECKING:
    from cnnc.target import Array


def init(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """An array for each parameter of the graph, by its initialiser; a stream depends on `seed` and the name alone."""
    weights: dict[str, Array] = {}
    for node in graph.nodes:
        for param in node.params.values():
            if param.name not in weights:
                weights[param.name] = _initial(param, node.op, seed).astype(numpy_dtype(param.type.dtype))
    return weights


def _initial(param: Param, op: Op, seed: int) -> Array:
    shape = tuple(int(dim) for dim in param.type.shape if isinstance(dim, int))
    stream = np.random.default_rng([seed, int.from_bytes(sha256(param.name.encode()).digest()[:16], "little")])
    value = param.init.value or 0.0
    match param.init.kind:
        case "constant":
            return np.full(shape, value, np.float32)
        case "normal":
            return _normal(stream, shape, value)
        case "he_normal":
            return _normal(stream, shape, sqrt(2 / fans(op, shape)[0]))
        case "glorot_uniform":
            bound = sqrt(6 / sum(fans(op, shape)))
            return (2 * stream.random(shape, np.float32) - 1) * np.float32(bound)
        case "orthogonal":
            return _orthogonal(stream, shape)
        case _:
            return _bilinear(op, shape)


def fans(op: Op, shape: tuple[int, ...]) -> tuple[float, float]:
    """How many inputs each output of the layer sums, and how many outputs each input goes to.

    A transposed convolution of stride s reaches each output through one kernel element in s*s.
    """
    match op:
        case ops.Conv():
            return prod(shape[1:]), shape[0] // op.groups * prod(shape[2:])
        case ops.Deconv():
            return shape[0] // op.groups * prod(shape[2:]) / prod(op.stride), prod(shape[1:])
        case ops.Local():
            return prod(shape[3:]), shape[0] * prod(shape[4:])
        case _:
            return prod(shape[1:]), shape[0]


def _normal(stream: np.random.Generator, shape: tuple[int, ...], std: float) -> Array:
    return stream.standard_normal(shape, np.float32) * np.float32(std)


def _orthogonal(stream: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Orthonormal rows (or columns, if there are more rows than columns) of weight as a matrix [shape[0], the rest].

    Source: Saxe, McClelland & Ganguli 2014. The signs of R's diagonal make Q uniform over orthogonal matrices.
    """
    rows, columns = shape[0], prod(shape[1:])
    q, r = np.linalg.qr(stream.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return (q if rows >= columns else q.T).reshape(shape)


def _bilinear(op: Op, shape: tuple[int, ...]) -> Array:
    """A kernel that interpolates bilinearly from each channel to the channel of the same number, zero elsewhere.

    Source: Long, Shelhamer & Darrell 2015, as the start of a transposed convolution [C, c/groups, kh, kw].
    """
    if len(shape) != 4:
        raise error("E0230", f"`bilinear` starts kernels [C, c, kh, kw], not a parameter {list(shape)} of `{op.name}`")
    rows, columns = (1 - np.abs(np.arange(k) - (k - 1) / 2) / ((k + 1) // 2) for k in shape[2:])
    weight = np.zeros(shape)
    groups = op.groups if isinstance(op, ops.Deconv) else 1
    for channel in range(shape[0]):
        if (same := channel % (shape[0] // groups)) < shape[1]:
            weight[channel, same] = np.outer(rows, columns)
    return weight
