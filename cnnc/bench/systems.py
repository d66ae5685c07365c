"""The systems that `cnnc bench` knows: what each is given, and how it loads and runs that.

The functions here run in a worker, the process that a system has for itself; its library is imported nowhere else.
Each takes the file of a model, arrays for its inputs, the element type it is in throughout and a number of threads,
and gives a function that runs the model once. Peers use what their documentation recommends for one request at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from cnnc.ir.types import DType
from cnnc.target import numpy_dtype, target

if TYPE_CHECKING:
    from torch import nn

    from cnnc.target import Array, Program

Run: TypeAlias = "Callable[[], Mapping[str, Array]]"
"""Runs a loaded model on its inputs once; the outputs by name are good until the next run."""


@dataclass(frozen=True)
class System:
    """A system. `package` is the distribution it comes in, `target` the target of cnnc that writes the model for it,
    `suffix` the ending of the file. Those of `cnnc` itself depend on the target that is compared."""

    package: str
    target: str
    suffix: str
    load: Callable[[Path, Mapping[str, Array], DType, int], Run]

    @property
    def version(self) -> str:
        return version(self.package)

    def missing(self) -> str:
        """Why it cannot run here, as far as can be told without trying; '' if nothing is missing."""
        try:
            version(self.package)
        except PackageNotFoundError:
            return f"{self.package} is not installed: pip install 'cnnc[bench]'"
        status = target(self.target).status()
        return "" if status.works else status.detail


def _cnnc(path: Path, inputs: Mapping[str, Array], dtype: DType, threads: int) -> Run:
    """The threads are set by the environment, which TVM and BLAS libraries read when they are loaded."""
    from cnnc.artifact import load_program

    program = load_program(path, trust=True)  # the process that started this one has just written it
    return lambda: program(**inputs)


def _onnxruntime(path: Path, inputs: Mapping[str, Array], dtype: DType, threads: int) -> Run:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors are raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names, binding = [x.name for x in session.get_outputs()], session.io_binding()
    kind, element = numpy_dtype(dtype), {DType.F32: 1, DType.F16: 10, DType.BF16: 16}[dtype]  # of ONNX's TensorProto
    results: dict[str, Array] = {}

    def run() -> dict[str, Array]:
        # By their addresses: it knows no NumPy arrays of bf16.
        for name, x in inputs.items():
            binding.bind_input(name, "cpu", 0, element, x.shape, x.ctypes.data)
        for name, x in results.items():
            binding.bind_output(name, "cpu", 0, element, x.shape, x.ctypes.data)
        session.run_with_iobinding(binding)
        return results

    for name in names:
        binding.bind_output(name, "cpu")
    run()
    results = {name: np.empty(x.shape(), kind) for name, x in zip(names, binding.get_outputs(), strict=True)}
    return run


def _openvino(path: Path, inputs: Mapping[str, Array], dtype: DType, threads: int) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": dtype.value, "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }  # fmt: skip
    model = openvino.Core().compile_model(path, "CPU", settings)
    request, names = model.create_infer_request(), [x.any_name for x in model.outputs]

    def run() -> dict[str, Array]:
        found = request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        return {name: x.view(numpy_dtype(dtype)) for name, x in zip(names, found.values(), strict=True)}  # bf16 as f16

    return run


class _Trainable(Protocol):
    """What the target `torch` offers beside programs."""

    def module(self) -> nn.Module: ...


def _torch(path: Path, inputs: Mapping[str, Array], dtype: DType, threads: int) -> Run:
    return _module(path, inputs, dtype, threads, lambda module: module)


def _torch_compile(path: Path, inputs: Mapping[str, Array], dtype: DType, threads: int) -> Run:
    import torch

    return _module(path, inputs, dtype, threads, torch.compile)


def _module(
    path: Path, inputs: Mapping[str, Array], dtype: DType, threads: int, prepare: Callable[[nn.Module], Any]
) -> Run:
    import numpy as np
    import torch

    from cnnc.artifact import load_program

    torch.set_num_threads(threads)
    program: Program = load_program(path)
    module, kind = prepare(cast(_Trainable, program).module().eval()), numpy_dtype(dtype)
    # As bytes: it knows no NumPy arrays of bf16.
    given = [torch.from_numpy(inputs[port.name].view(np.uint8)) for port in program.inputs]
    tensors = [x.view(getattr(torch, kind.name)) for x in given]

    def run() -> dict[str, Array]:
        with torch.inference_mode():
            found = module(*tensors)
        outputs = found if isinstance(found, dict) else {program.outputs[0].name: found}
        # As bytes again, which a tensor without dims has not.
        flat = {name: x.reshape(-1).view(torch.uint8).numpy().view(kind) for name, x in outputs.items()}
        return {name: x.reshape(outputs[name].shape) for name, x in flat.items()}

    return run


CNNC: Final = "cnnc"
SYSTEMS: Final[Mapping[str, System]] = {
    CNNC: System("cnnc", "", ".cnnp", _cnnc),
    "onnxruntime": System("onnxruntime", "onnx", ".onnx", _onnxruntime),
    "openvino": System("openvino", "onnx", ".onnx", _openvino),
    "torch": System("torch", "torch", ".cnnp", _torch),
    "torch.compile": System("torch", "torch", ".cnnp", _torch_compile),
}
PEERS: Final = tuple(name for name in SYSTEMS if name != CNNC)
