"""When a target's numbers are right: bounds derived from the computation instead of fixed tolerances.

The reference is `cnnc_numpy.evaluator` in float64 on the graph as it was written (unoptimised) and on the weights as
they are stored (rounded to the graph's element type). A test of one op uses `assert_node_agrees`, whose bound follows
from the terms each output sums; a test of a whole network uses `assert_agree`.

    graph = single(Conv(8, 3, pad=1), TensorType((2, 3, 9, 9)))
    weights, inputs = random_weights(graph), random_inputs(graph)
    assert_node_agrees(graph, weights, inputs, program(**inputs))
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

import numpy as np

from cnnc import ops
from cnnc.ir.dim import evaluate as size_of
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.op import Op
from cnnc.ir.types import DType, TensorType
from cnnc.target import numpy_dtype
from cnnc.verification import NETWORK_TOLERANCE, Case, Expected, random_inputs, random_weights
from cnnc_numpy.evaluator import evaluate

__all__ = [
    "NETWORK_TOLERANCE", "TINY", "U_OUT", "Array", "U", "Weights", "assert_agree", "assert_close", "assert_node_agrees",
    "node_bound", "random_inputs", "random_weights", "single",
]  # fmt: skip

Array: TypeAlias = np.ndarray[Any, Any]
Weights: TypeAlias = Mapping[str, Array]

U = 2.0**-24
"""Half the distance between neighbouring float32 numbers around 1."""
U_OUT = {DType.F32: 0.0, DType.F16: 2.0**-11, DType.BF16: 2.0**-8}
"""The same for the type a result is rounded to after it was computed in float32."""
TINY = {DType.F32: 0.0, DType.F16: 2.0**-24, DType.BF16: 0.0}
"""The distance between denormal numbers, where rounding is absolute."""


def single(op: Op, *types: TensorType) -> Graph:
    """The graph of one node `node` on inputs `x0`, `x1`, ... of these types, with the output `y`."""
    inputs = tuple(Input(f"x{i}", x) for i, x in enumerate(types))
    return Graph("Single", inputs, {"y": Node.make(op, *inputs, name="node")})


def assert_agree(
    graph: Graph,
    weights: Weights,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    reference: Mapping[str, Array] | None = None,
) -> None:
    """A network's outputs agree with the reference within the bound of whole networks, as `cnnc verify` has it.

    `reference` is given where it is known already, from another target's comparison.
    """
    expected = Expected(Case(graph, weights, inputs), reference)
    assert outputs.keys() == expected.values.keys()
    for name, value in expected.values.items():
        _assert_varied(value, name)
    wrong = [x for x in expected.compare(outputs) if x.mismatch]
    assert not wrong, wrong


def assert_node_agrees(
    graph: Graph, weights: Weights, inputs: Mapping[str, Array], outputs: Mapping[str, Array], c: float | None = None
) -> None:
    """The output of a graph of one node agrees with the reference within the op's derived bound.

    `c` replaces the factor of u*S where an algorithm needs another: 64 for Winograd F(4x4, 3x3).
    """
    ((name, got),) = outputs.items()
    expected, bound = node_bound(graph, weights, inputs, c)
    _assert_varied(expected, name)
    assert_close(got, expected, graph.outputs[name].type.dtype, bound, name)


def node_bound(
    graph: Graph, weights: Weights, inputs: Mapping[str, Array], c: float | None = None
) -> tuple[Array, Array]:
    """What a graph of one node gives, in float64, and how far from it each place may be; `c` as above."""
    (node,) = graph.nodes
    (expected,) = evaluate(graph, weights, inputs).values()
    error = _error(node, graph, weights, inputs, expected, c)
    if error is None:  # bit for bit what float32 NumPy gives
        (single,) = evaluate(graph, weights, inputs, dtype=None).values()
        return single.astype(np.float64), np.zeros(single.shape)
    dtype = node.type.dtype
    return expected, error + U_OUT[dtype] * np.abs(expected) + TINY[dtype]


def _assert_varied(expected: Array, name: str) -> None:
    assert np.unique(expected).size > 1, f"`{name}` has one distinct value: the comparison would show nothing"


def assert_close(got: Array, expected: Array, dtype: DType, bound: Array, name: str) -> None:
    """Shape, element type and the positions of NaN and Inf are the same, and each finite place is within its bound."""
    assert got.shape == expected.shape, f"`{name}` has shape {got.shape}, not {expected.shape}"
    assert got.dtype == numpy_dtype(dtype), f"`{name}` has elements of {got.dtype}, not {dtype}"
    stored = expected.astype(got.dtype)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(stored), err_msg=f"positions of NaN in `{name}`")
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(stored), err_msg=f"positions of Inf in `{name}`")
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(stored), err_msg=f"positions of -Inf in `{name}`")
    finite = np.isfinite(stored)
    delta, bound = np.abs(got[finite].astype(np.float64) - expected[finite]), bound[finite]
    if (delta > bound).any():
        worst = int((delta - bound).argmax())
        raise AssertionError(
            f"`{name}`: {(delta > bound).sum()} of {delta.size} values are out of bounds; the worst is off by "
            f"{delta[worst]:.3g}, allowed {bound[worst]:.3g}; max|delta|/max|y| = "
            f"{delta.max() / np.abs(expected[finite]).max():.3g}"
        )


def _error(
    node: Node, graph: Graph, weights: Weights, inputs: Mapping[str, Array], y: Array, c: float | None
) -> Array | None:
    """The error float32 may make at each place of the result; None where it makes none."""
    xs = [inputs[x.name].astype(np.float64) for x in node.inputs]
    x = xs[0] if xs else y
    match node.op:
        case (
            ops.Conv() | ops.Deconv() | ops.Local() | ops.Linear() | ops.MatMul() | ops.AvgPool()
            | ops.AdaptiveAvgPool() | ops.GlobalAvgPool() | ops.ReduceMean() | ops.ReduceSum() | ops.Rbf() | ops.Scale()
        ):  # fmt: skip
            c = min(_terms(node, xs) + 2, 16) if c is None else c
            return c * U * _magnitude(node, graph, weights, inputs)
        case ops.Add() | ops.Mul() if len(xs) > 2:  # any order
            return len(xs) * U * _magnitude(node, graph, weights, inputs)
        case ops.BatchNorm():  # may be folded to a scale and a shift
            return 7 * U * _magnitude(node, graph, weights, inputs)
        case ops.Normalize(mean=mean, std=std):
            return 7 * U * (np.abs(x) + _per_channel(np.abs(mean), x)) / _per_channel(std, x)
        case ops.LayerNorm() | ops.GroupNorm() | ops.InstanceNorm():
            return _norm_error(node, weights, x)
        case ops.L2Pool(kernel=(h, w)):
            return min(h * w + 2, 16) * U * np.abs(y)
        case ops.Lrn():  # a sum of squares, a power and a division
            return 24 * U * np.abs(y)
        case ops.HardSigmoid():
            return 4 * U * (np.abs(x) / 6 + 0.5)
        case ops.HardSwish():
            return 5 * U * np.abs(x) * (np.abs(x) / 6 + 0.5)
        case ops.Upsample(mode="bilinear") | ops.Resize(mode="bilinear") | ops.RoiAlign():
            # A coordinate is off by some u of the image's size, and a weight by as much.
            return (8 + 4 * max(x.shape[2:])) * U * np.full(y.shape, np.abs(x).max())
        case ops.RoiAlignPyramid():
            longest = max(max(level.shape[2:]) for level in xs[1:])
            return (8 + 4 * longest) * U * np.full(y.shape, max(np.abs(level).max() for level in xs[1:]))
        case ops.Decode():
            return _decode_error(*xs)
        case ops.Softmax(axis=axis):
            return (1e-6 + U * np.ptp(x, axis=axis, keepdims=True)) * y + 1e-7 * U
        case ops.LogSoftmax(axis=axis):
            return 1e-6 * np.abs(y) + 2 * U * (1 + np.ptp(x, axis=axis, keepdims=True))
        case ops.Gelu() | ops.Silu():
            return 1e-6 * np.abs(y) + 1e-7 * np.maximum(np.abs(x), 1)
        case ops.Sigmoid() | ops.Tanh() | ops.Elu() | ops.Selu() | ops.Exp() | ops.Log() | ops.Sqrt():
            return 1e-6 * np.abs(y) + 1e-7
        case _:
            return None


def _terms(node: Node, xs: list[Array]) -> int:
    """How many terms each place of the result sums, at most."""
    shapes = {role: [size_of(dim, {}) for dim in param.type.shape] for role, param in node.params.items()}
    x = xs[0].shape
    match node.op:
        case ops.Conv() | ops.Linear() | ops.Rbf():
            return prod(shapes["weight"][1:])
        case ops.Deconv(groups=groups, kernel=kernel):
            return x[1] // groups * prod(kernel)
        case ops.Local():
            return prod(shapes["weight"][3:])
        case ops.MatMul():
            return x[-1]
        case ops.AvgPool(kernel=kernel):
            return prod(kernel)
        case ops.AdaptiveAvgPool() | ops.GlobalAvgPool():
            return prod(x[2:])
        case ops.ReduceMean(axes=axes) | ops.ReduceSum(axes=axes):
            return prod(x[axis] for axis in axes)
        case _:
            return 1


def _magnitude(node: Node, graph: Graph, weights: Weights, inputs: Mapping[str, Array]) -> Array:
    """S = sum|w||x| + |b|: the reference on absolute values, where what is subtracted is made negative instead."""
    subtracted = {("bn", "running_mean"), ("rbf", "weight")}
    sizes = {
        param.name: -np.abs(weights[param.name]) if (node.op.name, role) in subtracted else np.abs(weights[param.name])
        for role, param in node.params.items()
    }
    ((_, magnitude),) = evaluate(graph, sizes, {name: np.abs(x) for name, x in inputs.items()}).items()
    return magnitude


def _norm_error(node: Node, weights: Weights, x: Array) -> Array:
    """16u * (|gamma|/sigma * (|x| + mean|x|) * (1 + mean(x^2)/variance) + |beta|): as bn, and the statistics computed.

    The factor mean(x^2)/variance admits implementations that compute the variance as mean(x^2) - mean(x)^2.
    """
    role = {role: np.abs(weights[param.name].astype(np.float64)) for role, param in node.params.items()}
    n, channels = x.shape[:2]
    match node.op:
        case ops.LayerNorm(axis=axis, eps=eps):
            grouped = x.reshape(*x.shape[:axis], -1)
        case ops.GroupNorm(groups=groups, eps=eps):
            grouped = x.reshape(n, groups, -1)
        case ops.InstanceNorm(eps=eps):
            grouped = x.reshape(n, channels, -1)
        case _:
            raise TypeError(node.op.name)
    variance = grouped.var(-1, keepdims=True) + eps
    size = np.abs(grouped) + np.abs(grouped).mean(-1, keepdims=True)
    size = (size / np.sqrt(variance) * (1 + (grouped**2).mean(-1, keepdims=True) / variance)).reshape(x.shape)
    if not role:
        return 16 * U * size
    spread = (lambda w: w) if isinstance(node.op, ops.LayerNorm) else (lambda w: _per_channel(w, x))
    return 16 * U * (size * spread(role["weight"]) + spread(role["bias"]))


def _decode_error(anchors: Array, deltas: Array) -> Array:
    """6u of all that is added up, first + size/2 + shift*size and size*exp(growth)/2, and the error of exp."""
    n, _, h, w = deltas.shape
    rows = deltas.reshape(n, -1, 4, h, w).transpose(0, 3, 4, 1, 2).reshape(n, -1, 4)
    size = np.abs(anchors[..., 2:] - anchors[..., :2])
    centre = np.abs(anchors[..., :2]) + size / 2 + np.abs(rows[..., :2]) * size
    half = np.exp(np.minimum(rows[..., 2:], np.log(1000 / 16))) * size / 2
    return np.tile(6 * U * (centre + half) + 1e-6 * half, 2)


def _per_channel(values: object, x: Array) -> Array:
    return np.asarray(values).reshape(-1, *[1] * (x.ndim - 2))
