"""Code for GPUs: TVM writes CUDA C and says how each kernel is launched. No GPU is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.build import split_host_device_mods

from cnnc.diagnostics import error
from cnnc.ir.dim import Dim, Sym, evaluate, floordiv
from cnnc_tvm.lower import first_line
from cnnc_tvm.placing import placed
from cnnc_tvm.plan import Kernel
from cnnc_tvm.schedule_cuda import schedule
from cnnc_tvm.tensor import Function


def build(functions: Mapping[str, Function], arch: str) -> tuple[str, dict[str, Kernel]]:
    """CUDA C, and how to launch its kernels: one for each function that changes something. CnncError E0999 where
    TVM fails."""
    if not functions:  # every output is an input
        return "", {}
    target = tvm.target.Target({"kind": "cuda", "arch": arch, "max_threads_per_block": 1024, "thread_warp_size": 32})
    try:
        bodies = {name: placed(f, schedule(f)).with_attr("global_symbol", name) for name, f in functions.items()}
        # Common subexpressions would become kernel arguments that only TVM's host code knows; nvcc finds them itself.
        with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
            device = _device_functions(tvm.IRModule(bodies), target)
        text = str(tvm.get_global_func("target.build.cuda")(device, target).inspect_source())
        kernels = {gv.name_hint.removesuffix("_kernel"): f for gv, f in device.functions.items()}
        return text, {name: _kernel(bodies[name], kernels[name]) for name in functions if name in kernels}
    except Exception as e:
        raise error("E0999", f"TVM failed to compile the program: {first_line(e)}") from e


def _device_functions(module: Any, target: Any) -> Any:
    """The kernels of the functions, lowered as `tvm.build` does; the host code that launches them is left out."""
    pipeline, _, finish = tirx.get_default_tir_pipeline(target)
    lowered = pipeline(tirx.transform.BindTarget(target.with_host("llvm"))(module))
    ((_, device),) = split_host_device_mods(lowered)[1].items()
    return finish()(device)


def _kernel(body: Any, kernel: Any) -> Kernel:
    """How a kernel is launched, from the scheduled function and the one that TVM made of its loops."""
    position: dict[str, int | str] = {}
    for i, param in enumerate(body.params):
        name = str(param.name)
        tensor = isinstance(param.ty, tirx.BufferType)
        position[f"{name}_ptr" if tensor else name] = i if tensor else name
    sizes: dict[str, Dim] = {}

    def visit(loop: Any) -> None:
        if loop.thread_binding is not None:
            sizes[str(loop.thread_binding.thread_tag)] = _dim(loop.extent)

    tvm_ffi.structural_walk(body.body, (tirx.For, visit))
    args = tuple(position[str(param.name)] for param in kernel.params)
    x, y, z = (sizes.get(f"blockIdx.{axis}", 1) for axis in "xyz")
    a, b, c = (evaluate(sizes.get(f"threadIdx.{axis}", 1), {}) for axis in "xyz")
    return Kernel(args, (x, y, z), (a, b, c))


def _dim(expr: Any) -> Dim:
    """An expression of symbols as a dim."""
    match expr:
        case tirx.IntImm():
            return int(expr.value)
        case tirx.Var():
            return Sym.of(str(expr.name))
        case tirx.Add():
            return _dim(expr.a) + _dim(expr.b)
        case tirx.Sub():
            return _dim(expr.a) - _dim(expr.b)
        case tirx.Mul():
            return _dim(expr.a) * _dim(expr.b)
        case tirx.FloorDiv():
            return floordiv(_dim(expr.a), int(expr.b))
        case _:
            raise ValueError(f"a launch size is {expr}")
