"""Machine code for CPUs: TVM's LLVM back end makes an object file, the system's linker a shared library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm.target import codegen

from cnnc.diagnostics import error
from cnnc.ir.types import DType
from cnnc_tvm.conv_shape import AMX, DOT, Machine
from cnnc_tvm.ffi import cores
from cnnc_tvm.instructions import lacking, needed, tiles_granted
from cnnc_tvm.linker import find_linker, link
from cnnc_tvm.lower import first_line
from cnnc_tvm.placing import placed
from cnnc_tvm.schedule_cpu import schedule
from cnnc_tvm.tensor import Function

_GENERIC = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64")
_CONFIG = {
    "tirx.disable_cse_tir": True,  # it fails on some floating-point expressions; LLVM finds them as well
    "tirx.disable_assert": True,  # checks of each argument, half of the code to compile; the plan's arguments fit
}

# Short loops get a scalar rest instead of a masked one: LLVM 22 stores 4 bytes where one masked lane of 2 bytes is left
# (llvm-project#179489), which overwrites what comes after a row of 9 in bf16.
_LLVM_OPTIONS = ["-vectorizer-min-trip-count:uint=0"]


def build(functions: Mapping[str, Function], mcpu: str) -> tuple[bytes, Callable[[], str]]:
    """The shared library of the functions for a CPU (`native` is this one), and how to get its LLVM code as text.

    CnncError E0622 for an unknown CPU, E0621 without a linker, E0999 where TVM fails.
    """
    target = _target(mcpu)
    linker = find_linker()
    try:
        bodies = {name: placed(f, schedule(f)).with_attr("global_symbol", name) for name, f in functions.items()}
        with tvm.transform.PassContext(config=_CONFIG):
            module: Any = tvm.tirx.build(tvm.IRModule(bodies), target)
    except Exception as e:
        raise error("E0999", f"TVM failed to compile the program: {first_line(e)}") from e
    return link(linker, module.write_to_file), lambda: str(module.inspect_source("ll"))


def machine(mcpu: str, *, winograd: bool, bf16: bool = True, linear: DType = DType.F32) -> Machine:
    """The vectors of a CPU, the cores of this one, and what may be done. CnncError E0622 for an unknown CPU."""
    target = _target(mcpu)
    count = cores()
    if codegen.target_has_features("avx512f", target):
        return Machine(16, 32, cores=count, winograd=winograd, linear=linear, pairs=_pairs(mcpu) if bf16 else "")
    lanes = 8 if codegen.target_has_features("avx2", target) else 4
    return Machine(lanes=lanes, registers=16, cores=count, winograd=winograd, linear=linear)


def _pairs(mcpu: str) -> str:
    """The instructions that are the fastest for bf16. AVX-512's are so on AMD alone: processors of Intel begin one of
    them in a cycle, and two of f32, which do half as much each. A system may not grant AMX to what is native."""
    cpu = _cpu(mcpu)
    features = _features(cpu)
    if {"amx-tile", "amx-bf16"} <= features and (mcpu != "native" or tiles_granted()):
        return AMX
    return DOT if "avx512bf16" in features and cpu.startswith("znver") else ""


def needs(mcpu: str) -> list[str]:
    """The instructions that code for a CPU may have. CnncError E0622 for an unknown one."""
    return needed(_features(_cpu(mcpu)))


def _target(mcpu: str) -> Any:
    return tvm.target.Target({"kind": "llvm", "mcpu": _cpu(mcpu), "cl-opt": _LLVM_OPTIONS})


def _cpu(mcpu: str) -> str:
    """LLVM's name of a CPU. For `native` one that lacks nothing here: a virtual machine may hide instructions."""
    if mcpu == "native":
        own = str(codegen.llvm_get_system_cpu())
        return next((name for name in (own, *_GENERIC) if not lacking(needed(_features(name)))), own)
    if not codegen.llvm_is_valid_cpu(mcpu, str(codegen.llvm_get_system_triple())):
        raise error("E0622", f"LLVM knows no CPU `{mcpu}`", help="names are LLVM's: native, x86-64-v3, znver4, ...")
    if {"64bit", "64bit-mode"} & _features(mcpu) == {"64bit-mode"}:  # LLVM would end the process
        raise error("E0622", f"`{mcpu}` is a CPU of 32 bits, this system has 64", help="x86-64 is the least of 64 bits")
    return mcpu


def _features(name: str) -> set[str]:
    """What LLVM says a CPU has."""
    return set(map(str, codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": name}))))
