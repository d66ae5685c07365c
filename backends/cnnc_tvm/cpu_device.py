"""The CPU as a device: memory of NumPy's, functions of a shared library called through TVM's runtime."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnc.diagnostics import CnncError, error
from cnnc.ir.types import DType
from cnnc.memory import ALIGNMENT
from cnnc.target import numpy_dtype
from cnnc_tvm.ffi import import_runtime, threads
from cnnc_tvm.plan import Step

if TYPE_CHECKING:
    from cnnc.target import Array

_process: int | None = None
"""The process in which programs run."""
_DTYPES = {DType.F32: "float32", DType.F16: "float16", DType.BF16: "uint16"}


class CpuDevice:
    """Runs the functions of a shared library. CnncError E0620 without TVM's runtime, E0626 where the system refuses the
    library, or forked from a process in which programs ran."""

    def __init__(self, library: bytes) -> None:
        self._ffi: Any = import_runtime()
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(library)
            file.flush()
            try:
                self._library = self._ffi.load_module(os.fspath(file.name))
            except RuntimeError as e:  # what TVM makes of the loader's words
                reason = str(e).strip().rpartition(f"{file.name}: ")[2]
                raise error(
                    "E0626", f"this machine cannot load the code of the program: {reason}",
                    help="compile it here; where temporary files may not be executed, TMPDIR=DIR puts them elsewhere",
                ) from e  # fmt: skip
        self._view = self._ffi.get_global_func("runtime.TVMTensorCreateView")

    def enter(self) -> None:
        """CnncError E0626 in a process that was forked from one which has run programs: the threads that loops wait for
        are not in it."""
        global _process
        process = os.getpid()
        if _process is None:
            _process = process
        elif _process != process and threads() > 1:
            raise error(
                "E0626", "a program for `cpu` has run before this process was forked, without the threads it ran in",
                help='start processes by `multiprocessing.get_context("spawn")`, or set TVM_NUM_THREADS=1',
            )  # fmt: skip

    def memory(self, size: int) -> Array:
        whole = np.empty(size + ALIGNMENT, np.uint8)
        start = -whole.ctypes.data % ALIGNMENT
        return whole[start : start + size]

    def part(self, memory: Array, start: int, size: int) -> Array:
        return memory[start : start + size]

    def view(self, memory: Array, shape: tuple[int, ...], dtype: DType) -> Any:
        return self._view(self._ffi.from_dlpack(memory), self._ffi.Shape(shape), self._ffi.dtype(_DTYPES[dtype]), 0)

    def constant(self, array: Array) -> Array:
        own = array.reshape(-1).view(np.uint8)
        if own.ctypes.data % ALIGNMENT == 0:
            return own
        memory = self.memory(array.nbytes)
        memory[...] = own
        return memory

    def writer(self, memory: Array, shape: tuple[int, ...], dtype: DType) -> Callable[[Array], object]:
        return partial(_array(memory, shape, dtype).__setitem__, ...)

    def reader(self, memory: Array, shape: tuple[int, ...], dtype: DType) -> Callable[[], Array]:
        return _array(memory, shape, dtype).copy

    def call(self, step: Step, args: list[Any], dims: Mapping[str, int]) -> Callable[[], object]:
        function = self._library.get_function(step.function)
        bound = (*args, *(dims[name] for name in step.dims))

        def run() -> None:
            try:
                function(*bound)
            except Exception as e:
                raise _failed(step, e) from e

        return run


def _array(memory: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """The memory as an array."""
    kind = numpy_dtype(dtype)
    return memory[: math.prod(shape) * kind.itemsize].view(kind).reshape(shape)


def _failed(step: Step, e: Exception) -> CnncError:
    nodes, reason = "`, `".join(step.nodes), str(e).splitlines()[-1]
    return error("E0999", f"`{step.function}`, which computes `{nodes}`, failed: {reason}")
