"""How far from the reference the result of one op may be: bounds derived from the computation, place by place.

What sums may be off by c*u*S, S the same sum of absolute values; for the others the bound is what their formulas make
of the rounding of each step. Ops that round nothing, and those of one correctly rounded step, give the very numbers
that NumPy gives in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from cnnc import ops
from cnnc.ir.dim import evaluate
from cnnc.ir.graph import Graph, Input, Node, Value
from cnnc.ir.types import DType, TensorType
from cnnc.verification.case import Case, reference

if TYPE_CHECKING:
    from cnnc.target import Array, Weights

U: Final = 2.0**-24
"""Half the distance between neighbouring float32 numbers around 1."""
U_OUT: Final = {DType.F32: 0.0, DType.F16: 2.0**-11, DType.BF16: 2.0**-8}
"""The same for the type a result is rounded to after it was computed in float32."""
TINY: Final = {DType.F32: 0.0, DType.F16: 2.0**-24, DType.BF16: 0.0}
"""The distance between denormal numbers, where rounding is absolute."""


@dataclass(frozen=True)
class Factors:
    """The largest factors of u*S by which sums may be off."""

    sums: float
    """Of 14 and more terms, in whatever order they are added; K + 2 for K terms if that is less."""
    winograd: float
    """Of convolutions by Winograd's F(4x4, 3x3), S being the largest of the places that may share a tile."""


WORST: Final = Factors(sums=16.0, winograd=64.0)
"""What is allowed."""
MEASURED: Final = Factors(sums=5.0, winograd=30.0)
"""What was seen: 4.8 in sums of 27 to 25,088 terms by BLAS and one after the other, 28.6 by Winograd in those of a few
sparse channels, 8.5 in those of many."""
TILE: Final = 4
"""Rows and columns of a tile of F(4x4, 3x3)."""

EXACT = (
    ops.Relu, ops.Clip, ops.Abs, ops.Neg, ops.Step, ops.Dropout, ops.Maximum, ops.Minimum, ops.MaxPool,
    ops.GlobalMaxPool, ops.ReduceMax, ops.ReduceMin, ops.RoiPool, ops.Concat, ops.Slice, ops.Take, ops.Pad, ops.Crop,
    ops.Flatten, ops.Reshape, ops.Transpose, ops.ChannelShuffle, ops.PixelShuffle, ops.Constant,
)  # fmt: skip
"""Ops whose results are numbers of their operands: they round nothing."""


def node_bound(case: Case, factors: Factors = WORST, *, winograd: bool = False) -> tuple[Array, Array]:
    """What a graph of one node gives, in float64, and how far from it each place may be.

    With `winograd` convolutions may be computed by that algorithm, where it can (see `Target.winograd`).
    """
    (node,) = case.graph.nodes
    (expected,) = reference(case).values()
    if winograd and _transformable(node):
        error: Array | None = factors.winograd * U * _largest_nearby(_magnitude(node, case))
    else:
        error = _error(node, case, expected, factors.sums)
    if error is None:  # bit for bit what float32 NumPy gives
        (single,) = reference(case, exact=False).values()
        return single.astype(np.float64), np.zeros(single.shape)
    dtype = node.type.dtype
    return expected, error + U_OUT[dtype] * np.abs(expected) + TINY[dtype]


def bound_on(
    node: Node, values: Mapping[Value, Array], weights: Weights, factors: Factors = WORST, *, winograd: bool = False
) -> tuple[Array, Array]:
    """`node_bound` of a node on these values of its operands."""
    inputs = tuple(Input(f"x{i}", TensorType(values[x].shape, x.type.dtype)) for i, x in enumerate(node.inputs))
    alone = Graph(node.name, inputs, {"y": Node(node.op, inputs, node.params, "y")})
    arrays = {x.name: values[old] for x, old in zip(inputs, node.inputs, strict=True)}
    return node_bound(Case(alone, weights, arrays), factors, winograd=winograd)


