"""Parts of the generators of convolution: where windows lie inside the image, and what all of them emit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from cnnc_tvm.conv_shape import ConvShape, Finish, Placed
from cnnc_tvm.tensor import Expr, parts

Run = tuple[Expr, Expr, tuple[int, ...]]
"""Columns first .. last - 1 of the window, and the columns of the tile at which they all lie inside the image."""

_C_FUNCTION, _BITS = "tirx.call_pure_extern", "tirx.reinterpret"
"""A function of C, and the bits of a number, which arithmetic for exponentials has."""


@dataclass(frozen=True)
class Tile:
    """Neighbouring columns of a row from column `start`, `count` times one after the other.

    Where a tile begins whose columns only the running program knows, `each_tile` says.
    """

    start: int
    columns: int
    count: int
    runs: tuple[Run, ...]

    @property
    def dynamic(self) -> bool:
        """Whether only the running program knows which columns of the window lie inside, of one column."""
        return not all(isinstance(bound, int) for first, last, _ in self.runs for bound in (first, last))


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


def each_tile(shape: ConvShape, columns: int, write: Callable[[Expr, Tile, Expr | None], None]) -> None:
    """Emit `write(j, tile, new)` for the tiles of a row of the result, which begin at column j.

    The columns before `new` were written before. It is None where the columns are known; where only the running program
    knows how many there are, the last tile of those at which the whole window lies inside the image begins so early
    that it is full. The columns at the edges, and all of a row that has fewer than a tile, are tiles of their own.
    """
    width, image = shape.out[1], shape.image[1]
    if isinstance(image, int):
        for tile in tiles(shape, columns):
            with T.serial(tile.count) as t:
                write(tile.start + t * tile.columns, tile, None)
        return
    left, stride = shape.pads[1], shape.stride[1]
    start = -(-left // stride)
    end = T.bind(te.min(width, tirx.floordiv(image - shape.span[1] + left, stride) + 1))
    inside = T.bind(end - start)
    with T.If(inside >= columns), T.Then(), T.serial(parts(inside, columns)) as t:
        new = T.bind(start + t * columns)
        whole = Tile(start, columns, 1, ((0, shape.kernel[1], tuple(range(columns))),))
        write(T.bind(te.min(new, end - columns)), whole, new)
    skipped = T.bind(tirx.Select(inside >= columns, inside, 0))
    with T.serial(width - skipped) as t:
        j = T.bind(tirx.Select(t < start, t, t + skipped))
        write(j, Tile(0, 1, 1, ((*inside_image(shape, 1, j), (0,)),)), None)


def each_tile_of_part(
    width: Expr, columns: int, start: Expr, count: int, write: Callable[[Expr, Tile, Expr | None], None]
) -> None:
    """Emit `write(j, tile, new)`, likewise, for `count` tiles from number `start` on of a long row of single places."""
    with T.If(width >= columns):
        with T.Then(), T.serial(te.min(count, parts(width, columns) - start)) as t:
            new = T.bind((start + t) * columns)
            write(T.bind(te.min(new, width - columns)), Tile(0, columns, 1, ((0, 1, tuple(range(columns))),)), new)
        with T.Else(), T.serial(width) as j:
            write(j, Tile(0, 1, 1, ((0, 1, (0,)),)), None)


def new_columns(j: Expr, tile: Tile, new: Expr | None, write: Callable[[range], None]) -> None:
    """Emit `write(columns)` for those columns of a tile at j, counted from there, that were not written before."""
    if new is None:
        write(range(tile.columns))
        return
    for m in range(tile.columns):
        with T.If(j + m >= new), T.Then():
            write(range(m, m + 1))


@contextmanager
def in_turn(first: Expr, last: Expr) -> Iterator[Iterable[Expr]]:
    """first .. last - 1 to go through while code is emitted; where these are expressions it is in a loop, and one."""
    if isinstance(first, int) and isinstance(last, int):
        yield range(first, last)
    else:
        with T.serial(last - first) as place:
            yield (first + place,)


def rows_inside(shape: ConvShape, i: Expr) -> tuple[Expr, Expr]:
    """The rows first .. last - 1 of the window at row i of the result that lie inside the image."""
    return inside_image(shape, 0, i)


def inside_image(shape: ConvShape, axis: int, i: Expr) -> tuple[Expr, Expr]:
    """The rows, or columns, first .. last - 1 of the window at row or column i of the result inside the image."""
    size, dilation, before, after = shape.kernel[axis], shape.dilation[axis], shape.pads[axis], shape.pads[axis + 2]
    start = i * shape.stride[axis] - before
    first = te.max(0, tirx.floordiv(dilation - 1 - start, dilation)) if before else 0
    if isinstance(after, int) and not after:
        return first, size
    return first, te.min(size, tirx.floordiv(shape.image[axis] - 1 - start, dilation) + 1)


def zero(accumulator: Any, lanes: int) -> None:
    T.buffer_store(accumulator, T.broadcast(tirx.const(0.0, "float32"), lanes), [T.ramp(0, 1, lanes)])


_ROWS = 8
"""Rows that a thread computes at a time where only the running program knows how many there are."""


def rows_of_a_task(shape: ConvShape, lanes: int, cores: int) -> int:
    """Rows that a thread computes of a block of channels at a time where each has windows of its own, so that each core
    has several of them."""
    if not isinstance(shape.out[0], int):
        return _ROWS
    tasks = -(-shape.channels // lanes) * (shape.batch if isinstance(shape.batch, int) else 1)
    chunks = min(shape.out[0], -(-4 * cores // tasks)) if cores > 1 else 1
    return -(-shape.out[0] // chunks)


def store(
    shape: ConvShape, lanes: int, finish: Finish, sums: Mapping[tuple[int, int, int], Any], out: Any,
    n: Expr, block: Expr, place: Placed,
) -> None:  # fmt: skip
    """Finish the sums of a tile, which has these for its rows, columns and blocks from 0, and write them.

    `block` is its first block, `place` gives the row and the column of `out`, which is in blocks, or plain and has no
    more channels than one. A long epilogue, as of an exponential, would fill the code: it is applied in a loop to what
    has been written. One that calls functions is not applied to vectors, which TVM would have to take apart.
    """
    rows, columns, blocks = (max(axis) + 1 for axis in zip(*sums, strict=True))
    if len(out.shape) == 4:
        for (u, m, _), total in sums.items():
            with T.serial(shape.filters) as c:
                T.buffer_store(out, total[c], [n, c, *place(u, m)])
        with T.serial(shape.filters) as c, T.serial(rows) as u, T.serial(columns) as m:
            i, j = place(u, m)
            T.buffer_store(out, finish(out[n, c, i, j], n, c, i, j), [n, c, i, j])
        return

    def write(
        finish: Finish, read: Callable[[Expr], Expr], block: Expr, i: Expr, j: Expr, loop: Callable[..., Any]
    ) -> None:
        with loop(lanes) as lane:
            value = finish(read(lane), n, block, lane, i, j)
            if shape.filters % lanes:
                value = tirx.Select(block * lanes + lane < shape.filters, value, tirx.const(0.0, "float32"))
            T.buffer_store(out, value, [n, block, i, j, lane])

    used = _functions(finish)
    later = not used.isdisjoint({_C_FUNCTION, _BITS})
    for (u, m, k), total in sums.items():
        write(_as_it_is if later else finish, total.__getitem__, block + k, *place(u, m), T.vectorized)
    if later:
        loop = T.serial if _C_FUNCTION in used else T.vectorized
        with T.serial(blocks) as k, T.serial(rows) as u, T.serial(columns) as m:
            i, j = place(u, m)
            write(finish, lambda lane: out[n, block + k, i, j, lane], block + k, i, j, loop)


def _as_it_is(value: Expr, *_: Expr) -> Expr:
    return value


def _functions(finish: Finish) -> set[str]:
    """The names of the functions that an epilogue has in it."""
    names: set[str] = set()
    value, index = tirx.Var("value", "float32"), tirx.Var("index", "int32")
    call = (tvm.ir.Call, lambda x: names.add(x.op.name))
    tvm_ffi.structural_walk(finish(value, index, index, index, index, index), call)
    return names
