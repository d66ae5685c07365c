"""A GPU as a device, through the CUDA driver that comes with it: no CUDA toolkit and no TVM are needed to run."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from ctypes import byref, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnc.diagnostics import CnncError, error
from cnnc.ir.dim import evaluate
from cnnc.ir.types import DType
from cnnc.target import numpy_dtype
from cnnc_tvm.plan import Kernel, Step

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from cnnc.target import Array

DRIVER = "libcuda.so.1"


class Driver:
    """The CUDA driver's functions, each of which raises CnncError E0625 where the driver reports an error."""

    def __init__(self) -> None:
        """CnncError E0625 where there is no driver or no GPU."""
        try:
            self._library = ctypes.CDLL(DRIVER)
        except OSError:
            raise _no_gpu("there is no CUDA driver") from None
        count = c_int()
        if self._library.cuInit(0) or self._library.cuDeviceGetCount(byref(count)) or not count.value:
            raise _no_gpu("the CUDA driver finds no GPU")
        device, context = c_int(), c_void_p()
        self("cuDeviceGet", byref(device), 0)
        self("cuDevicePrimaryCtxRetain", byref(context), device)
        self._context = context

    def __call__(self, function: str, *args: Any) -> None:
        status = getattr(self._library, function)(*args)
        if status:
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(status, byref(name))
            raise error("E0625", f"the CUDA driver reports {(name.value or b'an error').decode()} from {function}")

    def enter(self) -> None:
        """Make the GPU's context that of the calling thread."""
        self("cuCtxSetCurrent", self._context)


@dataclass(frozen=True)
class Memory:
    """A piece of the GPU's memory, and what keeps it from being freed."""

    address: c_void_p
    whole: Memory | None = None

    @staticmethod
    def make(driver: Driver, size: int) -> Memory:
        """New memory, freed with the last piece of it."""
        memory = Memory(c_void_p())
        driver("cuMemAlloc_v2", byref(memory.address), c_size_t(max(size, 1)))
        weakref.finalize(memory, driver, "cuMemFree_v2", memory.address)
        return memory


class CudaDevice:
    """Runs kernels on the first GPU. CnncError E0625 where there is none, or where it cannot run this code."""

    def __init__(self, code: bytes, kernels: Mapping[str, Kernel]) -> None:
        self._kernels = kernels
        self._driver = Driver()
        self._driver.enter()
        self._module = c_void_p()
        try:
            self._driver("cuModuleLoadData", byref(self._module), code)
        except CnncError as e:
            raise error("E0625", "this GPU cannot run the program", notes=[e.diagnostics[0].message],
                        help="compile it for this GPU: `--arch sm_NN`") from e  # fmt: skip

    def enter(self) -> None:
        self._driver.enter()

    def memory(self, size: int) -> Memory:
        return Memory.make(self._driver, size)

    def part(self, memory: Memory, start: int, size: int) -> Memory:
        return Memory(c_void_p((memory.address.value or 0) + start), memory)

    def view(self, memory: Memory, shape: tuple[int, ...], dtype: DType) -> Memory:
        return memory

    def constant(self, array: Array) -> Memory:
        memory = self.memory(array.nbytes)
        self._write(memory, array)
        return memory

    def writer(self, memory: Memory, shape: tuple[int, ...], dtype: DType) -> Callable[[Array], object]:
        return partial(self._write, memory)

    def reader(self, memory: Memory, shape: tuple[int, ...], dtype: DType) -> Callable[[], Array]:
        return partial(self._read, memory, shape, numpy_dtype(dtype))

    def _write(self, memory: Memory, array: Array) -> None:
        self._driver("cuMemcpyHtoD_v2", memory.address, c_void_p(array.ctypes.data), c_size_t(array.nbytes))

    def _read(self, memory: Memory, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        array = np.empty(shape, dtype)
        self._driver("cuMemcpyDtoH_v2", c_void_p(array.ctypes.data), memory.address, c_size_t(array.nbytes))
        return array

    def call(self, step: Step, args: list[Memory], dims: Mapping[str, int]) -> Callable[[], object]:
        kernel = self._kernels[step.function]
        function = c_void_p()
        self._driver("cuModuleGetFunction", byref(function), self._module, f"{step.function}_kernel".encode())
        values = [args[x].address if isinstance(x, int) else c_int(dims[x]) for x in kernel.args]
        pointers = (c_void_p * len(values))(*(ctypes.cast(byref(value), c_void_p) for value in values))
        sizes = [c_uint(evaluate(dim, dims)) for dim in kernel.grid] + [c_uint(size) for size in kernel.block]

        def run(keep: object = values) -> None:  # the driver reads the arguments where they lie, so they must live on
            self._driver("cuLaunchKernel", function, *sizes, c_uint(0), None, pointers, None)

        return run


def _no_gpu(why: str) -> CnncError:
    return error("E0625", f"the program needs an NVIDIA GPU: {why}", help="run it where there is one; artifacts travel")
