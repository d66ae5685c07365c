"""Rules of the ops that move data: joining, cutting, rearranging, resampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import te, tirx

from cnnc import ops
from cnnc.ir.dim import Dim
from cnnc.ir.types import TensorType
from cnnc_tvm.builder import Builder
from cnnc_tvm.rules import rule
from cnnc_tvm.scalar import f32, inside
from cnnc_tvm.tensor import Expr, Tensor


def replaced(index: tuple[Expr, ...], axis: int, value: Expr) -> tuple[Expr, ...]:
    """The index with the one of `axis` replaced."""
    return (*index[:axis], value, *index[axis + 1 :])


@rule(ops.Concat)
def _(b: Builder, op: ops.Concat, out: TensorType, *xs: Tensor) -> Tensor:
    known = all(isinstance(x.type.shape[op.axis], int) for x in xs)
    if known and any(map(b.is_made, xs)) and (joined := b.join(out, op.axis, xs)):
        return joined
    starts: list[Dim] = [0]
    for x in xs:
        starts.append(starts[-1] + x.type.shape[op.axis])

    def element(*i: Expr) -> Expr:
        value = xs[-1][replaced(i, op.axis, i[op.axis] - b.size(starts[-2]))]
        for x, start, stop in reversed(list(zip(xs[:-1], starts, starts[1:], strict=False))):
            here = x[replaced(i, op.axis, i[op.axis] - b.size(start))]
            value = te.if_then_else(i[op.axis] < b.size(stop), here, value)
        return value

    return b.moves(out, element)


@rule(ops.Flatten, ops.Reshape)
def _(b: Builder, op: ops.Flatten | ops.Reshape, out: TensorType, x: Tensor) -> Tensor:
    return b.view(x, out)


@rule(ops.Slice)
def _(b: Builder, op: ops.Slice, out: TensorType, x: Tensor) -> Tensor:
    start, _ = op.bounds(x.type)
    part = b.moves(out, lambda *i: x[replaced(i, op.axis, i[op.axis] * op.step + start)])
    if not (x.within or x.loops is None):
        return part
    if x.blocks is None or op.axis != 1 or op.step != 1 or start % b.lanes or b.memory(out) is None:
        return replace(part, within=True)
    return replace(part, within=True, blocks=x.blocks, first=x.first + start // b.lanes)


@rule(ops.Take)
def _(b: Builder, op: ops.Take, out: TensorType, x: Tensor) -> Tensor:
    # A table of f32 is exact up to 2^24 positions; the element types of the language have no integers.
    table = b.constant(f"{b.node}:indices", lambda: np.array(op.indices, np.float32))
    return b.moves(out, lambda *i: x[replaced(i, op.axis, table[i[op.axis]].astype("int32"))])


@rule(ops.Pad)
def _(b: Builder, op: ops.Pad, out: TensorType, x: Tensor) -> Tensor:
    top, left, _, _ = op.pads
    return padded(b, x, out, top, left, op.value)


def padded(b: Builder, x: Tensor, out: TensorType, top: Dim, left: Dim, value: float) -> Tensor:
    """x [N, C, H, W] with `value` around it, of the size of `out`."""
    h, w = b.shape(x.type.shape[2:])
    dy, dx = b.size(top), b.size(left)
    return b.moves(
        out,
        lambda n, c, i, j: te.if_then_else(inside((i - dy, h), (j - dx, w)), x[n, c, i - dy, j - dx], f32(value)),
    )


@rule(ops.Transpose)
def _(b: Builder, op: ops.Transpose, out: TensorType, x: Tensor) -> Tensor:
    where = [op.axes.index(axis) for axis in range(len(op.axes))]
    return b.moves(out, lambda *i: x[tuple(i[axis] for axis in where)])


@rule(ops.Crop)
def _(b: Builder, op: ops.Crop, out: TensorType, x: Tensor, like: Tensor) -> Tensor:
    top, left = op.offset
    return b.moves(out, lambda n, c, i, j: x[n, c, i + top, j + left])


@rule(ops.ChannelShuffle)
def _(b: Builder, op: ops.ChannelShuffle, out: TensorType, x: Tensor) -> Tensor:
    channels = x.type.shape[1]
    assert isinstance(channels, int)
    size = channels // op.groups  # channel c was c // groups of group c % groups
    return b.moves(out, lambda n, c, *i: x[(n, tirx.floormod(c, op.groups) * size + tirx.floordiv(c, op.groups), *i)])


@rule(ops.PixelShuffle)
def _(b: Builder, op: ops.PixelShuffle, out: TensorType, x: Tensor) -> Tensor:
    s = op.scale

    def element(n: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
        return x[n, (c * s + tirx.floormod(i, s)) * s + tirx.floormod(j, s), tirx.floordiv(i, s), tirx.floordiv(j, s)]

    return b.moves(out, element)


@rule(ops.Upsample, ops.Resize)
def _(b: Builder, op: ops.Upsample | ops.Resize, out: TensorType, x: Tensor, like: Tensor | None = None) -> Tensor:
    taken = b.shape(x.type.shape[2:])
    given = b.shape(out.shape[2:])
    if op.mode == "nearest":
        return b.moves(
            out,
            lambda n, c, i, j: x[(n, c, *(_div(k * h, g) for k, h, g in zip((i, j), taken, given, strict=True)))],
        )
    between = _corners if op.align_corners else _centres

    def element(n: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
        (top, bottom, dy), (left, right, dx) = (between(k, h, g) for k, h, g in zip((i, j), taken, given, strict=True))
        upper = x[n, c, top, left] * (f32(1) - dx) + x[n, c, top, right] * dx
        lower = x[n, c, bottom, left] * (f32(1) - dx) + x[n, c, bottom, right] * dx
        return upper * (f32(1) - dy) + lower * dy

    return b.moves(out, element)


Between = tuple[Expr, Expr, Expr]
"""The two places that a place of the result lies between, and the share of the second."""


def _centres(i: Expr, size: Expr, count: Expr) -> Between:
    """Place i of `count` by (i + 1/2) * size / count - 1/2, in integers until the division, cut to what there is."""
    twice = (2 * i + 1) * size - count
    return _split(te.min(te.max(twice, 0), 2 * count * (size - 1)), 2 * count, size)


def _corners(i: Expr, size: Expr, count: Expr) -> Between:
    """Place i of `count` by i * (size - 1) / (count - 1)."""
    return _split(i * (size - 1), te.max(count - 1, 1), size)


def _split(numerator: Expr, denominator: Expr, size: Expr) -> Between:
    first = _div(numerator, denominator)
    share = (numerator - first * denominator).astype("float32") / _float(denominator)
    return first, te.min(first + 1, size - 1), share


def _div(a: Expr, b: Expr) -> Expr:
    return tirx.indexdiv(a, b)


def _float(x: Expr) -> Expr:
    return f32(x) if isinstance(x, int) else x.astype("float32")
