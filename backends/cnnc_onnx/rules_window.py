"""Rules: convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import numpy_helper

from cnnc import ops
from cnnc.ir.dim import Dim, ceildiv, evaluate, minimum
from cnnc.ir.types import TensorType
from cnnc.ops.pool import Pool
from cnnc.ops.window import Pads, windows
from cnnc.target import numpy_dtype
from cnnc_onnx.emit import ELEMENT, Emitter, Ref, Tensor, UnsupportedError, in_f32, rules

DROPS = 22
"""The opset from which ONNX's shape inference drops a `ceil` window that would start in the padding."""


def placed(e: Emitter, op: ops.Conv | Pool, x: TensorType) -> dict[str, Any] | None:
    """The attributes that pad the operand and round the number of windows; None where it must be padded beforehand.

    `same_*` of an input of symbolic size is left to the runtime. What ONNX cannot pad: in the runtime a dilated kernel
    or one smaller than its stride; in pooling more padding than the kernel has places; in old opsets windows of which
    one axis drops the last and the other has it.
    """
    fixed = [p for p in op.pads(x) if isinstance(p, int)]
    if len(fixed) < 4:
        same = op.span == op.kernel and all(k >= s for k, s in zip(op.kernel, op.stride, strict=True))
        return {"auto_pad": str(op.pad).upper()} if same else None
    if isinstance(op, ops.Conv):
        return {"pads": fixed}
    if any(p >= k for p, k in zip(fixed, op.kernel * 2, strict=True)):
        return None
    if e.type.shape[2:] == windows(x, op.name, op.pad, op.span, op.stride):
        return {"pads": fixed}
    return {"pads": fixed, "ceil_mode": 1} if e.opset >= DROPS or not _drops(op, x, e.type) else None


def around(e: Emitter, op: ops.Conv | Pool, x: TensorType) -> Pads:
    """What to pad beforehand, at the end by what the windows reach: that leaves no room for rounding."""
    first = op.pads(x)[:2]
    needed = ((n - 1) * s + k for n, s, k in zip(e.type.shape[2:], op.stride, op.span, strict=True))
    bottom, right = (-minimum(size + p - n, 0) for n, size, p in zip(needed, x.shape[2:], first, strict=True))
    return *first, bottom, right


def pad(e: Emitter, x: Tensor, pads: Pads, fill: float) -> Tensor:
    return e("Pad", x, e.dims((0, 0, *pads[:2], 0, 0, *pads[2:])), e.number(fill))


def padding(e: Emitter, op: ops.Conv | Pool, x: Ref, fill: float = 0) -> tuple[Tensor, dict[str, Any]]:
    """The operand, padded with `fill` if need be, and the attributes that do the rest."""
    attributes = placed(e, op, x.type)
    return (x, attributes) if attributes is not None else (pad(e, x, around(e, op, x.type), fill), {})


def _drops(op: Pool, x: TensorType, y: TensorType) -> bool:
    """Whether rounding up gives a window that starts in the padding, in numbers: other sizes the runtime works out."""
    top, left, bottom, right = op.pads(x)
    rooms = (size + p - k for size, p, k in zip(x.shape[2:], (top + bottom, left + right), op.span, strict=True))
    counts = (ceildiv(room, s) + 1 for room, s in zip(rooms, op.stride, strict=True))
    return any(isinstance(n, int) and n != count for n, count in zip(y.shape[2:], counts, strict=True))


def dilations(op: ops.Conv | ops.MaxPool) -> tuple[int, ...]:
    """Those that mean something: ONNX Runtime pads by `auto_pad` only where all are 1, also along kernels of 1."""
    return tuple(d if k > 1 else 1 for d, k in zip(op.dilation, op.kernel, strict=True))


def pooling(e: Emitter, kind: str, op: Pool, x: Ref, fill: float = 0, **attributes: object) -> Tensor:
    padded, pads = padding(e, op, x, fill)
    return e(kind, padded, kernel_shape=op.kernel, strides=op.stride, **pads, **attributes)


@rules(ops.Conv)
def conv(op: ops.Conv, e: Emitter, x: Ref, weight: Ref, bias: Ref | None = None) -> Tensor:
    padded, pads = padding(e, op, x)
    return e(
        "Conv", padded, weight, bias,
        kernel_shape=op.kernel, strides=op.stride, dilations=dilations(op), group=op.groups, **pads,
    )  # fmt: skip


@rules(ops.Deconv)
def deconv(op: ops.Deconv, e: Emitter, x: Ref, weight: Ref, bias: Ref | None = None) -> Tensor:
    if any(extra >= s for extra, s in zip(op.out_pad, op.stride, strict=True)):
        raise UnsupportedError("has no `deconv` with an `out_pad` of its stride or more")
    return e(
        "ConvTranspose", x, weight, bias,
        kernel_shape=op.kernel, strides=op.stride, dilations=op.dilation, group=op.groups, pads=op.pads,
        output_padding=op.out_pad,
    )  # fmt: skip


