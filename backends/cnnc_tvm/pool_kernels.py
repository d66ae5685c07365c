"""Kernels for CPUs of what reduces places of each channel by itself: pooling over windows and over whole maps.

Images lie in blocks of channels, so that a vector holds the channels of one place. As in convolution, padding is never
read: rows above and below the image shorten the loop over the rows of a window, and tiles of columns at the left and
right edge have code of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from cnnc.ir.attrs import Pair
from cnnc.ir.dim import Dim
from cnnc.ir.types import DType, TensorType
from cnnc_tvm.builder import Builder
from cnnc_tvm.conv_shape import ConvShape, Finish
from cnnc_tvm.conv_tiles import Tile, each_tile, in_turn, new_columns, rows_inside, rows_of_a_task
from cnnc_tvm.scalar import f32, maximum, minimum
from cnnc_tvm.tensor import KERNEL, MAX, MIN, SUM, Expr, Kernel, Reduction, Tensor, parts, quotient, remainder

_COMBINE: dict[Reduction, tuple[Callable[[Expr, Expr], Expr], float]] = {
    SUM: (lambda total, value: total + value, 0.0),
    MAX: (maximum, float("-inf")),
    MIN: (minimum, float("inf")),
}
"""How a value is taken into a result, and what results begin as."""
_COLUMNS = 4
"""Columns of a tile, each with a result of its own: none waits for the one before."""
_NEAR = 4096
"""Floats that lie in a part of the first cache."""


@dataclass(frozen=True)
class Windows:
    """What is reduced, and how: each window of `shape`, which has as many groups and filters as channels."""

    shape: ConvShape
    how: Reduction
    value: Callable[[Expr], Expr]
    """What is taken of an element."""
    lanes: int
    first: int
    """The first block of the image."""


def over_windows(
    b: Builder, out: TensorType, x: Tensor, kernel: Pair, stride: Pair, dilation: Pair, before: tuple[Dim, Dim],
    how: Reduction, value: Callable[[Expr], Expr],
) -> Tensor | None:  # fmt: skip
    """`value` of x's elements reduced over windows, by a kernel; None where images are stored plainly.

    Windows begin `before` the first row and column; None, too, where only the running program knows how far.
    """
    if b.machine is None or b.memory(out) is None or b.memory(x.type) is None:
        return None
    c, (top, left) = x.type.shape[1], before
    if not (isinstance(c, int) and isinstance(top, int) and isinstance(left, int)):
        return None
    (h, w), (rows, columns) = b.shape(x.type.shape[2:]), b.shape(out.shape[2:])
    bottom, right = (
        (count - 1) * s + (k - 1) * d + 1 - start - size
        for count, s, k, d, start, size in zip(
            (rows, columns), stride, kernel, dilation, (top, left), (h, w), strict=True
        )
    )
    shape = ConvShape(b.size(x.type.shape[0]), c, c, (h, w), kernel, stride, dilation, (top, left, bottom, right), c)
    image, first = b.image(x)
    windows = Windows(shape, how, value, b.lanes, first)
    chunk = rows_of_a_task(shape, b.lanes, b.machine.cores)
    heart = b.heart(out)

    def write(finish: Finish, x: Any, y: Any) -> None:
        _write(windows, chunk, finish, x, y)

    return Tensor(TensorType(out.shape), lambda *i: heart(*i), loops=KERNEL, kernel=Kernel(heart, (image,), write))


def _write(windows: Windows, chunk: int, finish: Finish, x: Any, y: Any) -> None:
    shape, lanes = windows.shape, windows.lanes
    blocks, chunks = -(-shape.channels // lanes), parts(shape.out[0], chunk)
    with T.parallel(shape.batch * (blocks * chunks)) as task:
        n, block = T.bind(quotient(task, blocks * chunks)), T.bind(quotient(task, chunks) % blocks)
        start = T.bind(remainder(task, chunks) * chunk)
        results = [T.alloc_buffer((lanes,)) for _ in range(_COLUMNS)]
        with T.serial(te.min(chunk, shape.out[0] - start)) as k:
            i = T.bind(start + k)

            def reduced(j: Expr, tile: Tile, new: Expr | None) -> None:
                j = T.bind(j)
                _tile(windows, tile, n, block, i, j, results, x)

                def put(columns: range) -> None:
                    for m in columns:
                        with T.vectorized(lanes) as lane:
                            done = finish(results[m][lane], n, block, lane, i, j + m)
                            T.buffer_store(y, done, [n, block, i, j + m, lane])

                new_columns(j, tile, new, put)

            each_tile(shape, min(_COLUMNS, width) if isinstance(width := shape.out[1], int) else _COLUMNS, reduced)


def _tile(windows: Windows, tile: Tile, n: Expr, block: Expr, i: Expr, j: Expr, results: list[Any], x: Any) -> None:
    shape, lanes = windows.shape, windows.lanes
    combine, start = _COMBINE[windows.how]
    for result in results[: tile.columns]:
        _fill(result, start, lanes)
    above, below = rows_inside(shape, i)
    with T.serial(below - above) as q:
        row = T.bind(i * shape.stride[0] - shape.pads[0] + (above + q) * shape.dilation[0])
        for first, last, columns in tile.runs:
            with in_turn(first, last) as places:
                for s, m in product(places, columns):
                    column = (j + m) * shape.stride[1] - shape.pads[1] + s * shape.dilation[1]
                    with T.vectorized(lanes) as lane:
                        value = windows.value(x[n, block + windows.first, row, column, lane])
                        T.buffer_store(results[m], combine(results[m][lane], value), [lane])


def over_maps(b: Builder, out: TensorType, x: Tensor, how: Reduction, *, mean: bool) -> Tensor | None:
    """Each channel of images reduced to a number, their mean if `mean`; None where images are stored plainly, or as
    channels that begin within a block: to copy them would take as long."""
    if b.memory(x.type) is None or b.memory(out) is not None or (x.within and x.blocks is None):
        return None
    channels, (height, width) = x.type.shape[1], b.shape(x.type.shape[2:])
    assert isinstance(channels, int)
    lanes, (blocks, rest) = b.lanes, divmod(channels, b.lanes)
    image, first = b.image(x)
    combine, start = _COMBINE[how]
    tile = min(_COLUMNS, width) if isinstance(width, int) else _COLUMNS
    places = height * width
    count_of_places = f32(places) if isinstance(places, int) else places.astype("float32")

    def write(x: Any, y: Any) -> None:
        def store(lane: Expr, result: Any, n: Expr, block: Expr) -> None:
            value = result[lane] / count_of_places if mean else result[lane]
            T.buffer_store(y, value, [n, block * lanes + lane, *[0] * (out.rank - 2)])

        count = blocks + (rest > 0)
        with T.parallel(b.size(out.shape[0]) * count) as task:
            image, block = T.bind(task // count), T.bind(task % count)
            results = [T.alloc_buffer((lanes,)) for _ in range(tile)]
            for result in results:
                _fill(result, start, lanes)

            def take(i: Expr, j: Expr, count: int) -> None:
                for m, result in enumerate(results[:count]):
                    with T.vectorized(lanes) as lane:
                        value = x[image, block + first, i, j + m, lane]
                        T.buffer_store(result, combine(result[lane], value), [lane])

            with T.serial(height) as i:
                with T.serial(width // tile) as t:
                    take(i, t * tile, tile)
                if not isinstance(width, int):
                    with T.serial(width % tile) as j:
                        take(i, width - width % tile + j, 1)
                elif width % tile:
                    take(i, width - width % tile, width % tile)
            with T.vectorized(lanes) as lane:
                T.buffer_store(results[0], reduce(combine, [result[lane] for result in results]), [lane])
            with T.If(block < blocks):
                with T.Then(), T.vectorized(lanes) as lane:
                    store(lane, results[0], image, block)
                with T.Else(), T.serial(rest) as lane:
                    store(lane, results[0], image, block)

    y = b.written(TensorType(out.shape), write, image)
    return y if out.dtype is DType.F32 else b.unrounded(y)


def _fill(result: Any, value: float, lanes: int) -> None:
    T.buffer_store(result, T.broadcast(f32(value), lanes), [T.ramp(0, 1, lanes)])


def squares_across(b: Builder, x: Tensor, size: int, before: int) -> Tensor | None:
    """The sums of the squares of `size` neighbouring channels, from `before` ones before each place's own on.

    By a kernel; None where images are stored plainly. The squares of all channels of some places are written to memory
    near by, with zeros before and after, and read at each distance from there.
    """
    if b.memory(x.type) is None:
        return None
    channels, (height, width) = x.type.shape[1], b.shape(x.type.shape[2:])
    assert isinstance(channels, int)
    batch, lanes, blocks = b.size(x.type.shape[0]), b.lanes, -(-channels // b.lanes)
    margin = -(-size // lanes) * lanes
    row = margin + blocks * lanes + margin
    places = max(1, min(width, _NEAR // row) if isinstance(width, int) else _NEAR // row)
    image, first = b.image(x)
    heart = b.heart(x.type)

    def write(finish: Finish, x: Any, y: Any) -> None:
        with T.parallel(batch * height) as task:
            image, i = T.bind(quotient(task, height)), T.bind(remainder(task, height))
            squares = T.alloc_buffer((places * row,))
            with T.serial(places) as m, T.serial(margin) as k:
                T.buffer_store(squares, f32(0), [m * row + k])
                T.buffer_store(squares, f32(0), [m * row + margin + blocks * lanes + k])
            with T.serial(parts(width, places)) as t:
                j = T.bind(t * places)
                count = T.bind(te.min(places, width - j))
                with T.serial(count) as m, T.serial(blocks) as block, T.vectorized(lanes) as lane:
                    value = x[image, block + first, i, j + m, lane]
                    square = value * value
                    if channels % lanes:
                        square = tirx.Select(block * lanes + lane < channels, square, f32(0))
                    T.buffer_store(squares, square, [m * row + margin + block * lanes + lane])
                with T.serial(count) as m, T.serial(blocks) as block, T.vectorized(lanes) as lane:
                    start = m * row + margin - before + block * lanes + lane
                    total = reduce(lambda a, b: a + b, [squares[start + k] for k in range(size)])
                    T.buffer_store(y, finish(total, image, block, lane, i, j + m), [image, block, i, j + m, lane])

    return Tensor(TensorType(x.type.shape), lambda *i: heart(*i), loops=KERNEL, kernel=Kernel(heart, (image,), write))
