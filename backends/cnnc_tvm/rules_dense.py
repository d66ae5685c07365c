"""Rules of the ops that sum products with weights: what both targets share, and the plain form `cuda` uses."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from tvm import te, tirx

from cnnc import ops
from cnnc.ir.attrs import Pair
from cnnc.ir.types import TensorType
from cnnc_tvm.builder import Builder
from cnnc_tvm.rules import CUDA, per_channel, rule, spread
from cnnc_tvm.rules_shape import padded
from cnnc_tvm.scalar import f32
from cnnc_tvm.tensor import SUMS, Expr, Loops, Tensor


def biased(b: Builder, out: TensorType, y: Tensor, bias: Tensor | None) -> Tensor:
    """y plus a bias per channel."""
    if bias is None:
        return y
    shift = per_channel(bias)
    return b.points(out, lambda *i: y[i] + shift(*i), y)


def around(b: Builder, x: Tensor, op: ops.Conv | ops.Local) -> Tensor:
    """x as an expression with the zeros around it that op asks for."""
    top, left, bottom, right = op.pads(x.type)
    if (top, left, bottom, right) == (0, 0, 0, 0):
        return x
    n, c, h, w = x.type.shape
    return padded(b, x, TensorType((n, c, h + top + bottom, w + left + right)), top, left, 0.0)


def direct(b: Builder, op: ops.Conv, out: TensorType, x: Tensor, weight: Tensor, loops: Loops) -> Tensor:
    """A convolution of the padded x as its formula says."""
    size = b.shape(weight.type.shape)[1]
    per_group = op.channels // op.groups
    (sh, sw), (dh, dw) = op.stride, op.dilation

    def element(n: Expr, o: Expr, i: Expr, j: Expr, c: Expr, p: Expr, q: Expr) -> Expr:
        group = tirx.floordiv(o, per_group)
        return x[n, group * size + c, i * sh + p * dh, j * sw + q * dw] * weight[o, c, p, q]

    return b.reduce(out, weight.type.shape[1:], element, loops=loops, blocked=False)


@CUDA(ops.Conv)
def _(b: Builder, op: ops.Conv, out: TensorType, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return biased(b, out, direct(b, op, out, around(b, x, op), weight, SUMS), bias)


@CUDA(ops.Linear)
def _(b: Builder, op: ops.Linear, out: TensorType, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    turned = b.packed(weight, "FO", lambda w: w.T.copy())  # neighbouring threads read neighbouring weights
    y = b.reduce(out, x.type.shape[1:], lambda n, o, f: x[n, f] * turned[f, o])
    return biased(b, out, y, bias)


@CUDA(ops.Deconv)
def _(b: Builder, op: ops.Deconv, out: TensorType, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    stamps = Stamps(b, op, x)
    per_group = op.channels // op.groups

    def element(n: Expr, o: Expr, i: Expr, j: Expr, c: Expr, p: Expr, q: Expr) -> Expr:
        group, o = tirx.floordiv(o, per_group), tirx.floormod(o, per_group)
        c = group * stamps.channels + c
        return stamps.product(i, j, p, q, lambda row, column, r, s: x[n, c, row, column] * weight[c, o, r, s])

    return biased(b, out, b.reduce(out, (stamps.channels, *stamps.most), element), bias)


class Stamps:
    """The arithmetic of a transposed convolution seen from its output.

    Input row u stamps kernel row r onto output row i = u*s + r*d - top. So output row i is reached by those r for which
    i + top - r*d is a multiple of s: with g = gcd(s, d) none unless g divides i + top, else every (s/g)-th, counted
    from a first one that depends on i.
    """

    def __init__(self, b: Builder, op: ops.Deconv, x: Tensor) -> None:
        channels = x.type.shape[1]
        assert isinstance(channels, int)
        self.op = op
        self.channels = channels // op.groups
        self.sizes = b.shape(x.type.shape[2:])
        steps = [s // gcd(s, d) for s, d in zip(op.stride, op.dilation, strict=True)]
        self.most: Pair = (-(-op.kernel[0] // steps[0]), -(-op.kernel[1] // steps[1]))
        """How many kernel rows and columns reach a place at most."""

    def _reach(self, i: Expr, t: Expr, axis: int) -> tuple[Expr, Expr, Expr]:
        """For the t-th kernel row that reaches output row i: whether there is one, the input row, the kernel row."""
        s, d, k = self.op.stride[axis], self.op.dilation[axis], self.op.kernel[axis]
        g = gcd(s, d)
        step = s // g
        i = i + self.op.pads[axis]
        first = tirx.floormod(tirx.floordiv(i, g) * pow(d // g, -1, step), step) if step > 1 else 0
        r = first + step * t
        u = tirx.floordiv(i - r * d, s)
        exists = [r < k, i - r * d >= 0, u < self.sizes[axis]]
        return tirx.all(*exists, *([tirx.floormod(i, g).equal(0)] if g > 1 else [])), u, r

    def product(self, i: Expr, j: Expr, p: Expr, q: Expr, of: Callable[..., Expr]) -> Expr:
        """`of(input row, input column, kernel row, kernel column)`, or 0 where nothing reaches (i, j)."""
        (rows, u, r), (columns, v, s) = self._reach(i, p, 0), self._reach(j, q, 1)
        return te.if_then_else(tirx.all(rows, columns), of(u, v, r, s), f32(0))


@rule(ops.Local)
def _(b: Builder, op: ops.Local, out: TensorType, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = around(b, x, op)
    sh, sw = op.stride

    def element(n: Expr, o: Expr, i: Expr, j: Expr, c: Expr, p: Expr, q: Expr) -> Expr:
        return x[n, c, i * sh + p, j * sw + q] * weight[o, i, j, c, p, q]

    y = b.reduce(out, weight.type.shape[3:], element)
    return y if bias is None else b.points(out, lambda n, *i: y[(n, *i)] + bias[i], y)


@rule(ops.MatMul)
def _(b: Builder, op: ops.MatMul, out: TensorType, x: Tensor, y: Tensor) -> Tensor:
    left, right = spread(x, out.rank), spread(y, out.rank)
    return b.reduce(out, x.type.shape[-1:], lambda *i: left(*i[:-2], i[-1]) * right(*i[:-3], i[-1], i[-2]))


@rule(ops.Rbf)
def _(b: Builder, op: ops.Rbf, out: TensorType, x: Tensor, weight: Tensor) -> Tensor:
    def element(n: Expr, o: Expr, f: Expr) -> Expr:
        difference = x[n, f] - weight[o, f]
        return difference * difference

    return b.reduce(out, x.type.shape[1:], element)
