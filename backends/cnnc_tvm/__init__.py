"""Native programs by Apache TVM: the targets `cpu` and `cuda`.

`lower` turns a graph into functions and a plan by the tables that `rules_*` fill, `schedule_*` order their loops,
`build_*` make machine code; `runtime` and `*_device` run the plan without any of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

from cnnc.diagnostics import CnncError, error
from cnnc.ir.graph import Graph
from cnnc.ir.types import DType, TensorType
from cnnc.target import Port, Status, Target, ports

if TYPE_CHECKING:
    from cnnc.profiling import Meter
    from cnnc.target import Array, Weights
    from cnnc.tuned import Store
    from cnnc.tuning import Bench, Farm
    from cnnc_tvm.plan import Plan
    from cnnc_tvm.runtime import TvmProgram

PLAN, WEIGHTS = "plan.json", "weights.safetensors"
LIBRARY, INSTRUCTIONS = "program.so", "instructions.json"
KERNELS, KERNEL_SOURCE = "kernels.fatbin", "kernels.cu"


class CpuTarget(Target):
    name = "cpu"
    doc = "native code for CPUs, by TVM and LLVM"
    options: ClassVar = {
        "mcpu": "the CPU to compile for, as LLVM names it: x86-64-v3, znver4; this one's by default",
        "winograd": "`off` forbids Winograd's algorithm, which is faster and rounds more",
        "bf16": "`off` leaves out the instructions of AMX and AVX-512 for convolutions of bf16",
        "linear": "`f16` or `bf16`: what weights of fully connected layers are rounded to, to read half as much",
        "tuned": "`off` leaves out what `cnnc tune` found",
    }
    native = True
    fuses = True
    winograd = True
    mapped = frozenset({WEIGHTS})

    def status(self) -> Status:
        from cnnc_tvm.linker import find_linker

        return _status(find_linker)

    def toolchain(self, options: Mapping[str, str]) -> Mapping[str, str] | None:
        from cnnc_tvm import toolchain
        from cnnc_tvm.linker import find_linker

        try:
            return {
                "tvm": toolchain.tvm(),
                "linker": toolchain.tool(find_linker()),
                "machine": toolchain.machine(),
                "tuned": found.digest() if (found := _store(options)) else "",
            }
        except (PackageNotFoundError, CnncError, OSError):
            return None

    def compile(self, graph: Graph, weights: Weights, **options: str) -> TvmProgram:
        """CnncError E0601 for ops without a rule, E0620 without TVM, E0621 without a linker, E0622 for no CPU,
        E0902 for an option with an unknown value, or weights too large for it."""
        from cnnc_tvm.ffi import import_compiler

        import_compiler()
        from cnnc_tvm.build_cpu import build, machine, needs
        from cnnc_tvm.builder import untuned
        from cnnc_tvm.candidates import Choices
        from cnnc_tvm.instructions import stated
        from cnnc_tvm.lower import lower
        from cnnc_tvm.rules import CPU

        cpu, store = options.get("mcpu", "native"), _store(options)
        allowed = {name: _switch(name, options) for name in ("winograd", "bf16")}
        processor = machine(cpu, **allowed, linear=_element("linear", options))
        lowered = lower(graph, weights, CPU, processor, Choices(store, processor, cpu) if store else untuned)
        library, text = build(lowered.functions, cpu)
        code = {LIBRARY: library, INSTRUCTIONS: stated(sorted({*needs(cpu), *lowered.instructions}))}
        return self._program(ports(graph), lowered.plan, lowered.weights, code, text)

    def meter(self) -> Meter:
        """A meter of what this machine does at best. CnncError as of `compile`."""
        from cnnc_tvm.ffi import import_compiler

        import_compiler()
        from cnnc_tvm.peak import Peak

        return Peak()

    def bench(
        self, graph: Graph, options: Mapping[str, str], farm: Farm | None
    ) -> AbstractContextManager[Bench]:
        """The kernels of a graph, to be measured here or by a farm. CnncErrors as of `compile`, E0610 where nothing can
        be measured, and E0626 for a processor that has more than this one, which is to measure."""
        from cnnc_tvm.ffi import import_compiler, threads

        threads()
        import_compiler()
        from cnnc_tvm.bench_cpu import bench
        from cnnc_tvm.build_cpu import machine, needs
        from cnnc_tvm.instructions import check, stated

        cpu = options.get("mcpu", "native")
        for name in ("winograd", "bf16", "tuned"):
            _switch(name, options)
        _element("linear", options)
        if farm is None:
            check(stated(needs(cpu)))
        return bench(graph, cpu, machine(cpu, winograd=_switch("winograd", options)), farm)

    def load(self, manifest: Mapping[str, Any], files: Mapping[str, Any]) -> TvmProgram:
        code = {name: files[name] for name in (LIBRARY, INSTRUCTIONS)}
        return self._program(_ports(manifest), *_contents(files), code, str)

    def _program(
        self, ports: tuple[tuple[Port, ...], tuple[Port, ...]], plan: Plan, weights: Mapping[str, Array],
        code: Mapping[str, bytes], text: Callable[[], str],
    ) -> TvmProgram:  # fmt: skip
        from cnnc_tvm.cpu_device import CpuDevice
        from cnnc_tvm.instructions import check
        from cnnc_tvm.runtime import TvmProgram

        def device() -> CpuDevice:
            check(code[INSTRUCTIONS])
            return CpuDevice(code[LIBRARY])

        return TvmProgram(self.name, *ports, plan, weights, code, text, device)


class CudaTarget(Target):
    name = "cuda"
    doc = "code for NVIDIA GPUs, by TVM and nvcc or NVRTC"
    options: ClassVar = {"arch": "the GPU architecture to compile for: sm_80 (the default), sm_90, ..."}
    native = True
    fuses = True
    mapped = frozenset({WEIGHTS})

    def status(self) -> Status:
        from cnnc_tvm.cuda_compiler import compiler

        return _status(compiler)

    def toolchain(self, options: Mapping[str, str]) -> Mapping[str, str] | None:
        from cnnc_tvm import toolchain
        from cnnc_tvm.cuda_compiler import DEFAULT_ARCH, compiler

        try:
            arch = options.get("arch", DEFAULT_ARCH)
            return {"tvm": toolchain.tvm(), "compiler": toolchain.tool(compiler()), "arch": arch}
        except (PackageNotFoundError, CnncError, OSError):
            return None

    def compile(self, graph: Graph, weights: Weights, **options: str) -> TvmProgram:
        """No GPU is needed. CnncError E0601 for ops without a rule, E0620 without TVM, E0622 for no architecture,
        E0623 where there is neither nvcc nor NVRTC, E0624 where they refuse the kernels."""
        from cnnc_tvm.cuda_compiler import DEFAULT_ARCH, check_arch, compile_kernels, compiler
        from cnnc_tvm.ffi import import_compiler

        arch = check_arch(options.get("arch", DEFAULT_ARCH))
        compiler()
        import_compiler()
        from dataclasses import replace

        from cnnc_tvm.build_cuda import build
        from cnnc_tvm.lower import lower
        from cnnc_tvm.rules import CUDA

        lowered = lower(graph, weights, CUDA)
        source, kernels = build(lowered.functions, arch)
        code = {KERNELS: compile_kernels(source, arch), KERNEL_SOURCE: source.encode()}
        steps = tuple(step for step in lowered.plan.steps if step.function in kernels)
        return self._program(ports(graph), replace(lowered.plan, steps=steps, kernels=kernels), lowered.weights, code)

    def load(self, manifest: Mapping[str, Any], files: Mapping[str, Any]) -> TvmProgram:
        code = {name: files[name] for name in (KERNELS, KERNEL_SOURCE)}
        return self._program(_ports(manifest), *_contents(files), code)

    def _program(
        self, ports: tuple[tuple[Port, ...], tuple[Port, ...]], plan: Plan, weights: Mapping[str, Array],
        code: Mapping[str, bytes],
    ) -> TvmProgram:  # fmt: skip
        from cnnc_tvm.cuda_device import CudaDevice
        from cnnc_tvm.runtime import TvmProgram

        return TvmProgram(
            self.name, *ports, plan, weights, code,
            lambda: code[KERNEL_SOURCE].decode(), lambda: CudaDevice(code[KERNELS], plan.kernels),
        )  # fmt: skip


def _store(options: Mapping[str, str]) -> Store | None:
    """Where what was tuned is, unless it is left out. CnncError E0902 for a switch that is neither on nor off."""
    from cnnc.tuned import store

    return store() if _switch("tuned", options) else None


def _switch(name: str, options: Mapping[str, str]) -> bool:
    """Whether an option is on, as it is by default."""
    value = options.get(name, "on")
    if value not in ("on", "off"):
        raise error("E0902", f"option `{name}` is `on` or `off`, not `{value}`")
    return value == "on"


def _element(name: str, options: Mapping[str, str]) -> DType:
    """The element type that an option names, f32 by default."""
    value = options.get(name, DType.F32)
    if value not in list(DType):
        raise error("E0902", f"option `{name}` is {', '.join(map(str, DType))}, not `{value}`")
    return DType(value)


def _status(find_tool: Any) -> Status:
    try:
        return Status(True, f"apache-tvm {version('apache-tvm')}, {find_tool()}")
    except PackageNotFoundError:
        return Status(False, "apache-tvm is not installed: pip install 'cnnc[tvm]'")
    except CnncError as e:
        return Status(False, e.diagnostics[0].message)


def _ports(manifest: Mapping[str, Any]) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    inputs, outputs = (
        tuple(Port(x["name"], TensorType.parse(x["type"]), x["doc"]) for x in manifest[side])
        for side in ("inputs", "outputs")
    )
    return inputs, outputs


def _contents(files: Mapping[str, Any]) -> tuple[Plan, dict[str, Array]]:
    """What both targets keep in an artifact beside their code."""
    from cnnc_tvm.plan import Plan
    from cnnc_tvm.stored import arrays

    return Plan.from_json(files[PLAN]), arrays(files[WEIGHTS])
