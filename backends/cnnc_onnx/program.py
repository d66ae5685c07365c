"""Running an ONNX model by ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto

from cnnc.diagnostics import CnncError, error
from cnnc.files import replacing
from cnnc.ir.dim import evaluate, parse_dim
from cnnc.ir.types import TensorType
from cnnc.target import Port, Program, numpy_dtype
from cnnc_onnx.emit import ELEMENT

if TYPE_CHECKING:
    from cnnc.target import Array

MEMBER = "model.onnx"


class OnnxProgram(Program):
    """A model as bytes and, from the first run on, a session of ONNX Runtime on the CPU with its default threads."""

    suffix = ".onnx"

    def __init__(self, model: ModelProto) -> None:
        """Takes the model over: of the object only the skeleton is kept, with inputs in the place of the weights."""
        inputs, outputs = (tuple(map(_port, values)) for values in (model.graph.input, model.graph.output))
        super().__init__("onnx", inputs, outputs)
        self.data = model.SerializeToString(deterministic=True)
        weights = [onnx.helper.make_tensor_value_info(x.name, x.data_type, x.dims) for x in model.graph.initializer]
        del model.graph.initializer[:]
        model.graph.input.extend(weights)
        self._skeleton = model

    @staticmethod
    def parse(data: bytes) -> OnnxProgram:
        """The program of a model that cnnc wrote; CnncError E0470 for other bytes."""
        try:
            model = ModelProto.FromString(data)
            if not _is_plain(model):
                raise ValueError("it has data in other files, subgraphs or functions")
            onnx.checker.check_model(model)
            return OnnxProgram(model)
        except (DecodeError, onnx.checker.ValidationError, ValueError, KeyError) as e:
            reason = str(e).partition("\n")[0]
            raise error("E0470", f"`{MEMBER}` is not an ONNX model that cnnc wrote: {reason}") from e

    def run(self, inputs: dict[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        """Reads and writes the arrays in place, which also serves bf16: ONNX Runtime knows no NumPy arrays of it."""
        binding = self._session.io_binding()
        results = {}
        for port in self.inputs:
            x = inputs[port.name]
            binding.bind_input(port.name, "cpu", 0, ELEMENT[port.type.dtype], x.shape, x.ctypes.data)
        for port in self.outputs:
            if port.name in inputs:  # of a tensor that is an input as well ONNX Runtime makes no copy
                results[port.name] = inputs[port.name].copy()
                continue
            shape = tuple(evaluate(dim, dims) for dim in port.type.shape)
            y = results[port.name] = np.empty(shape, numpy_dtype(port.type.dtype))
            binding.bind_output(port.name, "cpu", 0, ELEMENT[port.type.dtype], y.shape, y.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except RuntimeError as e:
            raise self._stopped(str(e), inputs) from e
        return results

    def files(self) -> dict[str, bytes]:
        return {MEMBER: self.data}

    def export(self, path: Path) -> None:
        with replacing(path) as new:
            new.write_bytes(self.data)

    def source(self) -> str:
        """The model in ONNX's text form; the weights stand among the inputs."""
        return str(onnx.printer.to_text(self._skeleton))

    @cached_property
    def _session(self) -> Any:
        """CnncError E0671 where ONNX Runtime has no kernel for a node in this opset."""
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        try:
            return onnxruntime.InferenceSession(self.data, options, providers=["CPUExecutionProvider"])
        except NoKernel as e:
            raise self._no_kernel(str(e)) from e

    def _no_kernel(self, message: str) -> CnncError:
        """E0671 of "Could not find an implementation for Conv(22) node with name 'layer1.0.conv1'"."""
        found = re.search(r"implementation for (\w+)\(\d+\) node with name '(.*)'", message)
        kind, name = found.groups() if found else ("an op", "")
        return error(
            "E0671",
            f"ONNX Runtime has no kernel for `{kind}` of node `{name}`, opset {self._skeleton.opset_import[0].version}",
            help="leave the option `opset` out, or save the model for a runtime that has the kernel",
            notes=self._place(name),
        )

    def _stopped(self, message: str, inputs: dict[str, Array]) -> CnncError:
        """E0672 of "... running Conv node. Name:'logits_nchwc' ...": optimised nodes are named as their outputs."""
        found = re.search(r"Name:'(.*?)(?:_nchwc)?'", message)
        name = found[1] if found else ""
        shapes = ", ".join(f"`{port.name}` {list(inputs[port.name].shape)}" for port in self.inputs)
        help = "the inputs may be too small for a kernel in the network"
        return error(
            "E0672", f"ONNX Runtime stopped at node `{name}`; inputs: {shapes}", help=help, notes=self._place(name)
        )

    def _place(self, name: str) -> list[str]:
        """A note of where a node, known by its name or an output's, was written, if that is known."""
        nodes = [x for x in self._skeleton.graph.node if name in (x.name, *x.output)]
        places = [x.doc_string for x in nodes[:1] if x.doc_string]
        return [f"written at {place}" for place in places]


_PLAIN = {
    AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.STRING, AttributeProto.TENSOR,
}  # fmt: skip
_DTYPE = {code: dtype for dtype, code in ELEMENT.items()}


def _is_plain(model: ModelProto) -> bool:
    """Whether everything is in the model itself, where it can be seen: nothing that makes ONNX Runtime open a file."""
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    tensors = [*model.graph.initializer, *(attribute.t for attribute in attributes)]
    return (
        all(attribute.type in _PLAIN for attribute in attributes)
        and not any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors)
        and not (model.functions or model.graph.sparse_initializer)
    )


def _port(value: ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    shape = tuple(parse_dim(d.dim_param) if d.dim_param else d.dim_value for d in tensor.shape.dim)
    return Port(value.name, TensorType(shape, _DTYPE[tensor.elem_type]), value.doc_string)