@rules(ops.Local)
@in_f32
def local(op: ops.Local, e: Emitter, x: Ref, weight: Ref, bias: Ref | None = None) -> Tensor:
    """A matrix product for each place: [P, N, C*kh*kw] by [P, C*kh*kw, c]. The patches are gathered."""
    c, h, w = (evaluate(dim, {}) for dim in x.type.shape[1:])
    o, rows, columns = (evaluate(dim, {}) for dim in e.type.shape[1:])
    top, left, bottom, right = (evaluate(dim, {}) for dim in op.pads(x.type))
    size = h + top + bottom, w + left + right
    (kh, kw), (sh, sw) = op.kernel, op.stride
    places, taps = rows * columns, kh * kw
    row = np.arange(rows)[:, None, None, None] * sh + np.arange(kh)[:, None]
    column = np.arange(columns)[:, None, None] * sw + np.arange(kw)
    index = (row * size[1] + column).reshape(places, taps)
    padded = e("Pad", x, e.ints(0, 0, top, left, 0, 0, bottom, right))
    patches = e("Gather", e("Reshape", padded, e.ints(-1, c, size[0] * size[1])), e.array(index), axis=2)
    patches = e("Reshape", e("Transpose", patches, perm=(2, 0, 1, 3)), e.ints(places, -1, c * taps))
    kernels = e("Transpose", e("Reshape", weight, e.ints(o, places, c * taps)), perm=(1, 2, 0))
    y = e("Reshape", e("Transpose", e("MatMul", patches, kernels), perm=(1, 2, 0)), e.ints(-1, o, rows, columns))
    return e("Add", y, bias) if bias is not None else y


@rules(ops.MaxPool)
def maxpool(op: ops.MaxPool, e: Emitter, x: Ref) -> Tensor:
    return pooling(e, "MaxPool", op, x, -math.inf, dilations=dilations(op))


@rules(ops.AvgPool)
def avgpool(op: ops.AvgPool, e: Emitter, x: Ref) -> Tensor:
    """Where x must be padded beforehand, which would be counted: divided by the mean of ones where places count."""
    if placed(e, op, x.type) is not None:
        return pooling(e, "AveragePool", op, x, count_include_pad=int(op.count_include_pad))
    pads = around(e, op, x.type)
    counted = _each(minimum, op.pads(x.type), pads) if op.count_include_pad else (0, 0, 0, 0)
    one = numpy_helper.from_array(np.ones(1, numpy_dtype(x.type.dtype)))
    ones = pad(e, e("ConstantOfShape", e("Shape", x), value=one), counted, 1)
    ones = pad(e, ones, _each(lambda p, q: p - q, pads, counted), 0)
    means, shares = (e("AveragePool", y, kernel_shape=op.kernel, strides=op.stride) for y in (pad(e, x, pads, 0), ones))
    return e("Div", means, shares)


def _each(combine: Callable[[Dim, Dim], Dim], left: Pads, right: Pads) -> Pads:
    top, before, bottom, after = map(combine, left, right)
    return top, before, bottom, after


@rules(ops.L2Pool)
def l2pool(op: ops.L2Pool, e: Emitter, x: Ref) -> Tensor:
    if op.ceil:
        e.needs_opset(18, "`l2pool` with `ceil`")
    return pooling(e, "LpPool", op, x, p=2)


@rules(ops.GlobalAvgPool)
def gap(op: ops.GlobalAvgPool, e: Emitter, x: Ref) -> Tensor:
    return e("GlobalAveragePool", x)


@rules(ops.GlobalMaxPool)
def gmp(op: ops.GlobalMaxPool, e: Emitter, x: Ref) -> Tensor:
    return e("GlobalMaxPool", x)


@rules(ops.AdaptiveAvgPool)
def adaptive_avgpool(op: ops.AdaptiveAvgPool, e: Emitter, x: Ref) -> Tensor:
    _, _, h, w = x.type.shape
    rows, columns = op.size
    if op.size == (1, 1):
        return e("GlobalAveragePool", x)
    if isinstance(h, int) and isinstance(w, int) and h % rows == 0 and w % columns == 0:
        kernel = h // rows, w // columns
        return e("AveragePool", x, kernel_shape=kernel, strides=kernel)
    return _uneven_means(op, e, x)


@in_f32
def _uneven_means(op: ops.AdaptiveAvgPool, e: Emitter, x: Ref) -> Tensor:
    """A product with an averaging matrix on each side."""
    (_, _, h, w), (rows, columns) = x.type.shape, op.size
    right = e("Transpose", _averages(e, w, columns), perm=(1, 0))
    return e("MatMul", e("MatMul", _averages(e, h, rows), x), right)


def _averages(e: Emitter, size: Dim, count: int) -> str:
    """[count, size]: row i averages the i-th window, from floor(i*size/count) to ceil((i + 1)*size/count)."""
    index, place, divisor = np.arange(count)[:, None], e.range(size), e.ints(count)
    start = e("Div", e("Mul", e.array(index), e.dim(size)), divisor)
    stop = e("Div", e("Add", e("Mul", e.array(index + 1), e.dim(size)), e.ints(count - 1)), divisor)
    inside = e("And", e("GreaterOrEqual", place, start), e("Less", place, stop))
    dtype = ELEMENT[e.type.dtype]
    return e("Div", e("Cast", inside, to=dtype), e("Cast", e("Sub", stop, start), to=dtype))


@rules(ops.Unpool)
@in_f32
def unpool(op: ops.Unpool, e: Emitter, x: Ref, source: Ref) -> Tensor:
    """The places of the maxima come from pooling `source` again; they count elements of the whole tensor."""
    overlap = any(s < k for s, k in zip(op.stride, op.kernel, strict=True))
    if overlap:
        e.needs_opset(16, "`unpool` of overlapping windows")
    _, places = e.many("MaxPool", 2, source, kernel_shape=op.kernel, strides=op.stride)
    shape = e("Shape", source)
    zeros = e("Expand", e.number(0), e("ReduceProd", shape, keepdims=1))
    flat = e.ints(-1)
    scattered = e(
        "ScatterElements", zeros, e("Reshape", places, flat), e("Reshape", x, flat),
        axis=0, **({"reduction": "add"} if overlap else {}),
    )  # fmt: skip
    return e("Reshape", scattered, shape)
