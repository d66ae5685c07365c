"""Rules of pooling over windows, over grids and over whole maps, of max-unpooling, and of reductions along axes."""

from __future__ import annotations

from math import prod

from tvm import te, tirx

from cnnc import ops
from cnnc.ir.dim import Dim, ceildiv
from cnnc.ir.types import TensorType
from cnnc_tvm.builder import Builder
from cnnc_tvm.pool_kernels import over_maps, over_windows
from cnnc_tvm.rules import rule
from cnnc_tvm.scalar import choose, f32, inside
from cnnc_tvm.tensor import MAX, MIN, SUM, WINDOWS, Expr, Reduction, Tensor


def _windows(
    b: Builder, op: ops.MaxPool | ops.AvgPool | ops.L2Pool, out: TensorType, x: Tensor, outside: float, how: Reduction
) -> Tensor:
    """Each window of x reduced, squared before if it is L2's; `outside` stands for what is not in x."""
    h, w = b.shape(x.type.shape[2:])
    top, left, bottom, right = op.pads(x.type)
    dy, dx = op.dilation if isinstance(op, ops.MaxPool) else (1, 1)
    whole = (top, left, bottom, right) == (0, 0, 0, 0) and not op.ceil

    def taken(value: Expr) -> Expr:
        return value * value if isinstance(op, ops.L2Pool) else value

    if y := over_windows(b, out, x, op.kernel, op.stride, (dy, dx), (top, left), how, taken):
        return y

    def element(n: Expr, c: Expr, i: Expr, j: Expr, p: Expr, q: Expr) -> Expr:
        row = i * op.stride[0] + p * dy - b.size(top)
        column = j * op.stride[1] + q * dx - b.size(left)
        value = taken(x[n, c, row, column])
        return value if whole else te.if_then_else(inside((row, h), (column, w)), value, f32(outside))

    return b.reduce(out, op.kernel, element, how, WINDOWS)


@rule(ops.MaxPool)
def _(b: Builder, op: ops.MaxPool, out: TensorType, x: Tensor) -> Tensor:
    return _windows(b, op, out, x, float("-inf"), MAX)


@rule(ops.L2Pool)
def _(b: Builder, op: ops.L2Pool, out: TensorType, x: Tensor) -> Tensor:
    sums = _windows(b, op, out, x, 0.0, SUM)
    return b.points(out, lambda *i: te.sqrt(sums[i]), sums)


@rule(ops.AvgPool)
def _(b: Builder, op: ops.AvgPool, out: TensorType, x: Tensor) -> Tensor:
    sums = _windows(b, op, out, x, 0.0, SUM)
    pads = op.pads(x.type)

    def places(i: Expr, axis: int) -> Expr:
        """How many places of window i along an axis count."""
        size, before, after = b.shape((x.type.shape[2 + axis], pads[axis], pads[2 + axis]))
        first = i * op.stride[axis] - before
        low, high = (-before, size + after) if op.count_include_pad else (0, size)
        return te.min(first + op.kernel[axis], high) - te.max(first, low)

    if not op.ceil and (op.count_include_pad or pads == (0, 0, 0, 0)):
        return b.points(out, lambda *i: sums[i] / f32(prod(op.kernel)), sums)
    return b.points(out, lambda n, c, i, j: sums[n, c, i, j] / (places(i, 0) * places(j, 1)).astype("float32"), sums)


@rule(ops.AdaptiveAvgPool)
def _(b: Builder, op: ops.AdaptiveAvgPool, out: TensorType, x: Tensor) -> Tensor:
    sizes = b.shape(x.type.shape[2:])

    def cell(i: Expr, axis: int) -> tuple[Expr, Expr]:
        """Where cell i along an axis starts, and how many places it has."""
        first = tirx.indexdiv(i * sizes[axis], op.size[axis])
        return first, tirx.indexdiv((i + 1) * sizes[axis] + (op.size[axis] - 1), op.size[axis]) - first

    def element(n: Expr, c: Expr, i: Expr, j: Expr, p: Expr, q: Expr) -> Expr:
        (top, rows), (left, columns) = cell(i, 0), cell(j, 1)
        return te.if_then_else(tirx.all(p < rows, q < columns), x[n, c, top + p, left + q], f32(0))

    # A cell that does not start on a multiple of its height can reach into one place more.
    largest = [_cell_size(size, count) for size, count in zip(x.type.shape[2:], op.size, strict=True)]
    sums = b.reduce(out, largest, element)
    return b.points(out, lambda n, c, i, j: sums[n, c, i, j] / (cell(i, 0)[1] * cell(j, 1)[1]).astype("float32"), sums)


