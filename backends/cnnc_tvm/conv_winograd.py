"""Convolution with 3x3 windows, stride 1, by Winograd's F(m x m, 3 x 3): m*m places with (m + 2)^2 multiplications.

A tile of m x m places of the result reads (m + 2) x (m + 2) of the image. Input tiles and windows are transformed,
multiplied element by element, which summed over the channels makes (m + 2)^2 matrix products, and the sums are
transformed back. The transformed weights are one stream in the order they are read. What is transformed of a block of
tiles lies [blocks of channels, positions, tiles, lanes].
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from cnnc_tvm.conv_shape import ConvShape, Finish
from cnnc_tvm.conv_winograd_plan import Plan, grid
from cnnc_tvm.prefetch import prefetch
from cnnc_tvm.tensor import Expr, parts, quotient, remainder

if TYPE_CHECKING:
    from cnnc.target import Array

Matrix = list[list[Fraction]]

_POINTS = {2: (Fraction(1),), 4: (Fraction(5, 8), Fraction(3, 2))}
"""Where the polynomials are evaluated for each m, besides 0 and infinity: at these and their negatives.

For F(4x4, 3x3) 5/8 and 3/2 err by less than half of what the usual 1 and 2 do.
"""

_AHEAD = 16
"""Channels between the weights that are multiplied and those fetched into the first cache."""


def matrices(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """B^T [m + 2, m + 2], G [m + 2, 3] and A^T [m, m + 2]: A^T((G g) * (B^T d)) is the correlation of d with g."""
    points = [Fraction(0), *(sign * p for p in _POINTS[m] for sign in (1, -1))]
    size = m + 2
    others = [[q for q in points if q != p] for p in points]
    scales = [prod((p - q for q in rest), start=Fraction(1)) for p, rest in zip(points, others, strict=True)]
    forward = [_coefficients(roots, size) for roots in (*others, points)]
    weights = [[p**k / scale for k in range(3)] for p, scale in zip(points, scales, strict=True)]
    inverse = [[*(p**i for p in points), Fraction(int(i == m - 1))] for i in range(m)]
    return forward, [*weights, [Fraction(0), Fraction(0), Fraction(1)]], inverse


def _coefficients(roots: Sequence[Fraction], size: int) -> list[Fraction]:
    """Of the polynomial with these roots, the lowest power first."""
    result = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *result]
        result = [s - root * c for s, c in zip(shifted, [*result, Fraction(0)], strict=True)]
    return result + [Fraction(0)] * (size - len(result))


def pack(weight: Array, plan: Plan) -> Array:
    """Weights [K, C, 3, 3] transformed, [panels, C, columns * lanes]; C and K are filled up with zeros.

    A panel is what one position takes of the weights of a group of filters; they come in the order they are read.
    """
    k, c = weight.shape[:2]
    width = plan.columns * plan.lanes
    g = np.array(matrices(plan.m)[1], np.float64)
    full = np.zeros((9, -(-c // plan.lanes) * plan.lanes, -(-k // width) * width))
    full[:, :c, :k] = weight.reshape(k, c, 9).T
    u = (np.kron(g, g) @ full.reshape(9, -1)).astype(np.float32).reshape(len(g) ** 2, full.shape[1], -1, width)
    panels = u.transpose(0, 2, 1, 3) if plan.phases else u.transpose(2, 0, 1, 3)
    return panels.reshape(-1, full.shape[1], width)


def write(shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any) -> None:
    """Emit the convolution of x by the weights `w` that `pack` made; to be called inside a `T.prim_func`."""
    _Kernel(shape, plan).write(finish, x, w, out)


class _Kernel:
    def __init__(self, shape: ConvShape, plan: Plan) -> None:
        self.shape, self.plan, self.lanes = shape, plan, plan.lanes
        self.m, self.size = plan.m, plan.m + 2
        self.forward, _, self.inverse = matrices(plan.m)
        self.grid = grid(shape, plan.m)
        self.total = shape.batch * prod(self.grid)
        self.blocks = -(-shape.channels // plan.lanes)
        self.filters = -(-shape.filters // plan.lanes)
        self.groups = -(-self.filters // plan.columns)

    def write(self, finish: Finish, x: Any, w: Any, out: Any) -> None:
        (self._in_phases if self.plan.phases else self._in_tasks)(finish, x, w, out)

    def _in_tasks(self, finish: Finish, x: Any, w: Any, out: Any) -> None:
        plan = self.plan
        with T.parallel(parts(self.total, plan.tiles) * plan.splits) as task:
            first, count = self._block(tirx.indexdiv(task, plan.splits))
            v, sums, half = self._matrix(self.blocks), self._matrix(plan.columns), self._half()
            with T.serial(count) as tile:
                place = self._place(first + tile)
                with T.serial(self.blocks) as block:
                    self._transform(place, tile, block, x, half, v)
            with self._part(tirx.indexmod(task, plan.splits)) as group:
                with T.serial(self.size**2) as position:
                    self._multiply(group * self.size**2 + position, position, 0, v, w, sums)
                with T.serial(count) as tile:
                    place = self._place(first + tile)
                    with T.serial(plan.columns) as column:
                        self._transform_back(
                            place, tile, group * plan.columns + column, column, finish, sums, half, out
                        )

    def _in_phases(self, finish: Finish, x: Any, w: Any, out: Any) -> None:
        plan = self.plan
        with T.serial(parts(self.total, plan.tiles)) as number:
            first, count = self._block(number)
            v, sums = self._matrix(self.blocks), self._matrix(self.groups * plan.columns)
            with T.parallel(self.blocks) as block:
                half = self._half()
                with T.serial(count) as tile:
                    self._transform(self._place(first + tile), tile, block, x, half, v)
            with T.parallel(self.size**2 * plan.splits) as task:
                position = T.bind(tirx.indexdiv(task, plan.splits))
                with self._part(tirx.indexmod(task, plan.splits)) as group:
                    self._multiply(position * self.groups + group, position, group * plan.columns, v, w, sums)
            with T.parallel(self.filters) as block:
                half = self._half()
                with T.serial(count) as tile:
                    self._transform_back(self._place(first + tile), tile, block, block, finish, sums, half, out)

    def _block(self, number: Expr) -> tuple[Expr, Expr]:
        """The first tile of a block, and how many there are."""
        first = T.bind(number * self.plan.tiles)
        return first, T.bind(tirx.min(self.plan.tiles, self.total - first))

    def _part(self, number: Expr) -> Any:
        """A loop over the groups of filters in this part of them."""
        begin, end = (tirx.indexdiv((number + k) * self.groups, self.plan.splits) for k in (0, 1))
        return T.serial(begin, end)

    def _matrix(self, blocks: int) -> Any:
        """Memory for each position's matrix of a block of tiles times so many blocks of channels.

        The vectors between two positions of a tile are odd in number, so that they lie in different sets of the cache.
        """
        return T.alloc_buffer((blocks, self.size**2, self.plan.tiles | 1, self.lanes))

    def _half(self) -> Any:
        """Memory for a tile transformed along one axis."""
        return T.alloc_buffer((self.size, self.size, self.lanes))

    def _place(self, number: Expr) -> tuple[Expr, Expr, Expr]:
        """The image, and the tile's row and column in it."""
        rows, columns = self.grid
        image, rest = T.bind(quotient(number, rows * columns)), T.bind(remainder(number, rows * columns))
        return image, T.bind(quotient(rest, columns)), T.bind(remainder(rest, columns))

    def _transform(self, place: Any, tile: Expr, block: Expr, x: Any, half: Any, v: Any) -> None:
        (n, ti, tj), (h, w), (top, left, *_) = place, self.shape.image, self.shape.pads
        size = range(self.size)
        row, column = T.bind(ti * self.m - top), T.bind(tj * self.m - left)
        with T.serial(self.size) as k, T.vectorized(self.lanes) as lane:
            j = column + k

            def read(r: int) -> Expr:
                i = row + r
                # A load and a choice are faster than a branch; inside the choice TVM would take the clamps away.
                value = T.bind(x[n, block, _clamp(i, h), _clamp(j, w), lane])
                return tirx.Select(tirx.all(i >= 0, i < h, j >= 0, j < w), value, tirx.const(0, "float32"))

            for i, value in enumerate(self._forward([T.bind(read(r)) for r in size])):
                T.buffer_store(half, value, [i, k, lane])
        with T.serial(self.size) as i, T.vectorized(self.lanes) as lane:
            for k, value in enumerate(self._forward([T.bind(half[i, s, lane]) for s in size])):
                T.buffer_store(v, value, [block, i * self.size + k, tile, lane])

    def _multiply(self, panel: Expr, position: Expr, column: Expr, v: Any, w: Any, sums: Any) -> None:
        """The product of the block of tiles at one position and a panel of weights, to blocks `column` ... of sums."""
        number = first = 0
        for rows, same in groupby(self.plan.passes):
            count = len(list(same))
            with T.serial(count) as i:
                self._product(panel, position, column, number + i, first + i * rows, rows, v, w, sums)
            number, first = number + count, first + count * rows

    def _product(
        self, panel: Expr, position: Expr, column: Expr, number: Expr, first: Expr, rows: int, v: Any, w: Any, sums: Any
    ) -> None:
        """One pass of `_multiply`, over so many tiles from the first."""
        lanes, columns, channels = self.lanes, range(self.plan.columns), self.blocks * self.lanes
        passes = len(self.plan.passes)
        held = [T.alloc_buffer((self.plan.columns, lanes)) for _ in range(rows)]
        for row in held:
            for q in columns:
                with T.vectorized(lanes) as lane:
                    T.buffer_store(row, tirx.const(0, "float32"), [q, lane])
        with T.serial(self.blocks) as block, T.serial(lanes) as lane_in:
            c = block * lanes + lane_in
            if self.plan.phases:  # what another core may have transformed
                prefetch(v, block + 1, position, first + lane_in, 0)
            for q in columns:
                prefetch(w, panel, c + _AHEAD, q * lanes)
            line = tirx.indexdiv((number * channels + c) * len(columns), passes)  # each pass fetches its part
            for q in range(-(-len(columns) // passes)):
                prefetch(w, panel + 1, 0, (line + q) * lanes, level=2)
            for r, row in enumerate(held):
                for q in columns:
                    with T.vectorized(lanes) as lane:
                        product = v[block, position, first + r, lane_in] * w[panel, c, q * lanes + lane]
                        T.buffer_store(row, row[q, lane] + product, [q, lane])
        for r, row in enumerate(held):
            for q in columns:
                with T.vectorized(lanes) as lane:
                    T.buffer_store(sums, row[q, lane], [column + q, position, first + r, lane])

    def _transform_back(
        self, place: Any, tile: Expr, block: Expr, column: Expr, finish: Finish, sums: Any, half: Any, out: Any
    ) -> None:
        (n, ti, tj), (height, width), size = place, self.shape.out, range(self.size)
        with T.If(block < self.filters), T.Then():
            with T.serial(self.size) as k, T.vectorized(self.lanes) as lane:
                values = [T.bind(sums[column, r * self.size + k, tile, lane]) for r in size]
                for i, value in enumerate(self._inverse(values)):
                    T.buffer_store(half, value, [i, k, lane])
            with T.serial(self.m) as k:
                i = ti * self.m + k
                with T.If(i < height), T.Then():
                    with T.vectorized(self.lanes) as lane:
                        values = self._inverse([T.bind(half[k, s, lane]) for s in size])
                        for s, value in enumerate(values):
                            T.buffer_store(half, value, [k, s, lane])
                    for s in range(self.m):
                        j = tj * self.m + s
                        with T.If(j < width), T.Then(), T.vectorized(self.lanes) as lane:
                            channel = block * self.lanes + lane
                            value = finish(half[k, s, lane], n, block, lane, i, j)
                            if self.shape.filters % self.lanes:
                                value = tirx.Select(channel < self.shape.filters, value, tirx.const(0, "float32"))
                            T.buffer_store(out, value, [n, block, i, j, lane])

    def _forward(self, d: Sequence[Expr]) -> list[Expr]:
        """B^T d. The rows of a point and its negative differ in the signs of every other term."""
        result = [_sum(self.forward[0], d)]
        for row in self.forward[1:-1:2]:
            halves = [[c if k % 2 == odd else Fraction(0) for k, c in enumerate(row)] for odd in (0, 1)]
            even, odd = (T.bind(_sum(half, d)) for half in halves)
            result += [even + odd, even - odd]
        return [*result, _sum(self.forward[-1], d)]

    def _inverse(self, products: Sequence[Expr]) -> list[Expr]:
        """A^T products. Every other row takes the differences of a point's product and its negative's, or the sums."""
        first, *pairs, last = products
        both = list(zip(pairs[::2], pairs[1::2], strict=True))
        sums, differences = [T.bind(a + b) for a, b in both], [T.bind(a - b) for a, b in both]
        return [
            _sum([row[0], *row[1:-1:2], row[-1]], [first, *(differences if i % 2 else sums), last])
            for i, row in enumerate(self.inverse)
        ]


def _clamp(i: Expr, size: Expr) -> Expr:
    return tirx.max(0, tirx.min(i, size - 1))


def _sum(factors: Sequence[Fraction], values: Sequence[Expr]) -> Expr:
    """The sum of products with constants, those with 1 first: the others become fused multiply-adds."""
    terms = sorted(((f, x) for f, x in zip(factors, values, strict=True) if f), key=lambda term: abs(term[0]) != 1)
    total: Expr = None
    for factor, x in terms:
        product = x if abs(factor) == 1 else x * tirx.const(float(abs(factor)), "float32")
        if total is None:
            total = product if factor > 0 else -product
        else:
            total = total + product if factor > 0 else total - product
    return total
