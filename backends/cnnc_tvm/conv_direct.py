"""Direct convolution on a CPU: tiles of a row's columns times blocks of filters, whose sums stay in registers.

For each place of the window and each channel, the weights of the tile's filters are loaded as vectors, the inputs of
its columns broadcast and multiplied by them. Padding is never read: rows above and below the image shorten the loop
over the rows of the window, and tiles at the left and right edge have code of their own without the products there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from cnnc_tvm.conv_shape import ConvShape, Finish, Machine
from cnnc_tvm.tensor import Expr

if TYPE_CHECKING:
    from cnnc.target import Array


@dataclass(frozen=True)
class Plan:
    """The sizes a kernel is generated with."""

    lanes: int
    """Filters in a block."""
    columns: int
    """Columns of a tile."""
    blocks: int
    """Blocks of filters of a tile."""
    rows: int
    """Rows that a thread computes for one tile's filters at a time."""
    depth: int
    """Channels in a block of the input: `lanes`, or 1 where it is not in blocks but plain [N, C, H, W]."""


def choose(shape: ConvShape, machine: Machine, *, plain: bool = False) -> Plan:
    """The tile that keeps the processor busiest, and as many pieces as its cores and caches want."""
    height, width = line(shape).out
    per_group = -(-shape.filters // shape.groups // machine.lanes)
    blocks, columns = min(
        _tiles(machine, width, per_group),
        key=lambda tile: (_cycles(width, per_group, *tile), -tile[0] * tile[1]),
    )
    groups = shape.groups * -(-per_group // blocks)
    return Plan(machine.lanes, columns, blocks, _rows(shape, machine, groups, height), 1 if plain else machine.lanes)


def _tiles(machine: Machine, width: int, per_group: int) -> Iterator[tuple[int, int]]:
    """Blocks and columns of the tiles whose sums, weights and one broadcast input fit the registers."""
    for blocks in range(1, min(4, per_group) + 1):
        most = (machine.registers - 1 - blocks) // blocks
        tiles = -(-width // most)
        yield blocks, -(-width // tiles)


def _cycles(width: int, per_group: int, blocks: int, columns: int) -> float:
    """Those of a row, for one channel and place of the window."""
    full, rest = divmod(per_group, blocks)
    tiles, last = divmod(width, columns)
    return sum(
        times * many * _step(n, m)
        for n, times in ((blocks, full), (rest, 1))
        for m, many in ((columns, tiles), (last, 1))
        if n and m
    )


def _step(blocks: int, columns: int) -> float:
    """The cycles a tile takes: two products, two loads and four instructions each, and sums wait for 4."""
    products, loads = blocks * columns, blocks + columns
    return max(products / 2, loads / 2, (products + loads + 1) / 4, 4)


def _rows(shape: ConvShape, machine: Machine, groups: int, height: int) -> int:
    """As many as have inputs that fit half of L2."""
    size = 4 * prod(shape.image) * shape.channels // shape.groups
    return -(-height // -(-2 * size // machine.l2))


def line(shape: ConvShape) -> ConvShape:
    """The convolution over an image of another height and width, where places are next to each other in memory."""
    if shape.kernel != (1, 1) or shape.stride != (1, 1) or any(shape.pads):
        return shape
    return shape


def pack(weight: Array, plan: Plan, groups: int = 1) -> Array:
    """Weights [K, C / groups, R, S] as [groups of filters, C / depth, R, S, depth, blocks * lanes], zeros between."""
    filters, channels, r, s = weight.shape
    wide, per_group = plan.blocks * plan.lanes, filters // groups
    count, deep = -(-per_group // wide), -(-channels // plan.depth)
    full = np.zeros((groups, count * wide, deep * plan.depth, r, s), weight.dtype)
    full[:, :per_group, :channels] = weight.reshape(groups, per_group, channels, r, s)
    split = full.reshape(groups * count, wide, deep, plan.depth, r, s)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1))


@dataclass(frozen=True)
class Tile:
    """Neighbouring columns of a row, `count` times one after the other."""

    start: int
    columns: int
    count: int
    runs: tuple[tuple[int, int, tuple[int, ...]], ...]
    """Columns first .. last - 1 of the window, and the columns of the tile at which these lie inside the image."""


def tiles(shape: ConvShape, columns: int) -> list[Tile]:
    """The tiles of a row; those where the whole window lies inside are one."""
    found: list[Tile] = []
    width = shape.out[1]
    for start in range(0, width, columns):
        size = min(columns, width - start)
        runs = _runs(shape, start, size)
        if found and found[-1].runs == runs and len(runs) == 1 and found[-1].columns == size:
            last = found.pop()
            found.append(Tile(last.start, size, last.count + 1, runs))
        else:
            found.append(Tile(start, size, 1, runs))
    return found


def _runs(shape: ConvShape, start: int, columns: int) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    runs: list[tuple[int, int, tuple[int, ...]]] = []
    for s in range(shape.kernel[1]):
        first = start * shape.stride[1] - shape.pads[1] + s * shape.dilation[1]
        inside = tuple(m for m in range(columns) if 0 <= first + m * shape.stride[1] < shape.image[1])
        if runs and runs[-1][2] == inside:
            runs[-1] = (runs[-1][0], s + 1, inside)
        elif inside:
            runs.append((s, s + 1, inside))
    return tuple(runs)


def write(shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any) -> None:
    """Statements that write the convolution of x with the packed weights w to `out`, in blocks like x."""
    _Direct(shape, plan, finish, x, w, out).write()


class _Direct:
    def __init__(self, shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any) -> None:
        self.shape, self.plan, self.finish, self.x, self.w, self.out = shape, plan, finish, x, w, out
        self.vector = T.ramp(0, 1, plan.lanes)
        self.per_group = -(-shape.filters // shape.groups // plan.lanes)  # blocks of a group of the convolution

    def write(self) -> None:
        shape, plan = self.shape, self.plan
        tiles_of_group = -(-self.per_group // plan.blocks)
        groups, height = shape.groups * tiles_of_group, shape.out[0]
        chunks = -(-height // plan.rows)
        with T.parallel(shape.batch * (chunks * groups)) as task:
            n = T.bind(task // (chunks * groups))
            first = T.bind(task // groups % chunks * plan.rows)
            group = T.bind(task % groups)
            self.sums = [
                [T.alloc_buffer((plan.lanes,), "float32") for _ in range(plan.blocks)] for _ in range(plan.columns)
            ]
            with T.serial(te.min(plan.rows, height - first)) as row:
                i = T.bind(first + row)
                full, rest = divmod(self.per_group, plan.blocks)
                if not rest:
                    self.row(n, group, i, plan.blocks)
                elif not full:
                    self.row(n, group, i, rest)
                else:
                    with T.If(group % tiles_of_group < full):
                        with T.Then():
                            self.row(n, group, i, plan.blocks)
                        with T.Else():
                            self.row(n, group, i, rest)

    def row(self, n: Expr, group: Expr, i: Expr, blocks: int) -> None:
        for tile in tiles(self.shape, self.plan.columns):
            with T.serial(tile.count) as t:
                self.tile(n, group, i, tile.start + t * tile.columns, tile, blocks)

    def tile(self, n: Expr, group: Expr, i: Expr, j: Expr, tile: Tile, blocks: int) -> None:
        shape, plan = self.shape, self.plan
        (sh, sw), (dh, dw), (top, left, _, _) = shape.stride, shape.dilation, shape.pads
        sums = [columns[:blocks] for columns in self.sums[: tile.columns]]
        for column in sums:
            for total in column:
                T.buffer_store(total, T.broadcast(tirx.const(0.0, "float32"), plan.lanes), [self.vector])
        deep = -(-shape.channels // shape.groups // plan.depth)
        count = -(-self.per_group // plan.blocks)
        above, rows = self.inside(i)
        with T.serial(deep) as block, T.serial(rows) as below:
            r = above + below
            c0 = (group // count * deep if shape.groups > 1 else 0) + block
            row = i * sh - top + r * dh
            for first, last, columns in tile.runs:
                with T.serial(last - first) as q, T.serial(plan.depth) as c:
                    s = first + q
                    weights = [
                        T.bind(self.w[group, block, r, s, c, T.ramp(k * plan.lanes, 1, plan.lanes)])
                        for k in range(blocks)
                    ]
                    for m in columns:
                        place = [n, c0, row, (j + m) * sw - left + s * dw, *([c] if plan.depth > 1 else [])]
                        value = T.bind(T.broadcast(self.x[tuple(place)], plan.lanes))
                        for k, weight in enumerate(weights):
                            total = sums[m][k]
                            T.buffer_store(total, total[self.vector] + value * weight, [self.vector])
        for m, column in enumerate(sums):
            for k, total in enumerate(column):
                o = group // count * self.per_group + group % count * plan.blocks + k
                with T.vectorized(plan.lanes) as lane:
                    channel = o * plan.lanes + lane
                    value = self.finish(total[lane], n, channel, i, j + m)
                    if shape.filters % plan.lanes:
                        value = tirx.Select(channel < shape.filters, value, tirx.const(0.0, "float32"))
                    T.buffer_store(self.out, value, [n, o, i, j + m, lane])

    def inside(self, i: Expr) -> tuple[Expr, Expr]:
        """The first row of the window at row i that lies inside the image, and how many do.

        Loops start at 0: TVM's `CanonicalizeLoop` misses a loop's variable in the bounds of those inside it.
        """
        (h, _), (rows, _), (stride, _), (dilation, _) = (
            self.shape.image,
            self.shape.kernel,
            self.shape.stride,
            self.shape.dilation,
        )
        top, _, bottom, _ = self.shape.pads
        start = i * stride - top
        first = te.max(0, tirx.floordiv(dilation - 1 - start, dilation)) if top else 0
        last = te.min(rows, tirx.floordiv(h - start + dilation - 1, dilation)) if bottom else rows
        return first, last - first
