"""Rules of convolutions and matrix products for `cpu`: which kernel computes them is chosen here.

Images go to `kernels_cpu`. Where that has no kernel, the `lanes` loops have their weights packed while compiling, so
that the innermost one runs over output channels and vectorises whatever the size of the image; the products of `tile`
neighbouring places stay in registers. They take what has enough channels to fill the lanes. The rest is computed along
rows, of images that lie plainly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from cnnc import ops
from cnnc.diagnostics import error
from cnnc.ir.dim import Dim
from cnnc.ir.types import DType, TensorType
from cnnc.target import numpy_dtype
from cnnc_tvm import linear
from cnnc_tvm.builder import Builder
from cnnc_tvm.kernels_cpu import as_f32, convolution, joined, transposed
from cnnc_tvm.rules import CPU
from cnnc_tvm.rules_dense import Stamps, around, biased, direct
from cnnc_tvm.rules_shape import padded
from cnnc_tvm.tensor import KERNEL, WINDOWS, Expr, Kernel, Loops, Tensor

if TYPE_CHECKING:
    from cnnc.target import Array

_FLOATS = 256
"""Accumulators of a tile at most: TVM keeps buffers of up to 1,024 bytes on the stack, LLVM then in registers."""


def _lanes(channels: int, groups: int = 1) -> int:
    """The output channels of a block: the last block of one group is filled up, those of several must fit."""
    size = channels // groups
    return 32 if (size > 16 if groups == 1 else size % 32 == 0) else 16


def _tile(columns: Dim, lanes: int) -> int:
    """How many neighbouring places to compute at a time: the fewest wasted, then the most."""
    most = min(14, _FLOATS // lanes)
    if not isinstance(columns, int):
        return most
    return min(range(1, most + 1), key=lambda tile: (-(-columns // tile) * (tile + 1.5), -tile))


def _fills_lanes(channels: int, groups: int) -> bool:
    """Whether blocks of lanes lie within groups, and are filled well enough."""
    size = channels // groups
    return size >= 8 if groups == 1 else size % 16 == 0


def _blocks(weight: Array, lanes: int) -> Array:
    """Weights [channels, ...] as [channels / lanes, ..., lanes], filled up with zeros."""
    count = -(-len(weight) // lanes)
    full = np.zeros((count * lanes, *weight.shape[1:]), weight.dtype)
    full[: len(weight)] = weight
    return np.moveaxis(full.reshape(count, lanes, *weight.shape[1:]), 1, -1).copy()


def _unpacked(b: Builder, out: TensorType, y: Tensor, lanes: int) -> Tensor:
    """The blocks [N, channels / lanes, ..., lanes] as `out` [N, channels, ...]."""
    return b.points(out, lambda n, o, *i: y[(n, tirx.floordiv(o, lanes), *i, tirx.floormod(o, lanes))], y)


def _tiled(b: Builder, out: TensorType, lanes: int) -> tuple[TensorType, Loops]:
    """The type of the blocks of `out`, its columns filled up to whole tiles, and their loops."""
    n, channels, h, w = map(b.symbol, out.shape)
    assert isinstance(channels, int)
    tile = _tile(w, lanes)
    return TensorType((n, -(-channels // lanes), h, b.rounded_up(w, tile), lanes)), Loops("lanes", lanes, tile)


@CPU(ops.Conv)
def _(b: Builder, op: ops.Conv, out: TensorType, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if (y := joined(b, op, out, x, weight)) is not None:
        return biased(b, out, y, bias)
    x = b.readable(x)
    if (y := convolution(b, op, out, x, weight)) is not None:
        return biased(b, out, y, bias)
    if not _fills_lanes(op.channels, op.groups):
        y = replace(direct(b, op, out, b.plain(around(b, x, op)), weight, WINDOWS), type=out)
        return biased(b, out, b.store_plainly(y), bias)
    lanes = _lanes(op.channels, op.groups)
    blocks, loops = _tiled(b, out, lanes)
    (sh, sw), (dh, dw) = op.stride, op.dilation
    image = _image(b, op, x, blocks.shape[3])
    packed = b.packed(weight, f"O{lanes}", lambda w: _blocks(w, lanes))
    size = b.shape(weight.type.shape)[1]
    per_group = op.channels // op.groups // lanes  # blocks a group; with one group it does not matter

    def element(n: Expr, o: Expr, i: Expr, j: Expr, lane: Expr, c: Expr, p: Expr, q: Expr) -> Expr:
        first = tirx.floordiv(o, per_group) * size if op.groups > 1 else 0
        return image[n, first + c, i * sh + p * dh, j * sw + q * dw] * packed[o, c, p, q, lane]

    y = b.reduce(blocks, weight.type.shape[1:], element, loops=loops)
    return biased(b, out, _unpacked(b, out, y, lanes), bias)


def _image(b: Builder, op: ops.Conv, x: Tensor, columns: Dim) -> Tensor:
    """x stored plainly with its zero padding, and wide enough for windows at that many columns."""
    top, left, bottom, _ = op.pads(x.type)
    n, c, h, w = x.type.shape
    type = TensorType((n, c, h + top + bottom, (columns - 1) * op.stride[1] + op.span[1]))
    fits = w - type.shape[3]
    if (top, left, bottom) == (0, 0, 0) and isinstance(fits, int) and fits >= 0:
        return b.plain(as_f32(b, x))
    return b.plain(padded(b, x, type, top, left, 0.0))


@CPU(ops.Linear)
def _(b: Builder, op: ops.Linear, out: TensorType, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    features = x.type.shape[1]
    assert isinstance(features, int)
    assert b.machine is not None
    shape = linear.Shape(b.size(x.type.shape[0]), features, op.channels)
    plan = linear.choose(shape, b.machine)
    dtype = b.machine.linear if weight.type.dtype is DType.F32 else weight.type.dtype
    packed = b.packed(weight, f"{plan} {dtype}", lambda w: _rounded(linear.pack(w, plan), dtype))
    heart = b.heart(out)

    def write(finish: Callable[..., Expr], x: Any, w: Any, y: Any) -> None:
        linear.write(shape, plan, dtype, finish, x, w, y)

    kernel = Kernel(heart, (b.plain(as_f32(b, x)), packed), write)
    y = biased(b, out, Tensor(out, lambda *i: heart(*i), loops=KERNEL, kernel=kernel), bias)
    return y if out.dtype is DType.F32 else b.store(y)  # TVM takes minutes for functions of what was rounded


def _rounded(weight: Array, dtype: DType) -> Array:
    """Weights as `dtype`. CnncError E0902 where that makes them infinite."""
    with np.errstate(over="ignore"):
        rounded = weight.astype(numpy_dtype(dtype), copy=False)
    if not np.isfinite(rounded).all() and np.isfinite(weight).all():
        message = f"option `linear` is {dtype}: weights up to {np.abs(weight).max():.3g} are too large for that"
        raise error("E0902", message, help="bf16 has the range of f32")
    return rounded


@CPU(ops.Deconv)
def _(b: Builder, op: ops.Deconv, out: TensorType, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if (y := transposed(b, op, out, x, weight)) is not None:
        return biased(b, out, y, bias)
    stamps = Stamps(b, op, x)
    x = b.plain(as_f32(b, x))
    per_group = op.channels // op.groups
    if _fills_lanes(op.channels, op.groups):
        lanes = _lanes(op.channels, op.groups)
        blocks, loops = _tiled(b, out, lanes)
    else:
        # LLVM 22 makes wrong vectors along rows of i // 4 and i % 4, and of 8, 16 and so on.
        shifts = any(stride >= 4 and stride & (stride - 1) == 0 for stride in op.stride)
        lanes, blocks, loops = 1, TensorType((*out.shape, 1)), Loops("sums" if shifts else "windows")
    packed = b.packed(weight, f"CO{lanes}", lambda w: _blocks(_by_output(w, op.groups), lanes))
    count = per_group // lanes

    def element(n: Expr, o: Expr, i: Expr, j: Expr, lane: Expr, c: Expr, p: Expr, q: Expr) -> Expr:
        first = tirx.floordiv(o, count) * stamps.channels if op.groups > 1 else 0
        return stamps.product(i, j, p, q, lambda u, v, r, s: x[n, first + c, u, v] * packed[o, c, r, s, lane])

    y = _unpacked(b, out, b.reduce(blocks, (stamps.channels, *stamps.most), element, loops=loops), lanes)
    return biased(b, out, y if lanes > 1 else b.store_plainly(y), bias)


def _by_output(weight: Array, groups: int) -> Array:
    """Weights [C, channels/groups, ...] of a transposed convolution as [channels, C/groups, ...]."""
    c, per_group, *kernel = weight.shape
    return (
        weight.reshape(groups, c // groups, per_group, *kernel)
        .swapaxes(1, 2)
        .reshape(groups * per_group, c // groups, *kernel)
    )
