"""Depthwise convolution on a CPU, and convolution in groups of a few channels: a vector for the channels of a block.

The sums of some neighbouring columns of a row stay in registers. Each input of a row of the window is loaded once and
multiplied by the weights of all the columns that see it. In a group of several channels each filter sums up all of
them: the first of each group is spread over the lanes of its group and multiplied, then the second, and so on. Padding
is never read, as in `conv_direct`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from cnnc_tvm.conv_shape import ConvShape, Finish, Machine, Placed, as_they_are
from cnnc_tvm.conv_tiles import Tile, each_tile, new_columns, rows_inside, rows_of_a_task, store, zero
from cnnc_tvm.tensor import Expr, parts, quotient, remainder

if TYPE_CHECKING:
    from cnnc.target import Array


_FOR_ANY = 5
"""Columns of a tile for images of any width: those of 7 columns have 5 at which windows of 3 lie inside."""
_LONGEST = 256
"""Products of a row of the window, all of which are written out."""


@dataclass(frozen=True)
class Plan:
    """The sizes a kernel is generated with."""

    lanes: int
    columns: int
    """Columns of a tile."""
    chunk: int
    """Rows that a thread computes of a block of channels at a time."""

    @property
    def layout(self) -> str:
        """Names the arrangement that `pack` makes."""
        return f"depthwise {self.lanes}"


def plans(shape: ConvShape, machine: Machine) -> Iterator[Plan]:
    """All plans there are."""
    height = shape.out[0]
    for columns in range(1, _most(shape, machine) + 1):
        for chunk in {-(-height // chunks) for chunks in range(1, height + 1)}:
            yield Plan(machine.lanes, columns, chunk)


def choose(shape: ConvShape, machine: Machine) -> Plan:
    """The widest tile whose sums and weights fit the registers and that leaves the fewest columns over.

    Chunks of rows are as long as leaves each core several. Where only the running program knows the columns, it is a
    tile for any.
    """
    width = shape.out[1]
    if not isinstance(width, int):
        columns = min(_FOR_ANY, max(2, _LONGEST // (shape.kernel[1] * _width(shape))))
        return Plan(machine.lanes, columns, rows_of_a_task(shape, machine.lanes, machine.cores))
    most = _most(shape, machine)
    columns = min(range(-(-most // 2), most + 1), key=lambda columns: (-width % columns, -columns))
    return Plan(machine.lanes, columns, rows_of_a_task(shape, machine.lanes, machine.cores))


def takes(shape: ConvShape, lanes: int) -> bool:
    """Whether a vector holds whole groups, each of as many filters as channels."""
    return shape.channels == shape.filters and lanes % _width(shape) == 0


def _width(shape: ConvShape) -> int:
    """Channels of a group."""
    return shape.channels // shape.groups


def _most(shape: ConvShape, machine: Machine) -> int:
    """Columns whose sums and weights fit the registers; weights that would fill more than half are read each time."""
    weights = shape.kernel[1] * _width(shape)
    free = machine.registers - 3 - (weights if weights <= machine.registers // 2 else 0)
    return int(min(shape.out[1], max(2, min(free, _LONGEST // weights))))


def pack(weight: Array, plan: Plan) -> Array:
    """Weights [C, width, R, S] as [ceil(C / lanes), R, S, width, lanes], zeros in the lanes past the last channel."""
    channels, width, r, s = weight.shape
    full = np.zeros((-(-channels // plan.lanes) * plan.lanes, width, r, s), weight.dtype)
    full[:channels] = weight
    return np.ascontiguousarray(full.reshape(-1, plan.lanes, width, r, s).transpose(0, 3, 4, 2, 1))


def write(shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any) -> None:
    """Emit the convolution of x by the weights `w` that `pack` made; to be called inside a `T.prim_func`.

    `shape` is one that `takes` says.
    """
    height, blocks = shape.out[0], -(-shape.channels // plan.lanes)
    chunks = parts(height, plan.chunk)
    with T.parallel(shape.batch * (blocks * chunks)) as task:
        n = T.bind(quotient(task, blocks * chunks))
        block = T.bind(quotient(task, chunks) % blocks)
        first = T.bind(remainder(task, chunks) * plan.chunk)
        sums = [T.alloc_buffer((plan.lanes,)) for _ in range(plan.columns)]
        with T.serial(te.min(plan.chunk, height - first)) as k:
            _row(shape, plan, finish, x, w, out, (n, block, T.bind(first + k)), sums, as_they_are)


def write_row(
    shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any, n: Expr, i: Expr, placed: Placed
) -> None:
    """Emit row i of image n, of all channels; to be called inside a loop of a `T.prim_func`."""
    sums = [T.alloc_buffer((plan.lanes,)) for _ in range(plan.columns)]
    with T.serial(-(-shape.channels // plan.lanes)) as block:
        _row(shape, plan, finish, x, w, out, (n, block, i), sums, placed)


def _row(
    shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any, place: tuple[Expr, Expr, Expr],
    sums: list[Any], placed: Placed,
) -> None:  # fmt: skip
    """A row at this place (n, block, i)."""
    n, block, i = place

    def write(j: Expr, tile: Tile, new: Expr | None) -> None:
        _tile(shape, plan, tile, (n, block, i, j), sums, x, w)

        def put(columns: range) -> None:
            done = {(0, m, 0): sums[column] for m, column in enumerate(columns)}
            store(shape, plan.lanes, finish, done, out, n, block, partial(_place, placed, i, j + columns[0]))

        new_columns(j, tile, new, put)

    each_tile(shape, plan.columns, write)


def _place(placed: Placed, i: Expr, j: Expr, u: Expr, m: Expr) -> tuple[Expr, Expr]:
    return placed(i + u, j + m)


def _tile(shape: ConvShape, plan: Plan, tile: Tile, place: tuple[Expr, ...], sums: list[Any], x: Any, w: Any) -> None:
    """The sums of a tile that starts at this place (n, block, i, j)."""
    (n, block, i, j), (sh, sw), (dh, dw), (top, left, _, _) = place, shape.stride, shape.dilation, shape.pads
    vector = T.ramp(0, 1, plan.lanes)
    for total in sums[: tile.columns]:
        zero(total, plan.lanes)
    above, below = rows_inside(shape, i)
    width = _width(shape)
    with T.serial(below - above) as q:
        r = T.bind(above + q)

        def weights(s: Expr) -> list[Any]:
            return [T.bind(w[block, r, s, k, vector]) for k in range(width)]

        def add(column: Expr, products: list[tuple[list[Any], int]]) -> None:
            value = T.bind(x[n, block, i * sh - top + r * dh, j * sw - left + column, vector])
            for k in range(width):
                spread = value if width == 1 else T.bind(_spread(value, width, k, plan.lanes))
                for factors, m in products:
                    T.buffer_store(sums[m], sums[m][vector] + spread * factors[k], [vector])

        if tile.dynamic:
            ((begin, end, (m,)),) = tile.runs
            with T.serial(end - begin) as p:
                add((begin + p) * dw, [(weights(begin + p), m)])
        else:
            own = [weights(s) for s in range(shape.kernel[1])]
            readers: dict[int, list[tuple[list[Any], int]]] = {}  # of each column, from the tile's first
            for begin, end, columns in tile.runs:
                for s, m in product(range(begin, end), columns):
                    readers.setdefault(m * sw + s * dw, []).append((own[s], m))
            for column, products in sorted(readers.items()):
                add(column, products)


def _spread(value: Expr, width: int, k: int, lanes: int) -> Expr:
    """The k-th lane of each `width` lanes in all of them."""
    return tirx.Shuffle([value], [tirx.const(lane // width * width + k, "int32") for lane in range(lanes)])
