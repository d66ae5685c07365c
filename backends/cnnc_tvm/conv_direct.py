"""Direct convolution on a CPU: tiles of places times blocks of filters, whose sums stay in registers.

For each place of the window and each channel, the weights of the tile's filters are loaded as vectors, the inputs of
its places broadcast and multiplied by them. Padding is never read: rows above and below the image shorten the loop over
the rows of the window, and tiles at the left and right edge have code of their own without the products there.

Loops start at 0: TVM's `CanonicalizeLoop` misses the variable of a loop in the bounds of those inside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import te
from tvm.script.ir_builder import tirx as T

from cnnc_tvm.conv_direct_plan import NEAR, Plan, blocks_of, walked
from cnnc_tvm.conv_shape import ConvShape, Finish, Placed, as_they_are
from cnnc_tvm.conv_tiles import Tile, each_tile, each_tile_of_part, new_columns, rows_inside, store, zero
from cnnc_tvm.prefetch import by_turns, images_read, prefetch
from cnnc_tvm.tensor import Expr, parts, quotient, remainder

if TYPE_CHECKING:
    from cnnc.target import Array

_AHEAD, _FAR_AHEAD = 16, 48
"""How far ahead weights are fetched into the first cache, where all fit the second and where they come from beyond."""
_L2 = 2**20
"""Bytes that second caches hold."""
_LINE = 16
"""Floats in a line of a cache."""
_TILES_OF_A_ROW = 16
"""Tiles of such a row that a thread computes at a time."""
_BLOCKS_AHEAD = 4
"""Blocks of channels between the inputs that are multiplied and those fetched."""
_FEW_BLOCKS = 4
"""Blocks of channels, times places of the window, that are multiplied before what is fetched from memory is there."""


def pack(weight: Array, plan: Plan, groups: int = 1) -> Array:
    """Weights [K, C / groups, R, S] as [groups of filters, C / depth, R, S, depth, blocks * lanes], zeros between."""
    filters, channels, r, s = weight.shape
    wide, per_group = plan.blocks * plan.lanes, filters // groups
    count, deep = -(-per_group // wide), -(-channels // plan.depth)
    full = np.zeros((groups, count * wide, deep * plan.depth, r, s), weight.dtype)
    full[:, :per_group, :channels] = weight.reshape(groups, per_group, channels, r, s)
    split = full.reshape(groups * count, wide, deep, plan.depth, r, s)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1))


def write(
    shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any, placed: Placed = as_they_are
) -> None:  # fmt: skip
    """Emit the convolution of x by the weights `w` that `pack` made; to be called inside a `T.prim_func`.

    With several groups, each has as many channels and filters as fill whole blocks. The result is in blocks, or where
    it has no more channels than one, it may be plain. `placed` says where in it the results lie.
    """
    _Kernel(shape, plan, finish, x, w, out, placed).write()


@dataclass(frozen=True)
class Near:
    """What lies in a near cache, so that it need not be fetched before it is used."""

    image: bool = False
    result: bool = False


def write_row(
    shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any, n: Expr, i: Expr, placed: Placed, near: Near
) -> None:  # fmt: skip
    """Emit row i of image n, by a plan of `choose_row`; to be called inside a loop of a `T.prim_func`."""
    _Kernel(shape, plan, finish, x, w, out, placed, near).write_row(n, i)


class _Kernel:
    def __init__(
        self, shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any, placed: Placed,
        near: Near = Near(),
    ) -> None:  # fmt: skip
        self.original, self.plan, self.near = shape, plan, near
        self.long = shape.single and not isinstance(shape.image[1], int)
        """Whether the image is one long row, of which parts take the place of rows."""
        self.shape = walked(shape, plan.image or ((1, shape.area) if self.long else shape.image))
        self.as_it_is = plan.image == shape.image if shape.known else not self.long
        """Whether the image is walked by its own rows and columns."""
        self.finish, self.x, self.w, self.out, self.placed = finish, x, w, out, placed
        self.vector = T.ramp(0, 1, plan.lanes)
        self.blocks = blocks_of(shape, plan.lanes)
        self.passes = -(-self.blocks // plan.blocks)
        """Groups of filters of one group of the convolution."""
        self.deep = -(-shape.channels // shape.groups // plan.depth)
        self.panel = 4 * plan.blocks * plan.lanes * self.deep * plan.depth * prod(shape.kernel)
        """Bytes of weights for the filters of a tile."""
        weights = 4 * shape.filters * shape.channels // shape.groups * prod(shape.kernel)
        self.ahead = _AHEAD if weights < _L2 else _FAR_AHEAD
        """Channels between the weights that are multiplied and those fetched."""
        self.visits = 1
        """Tiles that a task computes, while which the next one's weights are fetched; 1 for not at all."""

    def write(self) -> None:
        plan, height = self.plan, self.height
        far = self.ahead == _FAR_AHEAD and plan.depth > 1
        if self.shape.known and far and not plan.weights_once and 2 * self.panel < NEAR * _L2:
            self.visits = parts(self.shape.out[1], plan.columns) * parts(plan.chunk, plan.rows)
        passes, chunks = self.shape.groups * self.passes, parts(height, plan.chunk)
        with T.parallel(self.shape.batch * (chunks * passes)) as task:
            if plan.weights_once:
                count = self.shape.batch * chunks
                group, rest = quotient(task, count), remainder(task, count)
            else:
                group, rest = task % passes, task // passes
            group, n = T.bind(group), T.bind(quotient(rest, chunks))
            first = T.bind(remainder(rest, chunks) * plan.chunk)
            self.alloc()
            full, last = divmod(self.blocks, plan.blocks)
            if not last:
                self.chunk(n, group, first, plan.blocks)
                return
            with T.If(group % self.passes < full):
                with T.Then():
                    self.chunk(n, group, first, plan.blocks)
                with T.Else():
                    self.chunk(n, group, first, last)

    def write_row(self, n: Expr, i: Expr) -> None:
        self.alloc()
        full, last = divmod(self.blocks, self.plan.blocks)
        with T.serial(full) as group:
            self.row(n, group, i, 1, self.plan.blocks)
        if last:
            self.row(n, full, i, 1, last)

    def alloc(self) -> None:
        """The sums of a tile's places, each with a block of filters after the other."""
        places = range(self.plan.rows * self.plan.columns)
        self.sums = [[T.alloc_buffer((self.plan.lanes,)) for _ in range(self.plan.blocks)] for _ in places]

    def chunk(self, n: Expr, group: Expr, first: Expr, blocks: int) -> None:
        plan, height = self.plan, self.height
        count = te.min(plan.chunk, height - first)
        with T.serial(count // plan.rows) as k:
            self.row(n, group, T.bind(first + k * plan.rows), plan.rows, blocks)
        if plan.rows > 1 and height % plan.rows:  # chunks but the last are whole tiles
            with T.If(first + plan.chunk >= height), T.Then():
                self.row(n, group, height - 1, 1, blocks)

    @property
    def height(self) -> Expr:
        """How many rows there are to compute, or parts of a long one."""
        if not self.long:
            return self.shape.out[0]
        return parts(self.shape.image[1], self.plan.columns * _TILES_OF_A_ROW)

    def row(self, n: Expr, group: Expr, i: Expr, rows: int, blocks: int) -> None:
        def write(j: Expr, tile: Tile, new: Expr | None) -> None:
            self.tile(n, group, 0 if self.long else i, j, rows, tile, blocks, new)

        if self.long:
            each_tile_of_part(self.shape.image[1], self.plan.columns, i * _TILES_OF_A_ROW, _TILES_OF_A_ROW, write)
        else:
            each_tile(self.shape, self.plan.columns, write)

    def tile(
        self, n: Expr, group: Expr, i: Expr, j: Expr, rows: int, tile: Tile, blocks: int, new: Expr | None
    ) -> None:  # fmt: skip
        places = [(u, m) for u in range(rows) for m in range(tile.columns)]
        sums = {place: sums[:blocks] for place, sums in zip(places, self.sums, strict=False)}
        for place in places:
            for total in sums[place]:
                zero(total, self.plan.lanes)
        start = group // self.passes * self.blocks + group % self.passes * self.plan.blocks
        with T.serial(self.deep) as block:
            self.fetch(n, start, i, j, block, rows, tile.columns, blocks)
            self.fetch_weights(group, i, j, block)
            for first, count, inside in self.spans(i, rows):
                with T.serial(count) as r:
                    self.reduce(n, group, block, i, j, first + r, inside, tile, sums, blocks)

        def put(columns: range) -> None:
            first = columns[0]
            done = {
                (u, m - first, k): total for (u, m), column in sums.items() if m in columns
                for k, total in enumerate(column)
            }  # fmt: skip
            store(
                self.original, self.plan.lanes, self.finish, done, self.out,
                n, start, lambda u, m: self.placed(*self.place(i + u, j + first + m)),
            )  # fmt: skip

        new_columns(j, tile, new, put)

    def fetch(self, n: Expr, start: Expr, i: Expr, j: Expr, block: Expr, rows: int, columns: int, blocks: int) -> None:
        """Have some of the tile's results, and of what the epilogue reads there, fetched, all by the last block; of the
        next tile's where a row of tiles has so few terms that the last ones would come too late."""
        if len(self.out.shape) == 4 or self.near.result:
            return
        first = columns if rows == 1 and self.deep * prod(self.shape.kernel) <= _FEW_BLOCKS else 0

        def fetch(column: Expr) -> None:
            for u, b in product(range(rows), range(blocks)):
                y, x = self.placed(*self.place(i + u, j + first + column))
                for image, index in images_read(self.finish, n, start + b, y, x):
                    prefetch(image, *index)
                prefetch(self.out, n, start + b, y, x, 0, write=True)

        by_turns(columns, self.deep, block, fetch)

    def fetch_weights(self, group: Expr, i: Expr, j: Expr, block: Expr) -> None:
        """Have some of the next task's weights fetched into the second cache, all by the last tile of a whole chunk.

        Its first tile would wait for them: it needs them all, faster than memory gives them. With the last weights what
        lies after them is fetched, as a rule those of a later layer.
        """
        if self.visits == 1:
            return
        plan = self.plan
        row, column = i % plan.chunk // plan.rows, j // plan.columns
        by_turns(
            self.panel // self.deep // (4 * _LINE), self.visits, row * parts(self.shape.out[1], plan.columns) + column,
            lambda line: prefetch(self.w, group + 1, block, 0, 0, 0, line * _LINE, level=2),
        )  # fmt: skip

    def spans(self, i: Expr, rows: int) -> list[tuple[Expr, Expr, tuple[int, ...]]]:
        """Rows of the window: the first, how many (none if negative), and at which rows of the tile they are inside."""
        first, last = rows_inside(self.shape, i)
        if rows == 1:
            return [(first, last - first, (0,))]
        above, below = rows_inside(self.shape, i + 1)  # the second row is inside from and to an earlier one
        top, _, bottom, _ = self.shape.pads
        spans: list[tuple[Expr, Expr, tuple[int, ...]]] = [(first, below - first, (0, 1))]
        if top:
            spans.insert(0, (above, te.min(first, below) - above, (1,)))
        if bottom:
            middle = te.max(first, below)
            spans.append((middle, last - middle, (0,)))
        return spans

    def reduce(
        self, n: Expr, group: Expr, block: Expr, i: Expr, j: Expr, r: Expr, rows: tuple[int, ...], tile: Tile,
        sums: dict[tuple[int, int], list[Any]], blocks: int,
    ) -> None:  # fmt: skip
        """Add the products of a block of channels and one row of the window."""
        plan, (sh, sw), (dh, dw), (top, left, _, _) = self.plan, self.shape.stride, self.shape.dilation, self.shape.pads
        channels = (group // self.passes * self.deep if self.shape.groups > 1 else 0) + block

        def index(u: int, m: Expr, s: Expr, block: Expr, c: Expr) -> tuple[Expr, ...]:
            y, x = self.place((i + u) * sh - top + r * dh, (j + m) * sw - left + s * dw)
            return (n, block, y, x) if plan.depth == 1 else (n, block, y, x, c)

        left_over = self.shape.channels % plan.depth
        depth = te.min(plan.depth, self.shape.channels - block * plan.depth) if left_over else plan.depth
        for first, last, columns in tile.runs:
            places = [(u, m) for u in rows for m in columns]
            ahead = plan.depth > 1 and not self.near.image
            later, start = self.later(channels, block, j, columns) if ahead else (0, 0)
            with T.serial(last - first) as q, T.serial(depth) as c:
                s = first + q
                if ahead:
                    turn = s * plan.depth + c
                    for u, place in product(rows, self.lines(turn, len(columns))):
                        at = self.place((i + u) * sh - top + r * dh, start * sw - left + place)
                        prefetch(self.x, n, later, *at, 0)
                for k in range(blocks):
                    prefetch(self.w, group, block, r, s, c, (k + self.ahead * plan.blocks) * plan.lanes)
                vectors = [T.ramp(k * plan.lanes, 1, plan.lanes) for k in range(blocks)]
                weights = [T.bind(self.w[group, block, r, s, c, vector]) for vector in vectors]
                for u, m in places:
                    value = T.bind(T.broadcast(self.x[index(u, m, s, channels, c)], plan.lanes))
                    for total, weight in zip(sums[u, m], weights, strict=True):
                        T.buffer_store(total, total[self.vector] + value * weight, [self.vector])

    def later(self, channels: Expr, block: Expr, j: Expr, columns: tuple[int, ...]) -> tuple[Expr, Expr]:
        """The block of channels whose inputs are to be fetched, and the column of the result they are for; past the
        last block those of the next tile."""
        ahead = min(_BLOCKS_AHEAD if self.shape.kernel == (1, 1) else 1, self.deep)
        over = T.bind((block + ahead) // self.deep)
        return T.bind(channels + ahead - over * self.deep), T.bind(j + (columns[0] + over * len(columns)))

    def lines(self, turn: Expr, columns: int) -> list[Expr]:
        """Which of the places that a row of a tile meets are to be fetched, from its first, with each channel of a row
        of the window, of which this is number `turn`."""
        wide, stride, depth = self.shape.kernel[1], self.shape.stride[1], self.plan.depth
        if wide == 1:
            turn = turn % min(depth, 1 << (columns - 1).bit_length())  # some more, but no choice in the inner loop
            return [(turn + first) * stride for first in range(0, columns, depth)]
        count = (columns - 1) * stride + self.shape.span[1]
        return [te.min(turn + first, count - 1) for first in range(0, count, wide * depth)]

    def place(self, i: Expr, j: Expr) -> tuple[Expr, Expr]:
        """A row and a column of the image from those of the walk."""
        if self.as_it_is:
            return i, j
        width, place = self.original.image[1], i * self.shape.image[1] + j
        return quotient(place, width), remainder(place, width)
