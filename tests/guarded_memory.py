"""Memory for programs of the target `cpu` of which nothing lies past the end: to read or write there ends the process.

    python tests/guarded_memory.py [COUNT] [SEED]

runs the networks `BODIES`, then COUNT random ones, with vectors of 4 and with those of this machine. Each is printed
before it runs, so the last one is at fault where the process ends; every result is compared as well.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

import cnnc
from cnnc.memory import ALIGNMENT
from cnnc.target import Program
from cnnc_tvm import LIBRARY
from cnnc_tvm.cpu_device import CpuDevice
from cnnc_tvm.runtime import TvmProgram
from numerics import Array
from random_checks import compiled, within
from strategies import Case, cases

PAGE = mmap.PAGESIZE
FILLED = 0xFF
"""The bytes of fresh memory: NaN in every type of floats."""

BODIES = (
    "y = x -> relu -> slice(3, 9) -> tanh", "y = x -> relu -> take([9, 0, 8, 9, 1]) -> maxpool(2)",
    "y = concat { x -> conv(3, 1) | x -> relu -> slice(4, 9) } -> avgpool(2)",
    "y = add { x -> conv(6, 3, pad=1) | x -> relu -> slice(2, 8) } -> relu",
    "y = x -> relu -> shuffle(5) -> conv(6, 3, groups=2)", "y = x -> conv(10, 3, groups=10) -> conv(5, 1) -> gap",
)  # fmt: skip
"""Networks on x: f32[N, 10, 6, 7], whose channels fill no block, read at other places than those of their lanes."""


class GuardedDevice(CpuDevice):
    """Each weight and each block of the arena has guarded memory of its own."""

    def memory(self, size: int) -> Array:
        return guarded_memory(size)

    def part(self, memory: Array, start: int, size: int) -> Array:
        return guarded_memory(size)

    def constant(self, array: Array) -> Array:
        memory = self.memory(array.nbytes)
        memory[...] = array.reshape(-1).view(np.uint8)
        return memory


def guarded_memory(size: int) -> Array:
    """That many bytes, and less than ALIGNMENT to where the page begins that must not be touched: they begin where
    vectors may."""
    pages = -(-size // PAGE) * PAGE
    whole = np.frombuffer(mmap.mmap(-1, pages + PAGE), np.uint8)
    whole[:] = FILLED
    if _LIBC.mprotect(ctypes.c_void_p(whole.ctypes.data + pages), ctypes.c_size_t(PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    start = (pages - size) // ALIGNMENT * ALIGNMENT
    return whole[start : start + size]


_LIBC: Any = ctypes.CDLL(None, use_errno=True)


def guarded(program: Program) -> TvmProgram:
    """The program on guarded memory."""
    assert isinstance(program, TvmProgram)
    code = program.files()[LIBRARY]
    return TvmProgram(
        program.target, program.inputs, program.outputs, program.plan, program.weights, {LIBRARY: code}, str,
        lambda: GuardedDevice(code),
    )  # fmt: skip


def check(case: Case) -> None:
    """Run the network as it is, each node in a block of its own; and optimised, which must agree."""
    print(case, flush=True)
    tapped = case.graph.with_outputs({node.name: node for node in case.graph.nodes})
    for target in ("narrow", "cpu"):
        guarded(compiled(tapped, target, case.weights, level=0))(**case.inputs)
        within(case, guarded(compiled(case.graph, target, case.weights))(**case.inputs), case.allowed(winograd=True))


def main(count: int = 100, first_seed: int = 0) -> None:
    for body in BODIES:
        check(Case(cnnc.load(f"model M {{ input x: f32[N, 10, 6, 7] output y {body} }}"), {"N": 2}, 0))
    if count:
        phases = [Phase.generate]
        limits = settings(
            max_examples=count, phases=phases, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        seed(first_seed)(limits(given(cases())(check)))()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