def _transformable(node: Node) -> bool:
    """Whether Winograd's algorithm may compute it: windows of 3 x 3 next to each other, in f32."""
    op = node.op
    if not isinstance(op, ops.Conv) or node.type.dtype is not DType.F32:
        return False
    return (op.kernel, op.stride, op.dilation, op.groups) == ((3, 3), (1, 1), (1, 1), 1)


def _largest_nearby(size: Array) -> Array:
    """The largest of the places [N, C, H, W] less than a tile's rows and columns away."""
    reach = TILE - 1
    for axis in (2, 3):
        ends = [(reach, reach) if i == axis else (0, 0) for i in range(size.ndim)]
        size = np.lib.stride_tricks.sliding_window_view(np.pad(size, ends), 2 * reach + 1, axis).max(-1)
    return size


def _error(node: Node, case: Case, y: Array, c: float) -> Array | None:
    """The error float32 may make at each place of the result y; None where it makes none beyond that of storing y."""
    xs = [case.inputs[x.name].astype(np.float64) for x in node.inputs]
    x = xs[0] if xs else y
    match node.op:
        case ops.Conv() | ops.Deconv() | ops.Local() | ops.Linear() | ops.MatMul() | ops.Rbf() | ops.Scale():
            # Terms of one sign make partial sums that grow, whose rounding adds up to some sqrt(K)*u*|y| at random
            # (Higham & Mary 2019); where terms cancel that is less than c*u*S.
            terms = _terms(node, xs)
            return U * np.maximum(min(terms + 2, c) * _magnitude(node, case), np.sqrt(terms) * np.abs(y))
        case ops.AvgPool() | ops.AdaptiveAvgPool() | ops.GlobalAvgPool() | ops.ReduceMean() | ops.ReduceSum():
            # Terms may all be equal, as a bias is where nothing else comes through: each step then rounds the same way,
            # by up to u of a partial sum. Added one after the other that is K/2 in all; ONNX Runtime reaches K/4.
            terms = _terms(node, xs)
            return min(terms + 2, max(c, terms / 2)) * U * _magnitude(node, case)
        case ops.Add() | ops.Mul() if len(xs) > 2:  # any order
            return len(xs) * U * _magnitude(node, case)
        case ops.BatchNorm():  # may be folded to a scale and a shift
            return 7 * U * _magnitude(node, case)
        case ops.Normalize(mean=mean, std=std):
            return 7 * U * (np.abs(x) + _per_channel(np.abs(mean), x)) / _per_channel(std, x)
        case ops.LayerNorm() | ops.GroupNorm() | ops.InstanceNorm():
            return _norm_error(node, case.weights, x)
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
        case ops.Gelu():  # |x|/2 times the error of erf: 6.2e-7 in PyTorch (Abramowitz & Stegun 7.1.26)
            return 1e-6 * np.abs(y) + 3.5e-7 * np.maximum(np.abs(x), 1)
        case ops.Silu():
            return 1e-6 * np.abs(y) + 1e-7 * np.maximum(np.abs(x), 1)
        case ops.Sigmoid() | ops.Tanh() | ops.Elu() | ops.Selu() | ops.Exp() | ops.Log() | ops.Sqrt():
            return 1e-6 * np.abs(y) + 1e-7
        case _:
            return None


def _terms(node: Node, xs: Sequence[Array]) -> int:
    """How many terms each place of the result sums, at most."""
    shapes = {role: [evaluate(dim, {}) for dim in param.type.shape] for role, param in node.params.items()}
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


def _magnitude(node: Node, case: Case) -> Array:
    """S = sum|w||x| + |b|: the reference on absolute values, where what is subtracted is made negative instead."""
    subtracted = {("bn", "running_mean"), ("rbf", "weight")}
    sizes = {
        param.name: np.abs(case.weights[param.name]) * (-1 if (node.op.name, role) in subtracted else 1)
        for role, param in node.params.items()
    }
    absolute = {name: np.abs(x) for name, x in case.inputs.items()}
    (magnitude,) = reference(Case(case.graph, sizes, absolute)).values()
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
