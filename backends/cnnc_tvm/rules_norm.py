"""Rules of the normalisations that compute statistics of their input, and of softmax."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tvm import te, tirx

from cnnc import ops
from cnnc.ir.dim import Dim
from cnnc.ir.types import TensorType
from cnnc_tvm.builder import Builder
from cnnc_tvm.pool_kernels import over_windows, squares_across
from cnnc_tvm.rules import per_channel, rule
from cnnc_tvm.rules_shape import replaced
from cnnc_tvm.scalar import c_function, exp, f32, inside, power
from cnnc_tvm.tensor import MAX, SUM, WINDOWS, Expr, Tensor


@rule(ops.Softmax, ops.LogSoftmax)
def _(b: Builder, op: ops.Softmax | ops.LogSoftmax, out: TensorType, x: Tensor) -> Tensor:
    rows = TensorType(tuple(1 if axis == op.axis else dim for axis, dim in enumerate(x.type.shape)))
    over = [x.type.shape[op.axis]]

    def row(i: tuple[Expr, ...]) -> tuple[Expr, ...]:
        return replaced(i, op.axis, 0)

    largest = b.store(b.reduce(rows, over, lambda *i: x[replaced(i[:-1], op.axis, i[-1])], MAX))
    total = b.store(b.reduce(rows, over, lambda *i: exp(x[replaced(i[:-1], op.axis, i[-1])] - largest[i[:-1]])))
    if isinstance(op, ops.LogSoftmax):
        return b.points(out, lambda *i: x[i] - largest[row(i)] - c_function("log", total[row(i)]))
    return b.points(out, lambda *i: exp(x[i] - largest[row(i)]) / total[row(i)])


@rule(ops.Lrn)
def _(b: Builder, op: ops.Lrn, out: TensorType, x: Tensor) -> Tensor:
    c, h, w = b.shape(x.type.shape[1:])
    before = op.size // 2

    def across(n: Expr, o: Expr, i: Expr, j: Expr, k: Expr) -> Expr:
        o = o + k - before
        return te.if_then_else(inside((o, c)), x[n, o, i, j] * x[n, o, i, j], f32(0))

    def within(n: Expr, o: Expr, i: Expr, j: Expr, p: Expr, q: Expr) -> Expr:
        i, j = i + p - before, j + q - before
        return te.if_then_else(inside((i, h), (j, w)), x[n, o, i, j] * x[n, o, i, j], f32(0))

    places = (op.size, op.size) if op.within else (op.size,)
    scale = f32(op.alpha / prod(places))
    if op.within:
        y = over_windows(b, out, x, (op.size, op.size), (1, 1), (1, 1), (before, before), SUM, lambda v: v * v)
    else:
        y = squares_across(b, x, op.size, before)
    squares = y or b.reduce(out, places, within if op.within else across, loops=WINDOWS)
    return b.points(out, lambda *i: x[i] / power(f32(op.k) + scale * squares[i], op.beta), squares)


@rule(ops.LayerNorm)
def _(
    b: Builder, op: ops.LayerNorm, out: TensorType, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    axis = op.axis
    mean, scale = _statistics(b, x, x.type.shape[:axis], x.type.shape[axis:], lambda *i: i, op.eps)

    def element(*i: Expr) -> Expr:
        value = (x[i] - mean[i[:axis]]) * scale[i[:axis]]
        return value if weight is None or bias is None else value * weight[i[axis:]] + bias[i[axis:]]

    return b.points(out, element)


@rule(ops.GroupNorm, ops.InstanceNorm)
def _(
    b: Builder, op: ops.GroupNorm | ops.InstanceNorm, out: TensorType, x: Tensor,
    weight: Tensor | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    n, channels, *places = x.type.shape
    assert isinstance(channels, int)
    groups = op.groups if isinstance(op, ops.GroupNorm) else channels
    size = channels // groups
    mean, scale = _statistics(b, x, (n, groups), (size, *places), lambda n, g, c, *i: (n, g * size + c, *i), op.eps)

    def element(n: Expr, c: Expr, *i: Expr) -> Expr:
        group = n, tirx.floordiv(c, size)
        value = (x[(n, c, *i)] - mean[group]) * scale[group]
        return value if weight is None or bias is None else value * per_channel(weight)(n, c) + per_channel(bias)(n, c)

    return b.points(out, element)


def _statistics(
    b: Builder,
    x: Tensor,
    rows: tuple[Dim, ...],
    over: tuple[Dim, ...],
    index: Callable[..., tuple[Expr, ...]],
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The mean, and 1/sqrt(variance + eps), of each row of x; `index(*row, *k)` is where element k of a row lies."""
    count: Expr = f32(1)
    for size in b.shape(over):
        count = count * (f32(size) if isinstance(size, int) else size.astype("float32"))
    type = TensorType(rows)
    sums = b.reduce(type, over, lambda *i: x[index(*i)])
    mean = b.store(b.points(type, lambda *i: sums[i] / count, sums))

    def square(*i: Expr) -> Expr:
        difference = x[index(*i)] - mean[i[: len(rows)]]
        return difference * difference

    squares = b.reduce(type, over, square)
    return mean, b.store(b.points(type, lambda *i: f32(1) / te.sqrt(squares[i] / count + f32(eps)), squares))
