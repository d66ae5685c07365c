"""Runs the kernels of the target `cuda` on a machine without a GPU: the generated CUDA C, compiled by the C++ compiler.

`emulated(program)` gives the program a device that takes the place of `cnnc_tvm.cuda_device.CudaDevice`: the plan, the
launch sizes and the kernel arguments are those a GPU would get. Blocks, and the threads of a block, run in a random
order. A step's result is NaN before it runs, and so is the shared memory of each block; memory is surrounded by NaNs
too, which must still be there at the end. `checked=True` looks at every access as well, see cuda_emulator.cpp: for
small programs, as it is about ten times slower. What is found is raised as `KernelError`.

Not emulated: textures, atomics, inline assembly, asynchronous copies, half-precision mathematics, `__syncwarp`.
"""

from __future__ import annotations

import ctypes
import math
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cnnc.diagnostics import CnncError
from cnnc.ir.dim import evaluate
from cnnc.ir.types import DType
from cnnc.target import numpy_dtype
from cnnc_tvm import KERNEL_SOURCE
from cnnc_tvm.cuda_device import Driver
from cnnc_tvm.plan import Kernel, Step, part_names
from cnnc_tvm.runtime import TvmProgram

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from cnnc.target import Array

DIALECT, RUNTIME = (Path(__file__).with_name(f"cuda_emulator.{suffix}") for suffix in ("h", "cpp"))
GUARD = 4096
"""Bytes before and after each piece of memory."""
POISON = 0xFF
"""The bytes of a NaN, in any floating type."""
ALIGNMENT = 256
CELL = np.dtype([("written", np.uint32), ("read", np.uint32), ("writer", np.uint16), ("reader", np.uint16)])
"""What is known of two bytes of memory, as cuda_emulator.cpp has it."""
BY_HOST = 1
"""The time of its writes: before all launches."""
COMPILE = ("g++", "-std=c++17", "-w", "-c", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing")
FAST = ("-O3", "-march=native")
"""Half the time of -O1 for large networks. Sums keep their order, and nothing is contracted."""
CHECKED = ("-O1", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0")


class KernelError(AssertionError):
    """A kernel did what on a GPU has no defined result."""


def gpu_is_there() -> bool:
    try:
        Driver()
    except CnncError:
        return False
    return True


def runnable(program: TvmProgram, checked: bool = False) -> TvmProgram:
    """The program as it is where there is a GPU, else emulated."""
    return program if gpu_is_there() else emulated(program, checked)


def emulated(program: TvmProgram, checked: bool = False, seed: int = 0) -> TvmProgram:
    """The program, to be run on the CPU. `seed` determines the orders of blocks and threads."""
    source = program.files()[KERNEL_SOURCE].decode()
    return TvmProgram(
        program.target, program.inputs, program.outputs, program.plan, program.weights, {},
        lambda: source, lambda: EmulatedDevice(source, program.plan.kernels, checked, seed),
    )  # fmt: skip


def in_any_order(run: Callable[[int], Mapping[str, Array]], orders: int = 4) -> Mapping[str, Array]:
    """What `run(seed)` gives, which must be the same bits for several seeds."""
    first, *others = map(run, range(orders))
    for other in others:
        for name, array in first.items():
            if array.tobytes() != other[name].tobytes():
                raise KernelError(f"{name} depends on the order of threads: a race, or a missing barrier")
    return first


@dataclass(frozen=True)
class Memory:
    """Bytes, and what is known of them if accesses are checked."""

    bytes: Array
    cells: Array | None

    def part(self, start: int, size: int) -> Memory:
        cells = None if self.cells is None else self.cells[start // 2 : (start + size) // 2]
        return Memory(self.bytes[start : start + size], cells)


class EmulatedDevice:
    """A `cnnc_tvm.runtime.Device` whose kernels are functions of a shared library made from CUDA C.

    Kernels take `dynamic_shared` bytes of shared memory besides what they declare.
    """

    def __init__(
        self, source: str, kernels: Mapping[str, Kernel], checked: bool = False, seed: int = 0, dynamic_shared: int = 0
    ) -> None:
        self._kernels = kernels
        self._library = _compiled(source, checked)
        self._checked = checked
        self._waiting = _waiting(source)
        self._random = random.Random(seed)
        self._dynamic_shared = dynamic_shared
        self._memory: list[Array] = []

    def enter(self) -> None:
        pass

    def memory(self, size: int) -> Memory:
        whole = np.full(size + 2 * GUARD + ALIGNMENT, POISON, np.uint8)
        whole = whole[-whole.ctypes.data % ALIGNMENT :][: size + 2 * GUARD]
        self._memory.append(whole)
        return Memory(whole[GUARD : GUARD + size], np.zeros(size // 2, CELL) if self._checked else None)

    def part(self, memory: Memory, start: int, size: int) -> Memory:
        return memory.part(start, size)

    def view(self, memory: Memory, shape: tuple[int, ...], dtype: DType) -> Memory:
        return memory.part(0, math.prod(shape) * dtype.size)

    def constant(self, array: Array) -> Memory:
        memory = self.memory(array.nbytes)
        self._write(memory, array)
        return memory

    def writer(self, memory: Memory, shape: tuple[int, ...], dtype: DType) -> Callable[[Array], object]:
        return partial(self._write, memory)

    def reader(self, memory: Memory, shape: tuple[int, ...], dtype: DType) -> Callable[[], Array]:
        return partial(self._read, memory, shape, numpy_dtype(dtype))

    def _write(self, memory: Memory, array: Array) -> None:
        part = memory.part(0, array.nbytes)
        part.bytes[...] = array.reshape(-1).view(np.uint8)
        if part.cells is not None:
            part.cells["written"] = BY_HOST

    def _read(self, memory: Memory, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        for whole in self._memory:
            if not ((whole[:GUARD] == POISON).all() and (whole[-GUARD:] == POISON).all()):
                raise KernelError("a kernel wrote out of bounds")
        array = np.empty(shape, dtype)
        part = memory.part(0, array.nbytes)
        if part.cells is not None and not part.cells["written"].all():
            byte = 2 * int(part.cells["written"].argmin())
            raise KernelError(f"byte {byte} of a result was never written")
        array.reshape(-1).view(np.uint8)[...] = part.bytes
        return array

    def call(self, step: Step, args: list[Memory], dims: Mapping[str, int]) -> Callable[[], object]:
        kernel = self._kernels[step.function]
        values = [
            ctypes.c_void_p(args[x].bytes.ctypes.data) if isinstance(x, int) else ctypes.c_int(dims[x])
            for x in kernel.args
        ]
        tensors = [_Tensor.of(args[x]) if isinstance(x, int) else _Tensor() for x in kernel.args]
        launch = _Launch(
            kernel=step.function.encode(),
            run=ctypes.cast(getattr(self._library, f"run_{step.function}"), ctypes.c_void_p),
            args=(ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values)),
            tensors=(_Tensor * len(tensors))(*tensors),
            tensor_count=len(tensors),
            grid=_Index(*(evaluate(dim, dims) for dim in kernel.grid)),
            block=_Index(*kernel.block),
            dynamic_shared=self._dynamic_shared,
            waits=step.function in self._waiting,
        )
        *inputs, result = args
        in_place = any(np.may_share_memory(result.bytes, x.bytes) for x in inputs)
        is_part = set(part_names(len(inputs))) <= dims.keys()  # there is more in its memory

        def run(keep: object = values) -> None:
            if not in_place and not is_part:
                result.bytes[...] = POISON
                if result.cells is not None:
                    result.cells[...] = 0
            launch.seed = self._random.getrandbits(64)
            fault = self._library.cuda_emulator_launch(ctypes.byref(launch))
            if fault:
                raise KernelError(fault.decode())

        return run


class _Tensor(ctypes.Structure):
    _fields_: ClassVar[Any] = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("cells", ctypes.c_void_p)]

    @staticmethod
    def of(x: Memory) -> _Tensor:
        return _Tensor(x.bytes.ctypes.data, x.bytes.size, None if x.cells is None else x.cells.ctypes.data)


class _Index(ctypes.Structure):
    _fields_: ClassVar[Any] = [(axis, ctypes.c_uint) for axis in "xyz"]


class _Launch(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("kernel", ctypes.c_char_p), ("run", ctypes.c_void_p), ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("tensors", ctypes.POINTER(_Tensor)), ("tensor_count", ctypes.c_uint64), ("seed", ctypes.c_uint64),
        ("grid", _Index), ("block", _Index), ("dynamic_shared", ctypes.c_uint32), ("waits", ctypes.c_uint32),
    ]  # fmt: skip


def _waiting(source: str) -> set[str]:
    """The kernels whose text has barriers or exchanges."""
    kernels = re.finditer(r"\b(\w+)_kernel\([^;{]*\{(.*?)^\}", source, re.DOTALL | re.MULTILINE)
    return {kernel[1] for kernel in kernels if re.search(r"\b(__syncthreads|__shfl\w*)\(", kernel[2])}


def _as_cpp(source: str) -> str:
    """The source with declarations of shared memory as C++ knows them, and a function that calls each kernel."""
    aligned = r"(?:(?:alignas|__align__)\(\d+\) )?"
    text = re.sub(
        rf"extern __shared__ {aligned}([\w ]+) (\w+)\[\];", r'auto* \2 = (\1*)dynamic_shared_memory("\2");', source
    )
    text = re.sub(
        rf"__shared__ {aligned}([\w ]+) (\w+)((?:\[\w+\])*);",
        r'static Shared<\1\3> \2_memory; auto& \2 = \2_memory.here("\2");', text,
    )  # fmt: skip
    names = sorted(set(re.findall(r"\b(\w+)_kernel\(", source)))
    exported = 'extern "C" __attribute__((visibility("default"))) void'
    calls = "".join(f"{exported} run_{name}(void** args) {{ call({name}_kernel, args); }}\n" for name in names)
    return f'#include "{DIALECT}"\n#line 1 "kernels.cu"\n{text}\n{calls}'


@cache
def _runtime() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runtime.o")
        subprocess.run([*COMPILE, "-O2", str(RUNTIME), "-o", str(path)], check=True)
        return path.read_bytes()


@cache
def _compiled(source: str, checked: bool) -> ctypes.CDLL:
    """The library of kernels; they are the same for all devices."""
    with tempfile.TemporaryDirectory() as folder:
        for header in ("cuda.h", "cuda_fp16.h", "math_constants.h"):
            Path(folder, header).touch()
        text, kernels, runtime, library = (Path(folder, f"kernels{suffix}") for suffix in (".cpp", ".o", "_.o", ".so"))
        text.write_text(_as_cpp(source))
        runtime.write_bytes(_runtime())
        subprocess.run(
            [*COMPILE, *(CHECKED if checked else FAST), f"-I{folder}", str(text), "-o", str(kernels)], check=True
        )
        subprocess.run(["g++", "-shared", str(kernels), str(runtime), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
    loaded.cuda_emulator_launch.restype = ctypes.c_char_p
    return loaded
