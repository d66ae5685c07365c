"""Rules of pooling and aligned reading of regions of feature maps."""

from __future__ import annotations

from tvm import te, tirx

from cnnc import ops
from cnnc.ir.types import TensorType
from cnnc_tvm.builder import MAX, Builder, Expr, Tensor
from cnnc_tvm.rules import rule
from cnnc_tvm.scalar import c_function, choose, f32


@rule(ops.RoiPool)
def _(b: Builder, op: ops.RoiPool, out: TensorType, x: Tensor, rois: Tensor) -> Tensor:
    count = b.size(rois.type.shape[1])
    sizes = b.shape(x.type.shape[2:])

    def edge(m: Expr, k: int) -> Expr:
        """Number k of region m as a place of x: the nearest, halves away from zero."""
        v = rois[tirx.indexdiv(m, count), tirx.indexmod(m, count), k] * f32(op.scale)
        return c_function("round", v).astype("int32")

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


def _int(x: Expr) -> Expr:
    return x.astype("int32")


@rule(ops.RoiAlign)
def _(b: Builder, op: ops.RoiAlign, out: TensorType, x: Tensor, rois: Tensor) -> Tensor:
    count = b.size(rois.type.shape[1])
    sizes = b.shape(x.type.shape[2:])

    def edge(m: Expr, k: int) -> Expr:
        v = rois[tirx.indexdiv(m, count), tirx.indexmod(m, count), k] * f32(op.scale)
        return v - f32(0.5) if op.aligned else v

    def reading(m: Expr, i: Expr, p: Expr, axis: int) -> tuple[Expr, Expr, Expr, Expr]:
        """Reading p of cell i along an axis: whether it counts, the places it lies between, the share of the second."""
        start = edge(m, 1 - axis)
        extent = edge(m, 3 - axis) - start
        if not op.aligned:
            extent = te.max(extent, f32(1))
        last = sizes[axis] - 1
        place = start + ((i * op.samples + p).astype("float32") + f32(0.5)) * extent / f32(op.size[axis] * op.samples)
        limit = f32(sizes[axis]) if isinstance(last, int) else sizes[axis].astype("float32")
        counts = tirx.all(place >= f32(-1), place <= limit)
        cut = te.min(te.max(place, f32(0)), limit - f32(1))
        first = cut.astype("int32")
        return counts, first, te.min(first + 1, last), cut - first.astype("float32")

    def element(m: Expr, c: Expr, i: Expr, j: Expr, p: Expr, q: Expr) -> Expr:
        n = tirx.indexdiv(m, count)
        rows, top, bottom, dy = reading(m, i, p, 0)
        columns, left, right, dx = reading(m, j, q, 1)
        upper = x[n, c, top, left] * (f32(1) - dx) + x[n, c, top, right] * dx
        lower = x[n, c, bottom, left] * (f32(1) - dx) + x[n, c, bottom, right] * dx
        return te.if_then_else(tirx.all(rows, columns), upper * (f32(1) - dy) + lower * dy, f32(0))

    sums = b.reduce(out, (op.samples, op.samples), element)
    return b.points(out, lambda *i: sums[i] / f32(op.samples**2), sums)
