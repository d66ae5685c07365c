"""Rules of pooling and aligned reading of regions of feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import te, tirx

from cnnc import ops
from cnnc.ir.types import TensorType
from cnnc_tvm.builder import Builder
from cnnc_tvm.rules import rule
from cnnc_tvm.scalar import bound, c_function, choose, f32
from cnnc_tvm.tensor import MAX, Expr, Tensor


@rule(ops.RoiPool)
def _(b: Builder, op: ops.RoiPool, out: TensorType, x: Tensor, rois: Tensor) -> Tensor:
    count = b.size(rois.type.shape[1])
    sizes = b.shape(x.type.shape[2:])

    def edge(m: Expr, k: int) -> Expr:
        """Number k of region m as a place of x: the nearest, halves away from zero."""
        return _int(c_function("round", _corner(b, rois, m, k) * f32(op.scale)))

    def cells(axis: int) -> Tensor:
        """Where each cell along an axis of each region starts and ends, cut to x: [N*R, cells, 2], in exact floats."""

        def bounds(m: Expr, i: Expr, end: Expr) -> Expr:
            first = edge(m, 1 - axis)
            extent = te.max(edge(m, 3 - axis) - first + 1, 1)
            start, stop = (
                tirx.indexdiv(i * extent, op.size[axis]),
                tirx.indexdiv((i + 1) * extent + op.size[axis] - 1, op.size[axis]),
            )
            return te.min(te.max(first + choose(end > 0, stop, start), 0), sizes[axis]).astype("float32")

        return b.store(b.moves(TensorType((out.shape[0], op.size[axis], 2)), bounds))

    rows, columns = cells(0), cells(1)

    def element(m: Expr, c: Expr, i: Expr, j: Expr, row: Expr, column: Expr) -> Expr:
        row_in = tirx.all(row >= _int(rows[m, i, 0]), row < _int(rows[m, i, 1]))
        column_in = tirx.all(column >= _int(columns[m, j, 0]), column < _int(columns[m, j, 1]))
        return te.if_then_else(
            tirx.all(row_in, column_in), x[tirx.indexdiv(m, count), c, row, column], f32(float("-inf"))
        )

    largest = b.reduce(out, x.type.shape[2:], element, MAX)

    def filled(m: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
        some = tirx.all(rows[m, i, 0] < rows[m, i, 1], columns[m, j, 0] < columns[m, j, 1])
        return choose(some, largest[m, c, i, j], f32(0))

    return b.points(out, filled, largest)


@rule(ops.RoiAlign)
def _(b: Builder, op: ops.RoiAlign, out: TensorType, x: Tensor, rois: Tensor) -> Tensor:
    return _aligned(b, op, out, rois, (x,), (op.scale,), lambda m: 0)


@rule(ops.RoiAlignPyramid)
def _(b: Builder, op: ops.RoiAlignPyramid, out: TensorType, rois: Tensor, *levels: Tensor) -> Tensor:
    first = round(-math.log2(op.scales[0]))

    def suited(m: Expr) -> Expr:
        x1, y1, x2, y2 = (_corner(b, rois, m, k) for k in range(4))
        level = f32(4) + c_function("log2", te.sqrt((x2 - x1) * (y2 - y1)) / f32(224)) + f32(1e-6)
        cut = bound(te.floor(level) - f32(first), lambda v: te.min(te.max(v, f32(0)), f32(len(levels) - 1)))
        return choose(te.isnan(level), f32(-1), cut)  # a region of negative area is on no level

    chosen = b.store(b.moves(TensorType(out.shape[:1]), suited))
    return _aligned(b, op, out, rois, levels, op.scales, lambda m: _int(chosen[m]))


def _aligned(
    b: Builder, op: ops.RoiAlign | ops.RoiAlignPyramid, out: TensorType, rois: Tensor,
    levels: tuple[Tensor, ...], scales: tuple[float, ...], level: Callable[[Expr], Expr],
) -> Tensor:  # fmt: skip
    """The means of readings of regions m, each on the level number `level(m)`; all are 0 where that is negative."""
    count = b.size(rois.type.shape[1])
    shift = isinstance(op, ops.RoiAlign) and op.aligned

    def of(level: Expr, values: Sequence[Expr], choose: Callable[..., Expr] = choose) -> Expr:
        *before, chosen = values
        for i, value in reversed(list(enumerate(before))):
            chosen = choose(level.equal(i), value, chosen)
        return chosen

    def readings(axis: int) -> Tensor:
        """Where the readings along an axis are, cut to the level; -1 where they count as 0: [N*R, cells*samples]."""
        size = op.size[axis] * op.samples

        def place(m: Expr, i: Expr) -> Expr:
            scale = of(level(m), [f32(scale) for scale in scales])
            end = of(level(m), [_float(b.size(x.type.shape[2 + axis])) for x in levels])
            start, stop = (_corner(b, rois, m, k) * scale for k in (1 - axis, 3 - axis))
            if shift:
                start, stop = start - f32(0.5), stop - f32(0.5)
            extent = stop - start if shift else te.max(stop - start, f32(1))
            at = start + (i.astype("float32") + f32(0.5)) * extent / f32(size)
            counts = tirx.all(at >= f32(-1), at <= end, level(m) >= 0)
            return choose(counts, te.min(te.max(at, f32(0)), end - f32(1)), f32(-1))

        return b.store(b.moves(TensorType((out.shape[0], size)), place))

    rows, columns = readings(0), readings(1)

    def element(m: Expr, c: Expr, i: Expr, j: Expr, p: Expr, q: Expr) -> Expr:
        n = tirx.indexdiv(m, count)
        row, column = rows[m, i * op.samples + p], columns[m, j * op.samples + q]

        def between(x: Tensor) -> Expr:
            height, width = b.shape(x.type.shape[2:])
            (top, bottom, dy), (left, right, dx) = _split(row, height), _split(column, width)
            upper = x[n, c, top, left] * (f32(1) - dx) + x[n, c, top, right] * dx
            lower = x[n, c, bottom, left] * (f32(1) - dx) + x[n, c, bottom, right] * dx
            return upper * (f32(1) - dy) + lower * dy

        value = of(level(m), [between(x) for x in levels], te.if_then_else)
        return te.if_then_else(tirx.all(row >= f32(0), column >= f32(0)), value, f32(0))

    sums = b.reduce(out, (op.samples, op.samples), element)
    return b.points(out, lambda *i: sums[i] / f32(op.samples**2), sums)


def _split(place: Expr, size: Expr) -> tuple[Expr, Expr, Expr]:
    """The two places of `size` that a place lies between, and the share of the second."""
    first = _int(place)
    return first, te.min(first + 1, size - 1), place - first.astype("float32")


def _corner(b: Builder, rois: Tensor, m: Expr, k: int) -> Expr:
    count = b.size(rois.type.shape[1])
    return rois[tirx.indexdiv(m, count), tirx.indexmod(m, count), k]


def _int(x: Expr) -> Expr:
    return x.astype("int32")


def _float(x: Expr) -> Expr:
    return f32(x) if isinstance(x, int) else x.astype("float32")