def _cell_size(size: Dim, count: int) -> Dim:
    exact = isinstance(size, int) and size % count == 0
    return ceildiv(size, count) if exact else ceildiv(size, count) + 1


@rule(ops.GlobalAvgPool)
def _(b: Builder, op: ops.GlobalAvgPool, out: TensorType, x: Tensor) -> Tensor:
    return _reduced(b, x, out, (2, 3), SUM, mean=True)


@rule(ops.GlobalMaxPool)
def _(b: Builder, op: ops.GlobalMaxPool, out: TensorType, x: Tensor) -> Tensor:
    return _reduced(b, x, out, (2, 3), MAX)


@rule(ops.ReduceMean, ops.ReduceSum, ops.ReduceMax, ops.ReduceMin)
def _(
    b: Builder, op: ops.ReduceMean | ops.ReduceSum | ops.ReduceMax | ops.ReduceMin, out: TensorType, x: Tensor
) -> Tensor:
    how = {ops.ReduceMax: MAX, ops.ReduceMin: MIN}.get(type(op), SUM)
    return _reduced(b, x, out, op.axes, how, mean=isinstance(op, ops.ReduceMean))


def _reduced(
    b: Builder, x: Tensor, out: TensorType, axes: tuple[int, ...], how: Reduction, *, mean: bool = False
) -> Tensor:
    """x reduced along axes, which are kept with size 1 if `out` has x's rank."""
    if sorted(axes) == [2, 3] and (y := over_maps(b, out, x, how, mean=mean)):
        return y
    kept = out.rank == x.type.rank
    over = [x.type.shape[axis] for axis in axes]

    def element(*index: Expr) -> Expr:
        outer, inner = list(index[: out.rank]), dict(zip(axes, index[out.rank :], strict=True))
        if not kept:
            for axis in sorted(axes):
                outer.insert(axis, 0)
        return x[tuple(inner.get(axis, i) for axis, i in enumerate(outer))]

    result = b.reduce(out, over, element, how)
    if not mean:
        return result
    count = 1
    for size in b.shape(over):
        count = count * size
    divisor = f32(count) if isinstance(count, int) else count.astype("float32")
    return b.points(out, lambda *i: result[i] / divisor, result)


@rule(ops.Unpool)
def _(b: Builder, op: ops.Unpool, out: TensorType, x: Tensor, source: Tensor) -> Tensor:
    (kh, kw), (sh, sw) = op.kernel, op.stride
    h, w = b.shape(x.type.shape[2:])
    pooled = TensorType(x.type.shape)

    def window(n: Expr, c: Expr, i: Expr, j: Expr, p: Expr, q: Expr) -> Expr:
        return source[n, c, i * sh + p, j * sw + q]

    largest = b.store(b.reduce(pooled, op.kernel, window, MAX, WINDOWS))

    def place(n: Expr, c: Expr, i: Expr, j: Expr, p: Expr, q: Expr) -> Expr:
        here = tirx.any(window(n, c, i, j, p, q) == largest[n, c, i, j], te.isnan(window(n, c, i, j, p, q)))
        return choose(here, f32(0) + (p * kw + q), f32(kh * kw))

    places = b.store(b.reduce(pooled, op.kernel, place, MIN, WINDOWS))

    def element(n: Expr, c: Expr, i: Expr, j: Expr, p: Expr, q: Expr) -> Expr:
        row, column = tirx.indexdiv(i, sh) - p, tirx.indexdiv(j, sw) - q  # of one window that may hold the place
        dy, dx = i - row * sh, j - column * sw
        mine = tirx.all(inside((row, h), (column, w)), dy < kh, dx < kw)
        taken = te.if_then_else(mine, places[n, c, row, column].astype("int32"), -1)
        return te.if_then_else(tirx.all(mine, taken == dy * kw + dx), x[n, c, row, column], f32(0))

    return b.reduce(out, (-(-kh // sh), -(-kw // sw)), element)
