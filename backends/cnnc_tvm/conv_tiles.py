"""Parts of the generators of convolution: where windows lie inside the image, and what all of them emit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from cnnc_tvm.conv_shape import ConvShape, Finish
from cnnc_tvm.tensor import Expr

Run = tuple[int, int, tuple[int, ...]]
"""Columns first .. last - 1 of the window, and the columns of the tile at which they all lie inside the image."""


@dataclass(frozen=True)
class Tile:
    """Neighbouring columns of a row, `count` times one after the other."""

    start: int
    columns: int
    count: int
    runs: tuple[Run, ...]


def tiles(shape: ConvShape, columns: int) -> list[Tile]:
    """The tiles of a row of the result. Those at whose columns the whole window lies inside the image are one."""
    found: list[Tile] = []
    width = shape.out[1]
    whole = ((0, shape.kernel[1], tuple(range(columns))),)
    for start in range(0, width, columns):
        runs = _runs(shape, start, min(columns, width - start))
        if found and found[-1].runs == runs == whole:
            last = found.pop()
            found.append(Tile(last.start, columns, last.count + 1, runs))
        else:
            found.append(Tile(start, min(columns, width - start), 1, runs))
    return found


def _runs(shape: ConvShape, start: int, columns: int) -> tuple[Run, ...]:
    runs: list[Run] = []
    for s in range(shape.kernel[1]):
        first = start * shape.stride[1] - shape.pads[1] + s * shape.dilation[1]
        inside = tuple(m for m in range(columns) if 0 <= first + m * shape.stride[1] < shape.image[1])
        if runs and runs[-1][1:] == (s, inside):
            runs[-1] = (runs[-1][0], s + 1, inside)
        elif inside:
            runs.append((s, s + 1, inside))
    return tuple(runs)


def rows_inside(shape: ConvShape, i: Expr) -> tuple[Expr, Expr]:
    """The rows first .. last - 1 of the window at row i of the result that lie inside the image."""
    (height, _), (rows, _), dilation, (top, _, bottom, _) = shape.image, shape.kernel, shape.dilation[0], shape.pads
    start = i * shape.stride[0] - top
    first = te.max(0, tirx.floordiv(dilation - 1 - start, dilation)) if top else 0
    last = te.min(rows, tirx.floordiv(height - 1 - start, dilation) + 1) if bottom else rows
    return first, last


def zero(accumulator: Any, lanes: int) -> None:
    T.buffer_store(accumulator, T.broadcast(tirx.const(0.0, "float32"), lanes), [T.ramp(0, 1, lanes)])


def store(
    shape: ConvShape, lanes: int, finish: Finish, accumulator: Any, out: Any, n: Expr, block: Expr, i: Expr, j: Expr
) -> None:
    """Finish the sums of a block of filters at one place, and write them."""
    with T.vectorized(lanes) as lane:
        channel = block * lanes + lane
        value = finish(accumulator[lane], n, channel, i, j)
        if shape.filters % lanes:
            value = tirx.Select(channel < shape.filters, value, tirx.const(0.0, "float32"))
        T.buffer_store(out, value, [n, block, i, j, lane])


def prefetch(buffer: Any, *index: Expr) -> None:
    """Have a line of memory fetched into the first cache; it need not exist."""
    read, everywhere, data = (tirx.const(x, "int32") for x in (0, 3, 1))
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch.p0", T.address_of(buffer[index]), read, everywhere, data))
