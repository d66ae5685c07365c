"""What this machine does at best, measured: products a second on all cores, and bytes a second to and from memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from statistics import median
from typing import Any, Final

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from cnnc.ir.types import DType
from cnnc.profiling import Peaks
from cnnc_tvm.build_cpu import build
from cnnc_tvm.cpu_device import CpuDevice
from cnnc_tvm.ffi import threads
from cnnc_tvm.plan import Step
from cnnc_tvm.tensor import WRITTEN, Function

LANES: Final = (4, 8, 16)
"""Floats in a vector of the processors there are; the best of the three is this one's."""
SUMS: Final = 12
"""Vectors that are added to in turn: more than a product takes cycles times how many begin in one, and they fit the
registers."""
NUMBERS: Final = SUMS + 2
"""Vectors with the one that sums are multiplied by and the one that is added."""
ROUNDS: Final = 50_000
COPIED: Final = 2**25
PIECE: Final = 2**12
"""Floats that are copied, more than caches hold, and those that a thread copies at a time."""
SAMPLE, COPYING, CHOOSING = 0.002, 0.3, 0.02
"""Seconds that products of a sample take, all copies, and each vector length that may be the fastest."""


class Peak:
    """A meter of the peaks. The clock of a processor varies, so products are counted in samples, to be taken between
    the runs of what is compared with them; both are then medians of the same time."""

    def __init__(self, lanes: Sequence[int] = LANES) -> None:
        """Of vectors with the fastest of these numbers of floats."""
        self._device, products, self._copy = _compiled()
        calls = {each: self._call(products[each], (threads(), NUMBERS * each)) for each in lanes}
        best = max(calls, key=lambda each: each / min(_seconds(calls[each], CHOOSING)))
        self._multiply, self._flops = calls[best], 2 * threads() * ROUNDS * SUMS * best
        self._times: list[float] = []

    def sample(self) -> None:
        """Multiply for a moment."""
        self._times += _seconds(self._multiply, SAMPLE)

    @property
    def flops(self) -> float:
        """Operations a second by the samples so far, of which there must be one."""
        return self._flops / median(self._times)

    def peaks(self) -> Peaks:
        """By the samples so far, and by copies made now."""
        copying = _seconds(self._call(self._copy, (COPIED,), (COPIED,)), COPYING)
        return Peaks(self.flops, 2 * 4 * COPIED / median(copying))

    def _call(self, function: Function, *shapes: tuple[int, ...]) -> Callable[[], object]:
        """A call on memory of these shapes, all of it written: of what never was, a system has one page of zeros."""
        memory = [self._device.memory(4 * prod(shape)) for shape in shapes]
        for each in memory:
            each[:] = 0
        views = [self._device.view(each, shape, DType.F32) for each, shape in zip(memory, shapes, strict=True)]
        return self._device.call(Step(function.name, (), (), ()), views, {})


@cache
def _compiled() -> tuple[CpuDevice, dict[int, Function], Function]:
    """The device, what multiplies vectors of so many lanes, and what copies memory."""
    products, copy = {lanes: _products(lanes, threads()) for lanes in LANES}, _copy()
    return CpuDevice(build({x.name: x for x in (*products.values(), copy)}, "native")[0]), products, copy


def _seconds(call: Callable[[], object], lasting: float) -> list[float]:
    """Those of calls one after the other, for so long, of one at least."""
    found: list[float] = []
    end = time.perf_counter() + lasting
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def _written(name: str, write: Callable[..., None], *shapes: tuple[int, ...]) -> Function:
    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        buffers = [T.buffer(shape, "float32", layout=None) for shape in shapes]
        write(*(T.arg(f"x{i}", buffer) for i, buffer in enumerate(buffers)))
    return Function(name, made.get(), WRITTEN)


def _products(lanes: int, count: int) -> Function:
    """Each thread adds products to sums in registers, none of which waits for another.

    All numbers are read from memory: LLVM computes those that it knows, and one of twelve sums left out of the loop
    would make the peak an eleventh too high.
    """

    def write(numbers: Any) -> None:
        def at(thread: Any, k: int) -> list[Any]:
            return [thread, T.ramp(k * lanes, 1, lanes)]

        with T.parallel(0, count) as thread:
            *sums, factor, term = [T.alloc_buffer((lanes,), "float32") for _ in range(NUMBERS)]
            ramp = T.ramp(0, 1, lanes)
            for k, each in enumerate((*sums, factor, term)):
                T.buffer_store(each, numbers[*at(thread, k)], [ramp])
            with T.serial(0, ROUNDS):
                for each in sums:
                    T.buffer_store(each, each[ramp] * factor[ramp] + term[ramp], [ramp])
            for k, each in enumerate(sums):
                T.buffer_store(numbers, each[ramp], at(thread, k))

    return _written(f"products{lanes}", write, (count, NUMBERS * lanes))


def _copy() -> Function:
    def write(x: Any, out: Any) -> None:
        with T.parallel(0, COPIED // PIECE) as piece, T.serial(0, PIECE // 16) as i:
            place = T.ramp(piece * PIECE + i * 16, 1, 16)
            T.buffer_store(out, x[place], [place])

    return _written("copy", write, (COPIED,), (COPIED,))
