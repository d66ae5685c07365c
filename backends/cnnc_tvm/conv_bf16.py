"""Convolution of bf16 on a CPU by instructions that add products of pairs: AMX's, whose tiles multiply 16 places of 32
channels by 32 channels of 16 filters, or AVX-512's, which multiply a pair of channels by those of 16 filters.

A task first copies the rows of the image that it reads: as bf16, with their padding, 32 channels of a place one after
the other, and apart what a stride skips. The inputs that neighbouring places of the result meet at one place of the
window lie one after the other there, from row to row as well. So the places computed at a time need not end with the
rows: those between the end of a row and the beginning of the next are computed too, and not stored.

Both kinds of instructions take denormal numbers for zeros, and the padding is multiplied: a weight that is infinite
makes NaN at the border, where direct convolution leaves it out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from cnnc.ir.types import DType
from cnnc.target import numpy_dtype
from cnnc_tvm.conv_shape import AMX, ConvShape, Finish, Machine
from cnnc_tvm.conv_tiles import store, zero
from cnnc_tvm.prefetch import by_turns, images_read, prefetch
from cnnc_tvm.tensor import Expr

if TYPE_CHECKING:
    from cnnc.target import Array

LANES = 16
"""Floats in a vector: filters of a block; and the places of a tile of AMX."""
_DEPTH = 32
"""Channels multiplied at a time."""
_PANEL = 2
"""Blocks of filters computed at a time."""
_AS_F32 = 1.2
"""Cycles of Zen 5 in those that the models of f32 count, which were fitted on an Intel processor: by them it takes 0.8
to 0.9 of what they say."""
_UNROLLED = 49
"""Places of a window at most, for each of which code is generated."""


@dataclass(frozen=True)
class Plan:
    """The sizes a kernel is generated with."""

    engine: str
    """The instructions, as `Machine.pairs` has them."""
    places: int
    """Neighbouring places computed at a time; with AMX twice as many where there are."""
    chunk: int
    """Rows that a task computes."""
    panels: int
    """Panels of filters that a task computes."""

    @property
    def layout(self) -> str:
        """Names the arrangement that `pack` makes."""
        return "pairs"


def takes(shape: ConvShape) -> bool:
    """Whether it has one group, enough channels and filters to fill half of what is multiplied, and a window for which
    code need not be long."""
    fills = shape.channels >= _DEPTH // 2 and shape.filters >= LANES
    return shape.groups == 1 and fills and prod(shape.kernel) <= _UNROLLED


def choose(shape: ConvShape, machine: Machine) -> Plan:
    """The plan that takes the fewest cycles by a simple model. The batch must be known."""
    return min(plans(shape, machine), key=lambda plan: cycles(shape, machine, plan))


def plans(shape: ConvShape, machine: Machine) -> Iterator[Plan]:
    """All plans there are, for a shape that `takes` says."""
    height, panels, walk = shape.out[0], _panels(shape), _Walk.of(shape)
    most = (machine.registers - 1 - _PANEL) // _PANEL  # whose sums are in registers, with weights and an input
    for chunk in {-(-height // chunks) for chunks in range(1, height + 1)}:
        sizes = [LANES] if machine.pairs == AMX else range(most // 2, most + 1)
        places = min(sizes, key=lambda size: walk.count(chunk, size) * (size + 1.5))
        for part in {-(-panels // parts) for parts in range(1, panels + 1)}:
            yield Plan(machine.pairs, places, chunk, part)


def cycles(shape: ConvShape, machine: Machine, plan: Plan) -> float:
    """Those of the busiest core, counted from the instructions and the bytes of the weights.

    To multiply vectors takes half of one on Zen 5, where the rest was measured. To multiply tiles takes 16, as Intel
    says; no machine with AMX was at hand to measure what it takes to store sums and to read weights there.
    """
    walk = _Walk.of(shape)
    depth = -(-shape.channels // _DEPTH) * prod(shape.kernel)
    tasks = int(shape.batch) * -(-shape.out[0] // plan.chunk) * -(-_panels(shape) // plan.panels)
    amx = plan.engine == AMX
    step, storing, reading = (
        (16, 16, 1 / 16) if amx else (_DEPTH // 2 * max(plan.places / 2, (plan.places + 1) / 3), 6, 1 / 6)
    )
    places = -(-shape.channels // _DEPTH) * len(walk.phases) * walk.length(plan.chunk, plan.places)  # of the copy
    if 2 * _DEPTH * places > machine.l2 / 2:
        step *= 2  # inputs come from beyond the second cache for each panel
    products: float = walk.count(plan.chunk, plan.places) * _PANEL * (depth * step + storing * plan.places)
    weights = 2 * _DEPTH * _PANEL * LANES * depth * reading
    spent = -(-tasks // machine.cores) * (plan.panels * (products + weights) + 4 * places + 500)
    return float(spent if amx else spent * _AS_F32)


def pack(weight: Array) -> Array:
    """Weights [K, C, R, S] in bf16 as [K / 32, C / 32, R, S, 2, 16, 32], zeros between: 16 rows of the two channels of
    a pair for each of 16 filters."""
    filters, channels, r, s = weight.shape
    count, deep = -(-filters // (_PANEL * LANES)), -(-channels // _DEPTH)
    full = np.zeros((count * _PANEL * LANES, deep * _DEPTH, r, s), numpy_dtype(DType.BF16))
    full[:filters, :channels] = weight
    split = full.reshape(count, _PANEL, LANES, deep, _DEPTH // 2, 2, r, s).transpose(0, 3, 6, 7, 1, 4, 2, 5)
    return np.ascontiguousarray(split).reshape(count, deep, r, s, _PANEL, _DEPTH // 2, 2 * LANES)


def write(shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any) -> None:
    """Emit the convolution of x, blocks of f32 that hold numbers of bf16, by the weights `w` that `pack` made; to be
    called inside a `T.prim_func`. The result is in blocks."""
    (_Tiles if plan.engine == AMX else _Vectors)(shape, plan, finish, x, w, out).write()


def _panels(shape: ConvShape) -> int:
    return -(-shape.filters // (_PANEL * LANES))


@dataclass(frozen=True)
class _Walk:
    """How places and windows go through the copy of a task's rows."""

    columns: int
    """Of the result."""
    rows: tuple[tuple[int, int], ...]
    across: tuple[tuple[int, int], ...]
    """For each row, and each column, of the window: which of those that a stride skips it meets, and how much later."""

    @staticmethod
    def of(shape: ConvShape) -> _Walk:
        rows, across = (
            tuple((k * dilation % stride, k * dilation // stride) for k in range(size))
            for size, dilation, stride in zip(shape.kernel, shape.dilation, shape.stride, strict=True)
        )
        return _Walk(shape.out[1], rows, across)

    @property
    def phases(self) -> list[tuple[int, int]]:
        """The remainders of rows and columns by the stride that windows meet, each a part of the copy."""
        rows, columns = (sorted({phase for phase, _ in shifts}) for shifts in (self.rows, self.across))
        return [(i, j) for i in rows for j in columns]

    @property
    def below(self) -> int:
        """The most rows of a part between a place of the result and what it meets."""
        return max(shift for _, shift in self.rows)

    @property
    def pitch(self) -> int:
        """Places from a row to the next."""
        return self.columns + max(shift for _, shift in self.across)

    def count(self, rows: Expr, size: int) -> Expr:
        """How many times `size` places are computed for so many rows of the result."""
        return ((rows - 1) * self.pitch + (self.columns + size - 1)) // size

    def length(self, rows: int, size: int) -> int:
        """Places of a part of the copy, up to the last that is met."""
        return int(self.count(rows, size)) * size + self.below * self.pitch + self.pitch - self.columns


class _Kernel(ABC):
    """What both kinds have in common; `sums` has the products of up to `together` * places."""

    together = 1

    def __init__(self, shape: ConvShape, plan: Plan, finish: Finish, x: Any, w: Any, out: Any) -> None:
        self.shape, self.plan, self.finish, self.x, self.w, self.out = shape, plan, finish, x, w, out
        self.walk = _Walk.of(shape)
        self.phases = self.walk.phases
        self.deep = -(-shape.channels // _DEPTH)

    def ready(self) -> AbstractContextManager[None]:
        """What a task does before and after it multiplies: nothing, unless a kind says otherwise."""
        return nullcontext()

    @abstractmethod
    def multiply(self, n: Expr, panel: Expr, first: Expr, start: Expr, count: int) -> None:
        """Put the sums of `count` times `places` of a panel into `sums`, from place `start` of the rows of image n on
        that begin with row `first`."""

    def write(self) -> None:
        shape, plan, walk, together = self.shape, self.plan, self.walk, self.together
        panels, chunks = _panels(shape), -(-shape.out[0] // plan.chunk)
        parts = -(-panels // plan.panels)
        with T.parallel(shape.batch * (parts * chunks)) as task:
            n, part = T.bind(task // (parts * chunks)), T.bind(task // chunks % parts)
            first = T.bind(task % chunks * plan.chunk)
            size = walk.length(plan.chunk, plan.places)
            self.copy = T.alloc_buffer((self.deep, len(self.phases), size, _DEPTH), "uint16")
            self.sums = T.alloc_buffer((_PANEL, together * plan.places, LANES), "float32")
            self.fill(n, first)
            rows = T.bind(te.min(plan.chunk, shape.out[0] - first))
            count = T.bind(walk.count(rows, plan.places))
            with self.ready(), T.serial(te.min(plan.panels, panels - part * plan.panels)) as k:
                panel = T.bind(part * plan.panels + k)

                def some(number: int, start: Expr, panel: Expr = panel) -> None:
                    start = T.bind(start)
                    self.multiply(n, panel, first, start, number)
                    self.store(n, panel, first, rows, start, number)

                with T.serial(count // together) as i:
                    some(together, i * (together * plan.places))
                if together > 1:
                    with T.If(count % together == 1), T.Then():
                        some(1, (count - 1) * plan.places)

    def fill(self, n: Expr, first: Expr) -> None:
        """Copy the rows that are read from row `first` of the result on."""
        walk, (height, width) = self.walk, self.shape.image
        (sh, sw), (top, left, _, _) = self.shape.stride, self.shape.pads
        with T.serial(self.deep) as deep, T.serial(self.plan.chunk + walk.below) as row:
            for phase, (r, s) in enumerate(self.phases):
                i = T.bind((first + row) * sh + (r - top))
                begin = min(walk.pitch, max(0, -((s - left) // sw)))  # the columns inside the image
                end = min(walk.pitch, max(begin, -((s - left - width) // sw)))

                for half in range(_DEPTH // LANES):
                    block = T.bind(deep * (_DEPTH // LANES) + half)

                    def columns(
                        begin: int, end: int, *, inside: bool,
                        phase: int = phase, i: Expr = i, s: int = s, half: int = half, block: Expr = block,
                    ) -> None:  # fmt: skip
                        with T.serial(end - begin) as k, T.vectorized(LANES) as lane:
                            j = (begin + k) * sw + (s - left)
                            bits = self.bits(n, block, i, j, lane) if inside else tirx.const(0, "uint16")
                            place = row * walk.pitch + (begin + k)
                            T.buffer_store(self.copy, bits, [deep, phase, place, half * LANES + lane])

                    with T.If(tirx.all(i >= 0, i < height, block < -(-self.shape.channels // LANES))):
                        with T.Then():
                            columns(0, begin, inside=False)
                            columns(begin, end, inside=True)
                            columns(end, walk.pitch, inside=False)
                        with T.Else():
                            columns(0, walk.pitch, inside=False)

    def bits(self, n: Expr, block: Expr, i: Expr, j: Expr, lane: Expr) -> Expr:
        """An input in bf16; 0 past the last channel, where a slice has what is beside it."""
        bits = (tirx.reinterpret("uint32", self.x[n, block, i, j, lane]) >> tirx.const(16, "uint32")).astype("uint16")
        if self.shape.channels % LANES == 0:
            return bits
        return tirx.Select(block * LANES + lane < self.shape.channels, bits, tirx.const(0, "uint16"))

    def windows(self) -> Iterator[tuple[int, int, int, int]]:
        """The rows and columns of the window, with the part of the copy that they meet and how many places later."""
        for r, (i, down) in enumerate(self.walk.rows):
            for s, (j, right) in enumerate(self.walk.across):
                yield r, s, self.phases.index((i, j)), down * self.walk.pitch + right

    def store(self, n: Expr, panel: Expr, first: Expr, rows: Expr, start: Expr, count: int) -> None:
        """Finish and write what `sums` has."""
        walk, blocks = self.walk, -(-self.shape.filters // LANES)
        with T.serial(count * self.plan.places) as m:
            place = T.bind(start + m)
            i, j = T.bind(place // walk.pitch), T.bind(place % walk.pitch)

            def write(k: int, m: Expr = m, i: Expr = i, j: Expr = j) -> None:
                done = {(0, 0, 0): _Row(self.sums, k, m)}
                block = panel * _PANEL + k
                store(self.shape, LANES, self.finish, done, self.out, n, block, lambda u, m: (first + i, j))

            with T.If(tirx.all(i < rows, j < walk.columns)), T.Then():
                for k in range(_PANEL):
                    if k < blocks % _PANEL or blocks % _PANEL == 0:
                        write(k)
                        continue
                    with T.If(panel * _PANEL + k < blocks), T.Then():
                        write(k)


@dataclass(frozen=True)
class _Row:
    """The sums of a place."""

    sums: Any
    block: int
    place: Expr

    def __getitem__(self, lane: Expr) -> Expr:
        return self.sums[self.block, self.place, lane]


class _Tiles(_Kernel):
    """By AMX: two tiles of places by two of filters at a time, so that each that is loaded is used twice."""

    together = 2
    _SUMS, _INPUTS, _WEIGHTS = ((0, 1), (2, 3)), (4, 5), (6, 7)
    _ROW = 4 * LANES
    """Bytes of a row of a tile: the sums of 16 filters, or 32 channels."""
    _CONFIGURATION = (1, 0, 0, 0, *[_ROW << 16 | _ROW] * 4, 0, 0, 0, 0, *[LANES * 0x01010101] * 2, 0, 0)
    """Words of 32 bits: the palette, then for each tile the bytes of a row, then for each tile how many rows."""

    @contextmanager
    def ready(self) -> Iterator[None]:
        words = T.alloc_buffer((len(self._CONFIGURATION),), "uint32")
        for i, word in enumerate(self._CONFIGURATION):
            T.buffer_store(words, tirx.const(word, "uint32"), [i])
        _amx("ldtilecfg", T.address_of(words[0]))
        yield
        _amx("tilerelease")

    def multiply(self, n: Expr, panel: Expr, first: Expr, start: Expr, count: int) -> None:
        inputs, sums = self._INPUTS[:count], self._SUMS[:count]
        for row in sums:
            for total in row:
                _amx("tilezero", _tile(total))
        with T.serial(self.deep) as deep:
            for r, s, part, shift in self.windows():
                for u, tile in enumerate(inputs):
                    self._memory("tileloadd64", tile, self.copy[deep, part, start + (shift + u * LANES), 0])
                for k, tile in enumerate(self._WEIGHTS):
                    self._memory("tileloadd64", tile, self.w[panel, deep, r, s, k, 0, 0])
                for a, row in zip(inputs, sums, strict=True):
                    for b, total in zip(self._WEIGHTS, row, strict=True):
                        _amx("tdpbf16ps", *map(_tile, (total, a, b)))
        for u, row in enumerate(sums):
            for k, total in enumerate(row):
                self._memory("tilestored64", total, self.sums[k, u * LANES, 0])

    def _memory(self, name: str, tile: int, first: Any) -> None:
        _amx(name, _tile(tile), T.address_of(first), tirx.const(self._ROW, "int64"))


def _amx(name: str, *args: Expr) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *args))


def _tile(number: int) -> Expr:
    return tirx.const(number, "int8")


class _Vectors(_Kernel):
    """By AVX-512: the sums of some places by two vectors of filters in registers."""

    _DOT = """
        declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
        define <16 x float> @cnnc_dot(<16 x float> %a, <16 x i32> %x, <16 x i32> %w) alwaysinline nounwind #0 {
          %b = bitcast <16 x i32> %x to <32 x bfloat>
          %c = bitcast <16 x i32> %w to <32 x bfloat>
          %d = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %a, <32 x bfloat> %b, <32 x bfloat> %c)
          ret <16 x float> %d
        }
        attributes #0 = { "target-features"="+avx512f,+avx512bf16" }
    """
    """TVM takes bf16 apart before LLVM sees it."""

    def write(self) -> None:
        with T.attr(tirx.const(0, "int32"), "pragma_import_llvm", self._DOT):
            super().write()

    def multiply(self, n: Expr, panel: Expr, first: Expr, start: Expr, count: int) -> None:
        vector = T.ramp(0, 1, LANES)
        sums = [[T.alloc_buffer((LANES,)) for _ in range(_PANEL)] for _ in range(self.plan.places)]
        for row in sums:
            for total in row:
                zero(total, LANES)
        with T.serial(self.deep) as deep:
            self.fetch(n, panel, first, start, deep)
            for r, s, part, shift in self.windows():
                with T.serial(_DEPTH // 2) as pair:
                    both = T.ramp(0, 1, 2 * LANES)
                    for k in range(_PANEL):  # those of the next place of the window, or of the next channels
                        prefetch(self.w, panel, deep, r, s + 1, k, pair, 0)
                    weights = [
                        T.bind(tirx.reinterpret(f"uint32x{LANES}", self.w[panel, deep, r, s, k, pair, both]))
                        for k in range(_PANEL)
                    ]
                    for m, row in enumerate(sums):
                        channels = self.copy[deep, part, start + (shift + m), T.ramp(2 * pair, 1, 2)]
                        x = T.bind(T.broadcast(tirx.reinterpret("uint32", channels), LANES))
                        for total, w in zip(row, weights, strict=True):
                            dot = T.call_extern(f"float32x{LANES}", "cnnc_dot", total[vector], x, w)
                            T.buffer_store(total, dot, [vector])
        for m, row in enumerate(sums):
            for k, total in enumerate(row):
                T.buffer_store(self.sums, total[vector], [k, m, vector])

    def fetch(self, n: Expr, panel: Expr, first: Expr, start: Expr, deep: Expr) -> None:
        """Have some of the places' results, and of what the epilogue reads there, fetched, all by the last channels."""

        def fetch(number: Expr) -> None:
            place = T.bind(start + number)
            i, j = T.bind(first + place // self.walk.pitch), T.bind(place % self.walk.pitch)
            for k in range(_PANEL):
                block = panel * _PANEL + k
                for image, index in images_read(self.finish, n, block, i, j):
                    prefetch(image, *index)
                prefetch(self.out, n, block, i, j, 0, write=True)

        by_turns(self.plan.places, self.deep, deep, fetch)
