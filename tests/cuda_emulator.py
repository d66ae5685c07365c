"""Runs the kernels of the target `cuda` on a machine without a GPU: the generated CUDA C, compiled by the C++ compiler.

`emulated(program)` gives the program a device that takes the place of `cnnc_tvm.cuda_device.CudaDevice`: the plan, the
launch sizes and the kernel arguments are those a GPU would get. Memory is surrounded by guards that are checked, so
that a kernel that writes outside its tensor is caught.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnc.ir.dim import evaluate
from cnnc.ir.types import DType
from cnnc_tvm import KERNEL_SOURCE
from cnnc_tvm.plan import Kernel, Step
from cnnc_tvm.runtime import TvmProgram

HEADER = Path(__file__).with_name("cuda_emulator.h")
GUARD = 4096
"""Bytes before and after each piece of memory."""
PATTERN = 0xA5


def emulated(program: TvmProgram) -> TvmProgram:
    """The program, to be run on the CPU."""
    source = program.files()[KERNEL_SOURCE].decode()
    return TvmProgram(
        program.target, program.inputs, program.outputs, program.plan, program.weights, {},
        lambda: source, lambda: EmulatedDevice(source, program.plan.kernels),
    )  # fmt: skip


class EmulatedDevice:
    """A `cnnc_tvm.runtime.Device` whose kernels are functions of a shared library made from CUDA C."""

    def __init__(self, source: str, kernels: Mapping[str, Kernel]) -> None:
        self._kernels = kernels
        self._library = _compiled(source, kernels)
        self._memory: list[Any] = []

    def memory(self, size: int) -> Any:
        whole = np.full(size + 2 * GUARD, PATTERN, np.uint8)
        self._memory.append(whole)
        return whole[GUARD : GUARD + size]

    def view(self, memory: Any, shape: tuple[int, ...], dtype: DType) -> Any:
        return memory

    def write(self, memory: Any, array: Any) -> None:
        memory[: array.nbytes] = array.reshape(-1).view(np.uint8)

    def read(self, memory: Any, array: Any) -> None:
        for whole in self._memory:
            assert (whole[:GUARD] == PATTERN).all(), "a kernel wrote outside its memory"
            assert (whole[-GUARD:] == PATTERN).all(), "a kernel wrote outside its memory"
        array.reshape(-1).view(np.uint8)[...] = memory[: array.nbytes]

    def call(self, step: Step, args: list[Any], dims: Mapping[str, int]) -> Callable[[], object]:
        kernel = self._kernels[step.function]
        values = [
            ctypes.c_void_p(args[x].ctypes.data) if isinstance(x, int) else ctypes.c_int(dims[x]) for x in kernel.args
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in values))
        grid = (ctypes.c_uint * 3)(*(evaluate(dim, dims) for dim in kernel.grid))
        block = (ctypes.c_uint * 3)(*kernel.block)
        launch = getattr(self._library, f"launch_{step.function}")
        return lambda keep=values: launch(pointers, grid, block)


def _compiled(source: str, kernels: Mapping[str, Kernel]) -> ctypes.CDLL:
    launchers = "".join(
        f'extern "C" void launch_{name}(void** args, const unsigned* grid, const unsigned* block) '
        f"{{ launch({name}_kernel, args, grid, block); }}\n"
        for name in kernels
    )
    with tempfile.TemporaryDirectory() as folder:
        for header in ("cuda.h", "cuda_fp16.h", "math_constants.h"):
            Path(folder, header).touch()
        text, library = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
        text.write_text(f'#include "{HEADER}"\n{source}\n{launchers}')
        command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off", f"-I{folder}"]
        subprocess.run([*command, str(text), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))
