"""A graph to an ONNX model, checked."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import onnx
from onnx import ModelProto, ValueInfoProto, helper

from cnnc import ops
from cnnc.diagnostics import error
from cnnc.ir.dim import evaluate
from cnnc.ir.graph import Graph, Node, Value
from cnnc.ir.types import DType, TensorType
from cnnc.target import numpy_dtype, unsupported
from cnnc_onnx import rules_detection, rules_norm, rules_pointwise, rules_shape, rules_window  # noqa: F401  (fill `rules`)
from cnnc_onnx.emit import ELEMENT, Emitter, Ref, Rule, UnsupportedError, in_f32, rules

if TYPE_CHECKING:
    from cnnc.target import Weights

_MOVES = (
    ops.Cast, ops.ChannelShuffle, ops.Concat, ops.Constant, ops.Crop, ops.Dropout, ops.Flatten, ops.Reshape, ops.Slice,
    ops.Take, ops.Transpose,
)  # fmt: skip
MAX_WEIGHTS = 2**31 - 2**24
"""Bytes of weights: a protocol buffer, and so an ONNX file, is smaller than 2 GiB, and the nodes need some of it."""


def lower(graph: Graph, weights: Weights, opset: int) -> ModelProto:
    """The model, accepted by the checker and by strict shape inference against our types.

    Tensors are named as the graph's values, those of outputs as the outputs; initializers as the parameters. CnncError
    E0601 where an op cannot be written for this opset, E0510 where the weights do not fit a file.
    """
    rules.check(graph)
    params = graph.params.values()
    size = sum(evaluate(x.type.bytes, {}) for x in params)
    if size > MAX_WEIGHTS:
        raise error("E0510", f"the weights take {size:,} bytes; an ONNX file holds at most {MAX_WEIGHTS:,} of them")
    emitter = Emitter(graph, opset)
    tensors = _emit(graph, emitter)
    outputs = _outputs(graph, emitter, tensors)
    ends = {*outputs, *(x.name for x in graph.inputs)}
    inner = {tensors[x]: x.type for x in graph.nodes if tensors[x] not in ends}
    model = helper.make_model(
        helper.make_graph(
            emitter.nodes,
            graph.name,
            [*(_info(x.name, x.type, x.doc) for x in graph.inputs), *(_info(x.name, x.type) for x in params)],
            [_info(name, value.type) for name, value in zip(outputs, graph.outputs.values(), strict=True)],
            value_info=[_info(name, type) for name, type in inner.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        producer_name="cnnc",
        producer_version=version("cnnc"),
        doc_string=graph.doc,
    )
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    onnx.checker.check_model(model, full_check=True)  # before the weights, which it would copy, take their places
    del model.graph.input[len(graph.inputs) :]
    for x in params:
        array = weights[x.name].astype(numpy_dtype(x.type.dtype), copy=False)
        model.graph.initializer.add(
            name=x.name, dims=array.shape, data_type=ELEMENT[x.type.dtype], raw_data=array.tobytes()
        )
    return model


def _emit(graph: Graph, emitter: Emitter) -> dict[Value, str]:
    """Emit every node; the tensor of each value, which is named as the first output that the value is."""
    wanted: dict[Value, str] = {}
    for output, value in graph.outputs.items():
        if isinstance(value, Node) and value not in wanted:
            wanted[value] = emitter.unique(output)
    tensors: dict[Value, str] = {x: x.name for x in graph.inputs}
    problems: dict[str, str] = {}
    for node in graph.nodes:
        operands = [Ref(tensors[x], x.type) for x in node.inputs]
        params = {role: Ref(param.name, param.type) for role, param in node.params.items()}
        emitter.begin(node.name, node.type, _place(node))
        try:
            result = _rule(node)(node.op, emitter, *operands, **params)
            tensors[node] = emitter.finish(result, wanted.get(node))
        except UnsupportedError as reason:
            problems[node.name], tensors[node] = str(reason), ""
    unsupported("onnx", problems, graph)
    return tensors


def _rule(node: Node) -> Rule:
    """The rule of a node; in bf16, for which ONNX Runtime has kernels of little but data movement, by way of f32."""
    rule = rules[node.op]
    return in_f32(rule) if node.type.dtype is DType.BF16 and not isinstance(node.op, _MOVES) else rule


def _outputs(graph: Graph, emitter: Emitter, tensors: dict[Value, str]) -> list[str]:
    """The tensor of each output: the value's own, or a copy of an input and of a value that is an output already."""
    found: list[str] = []
    for name, value in graph.outputs.items():
        tensor = tensors[value]
        if tensor in found or not (isinstance(value, Node) or tensor == name):
            emitter.begin(name, value.type, "")
            tensor = emitter.finish(emitter("Identity", tensor), emitter.unique(name))
        found.append(tensor)
    return found


def _place(node: Node) -> str:
    """Where the node was written: `resnet.cnn:3:9 in ResNet > layer1: stage(64)`."""
    if node.origin is None:
        return ""
    path = node.origin.frame.path() if node.origin.frame else ()
    return " in ".join([str(node.origin.span), *([" > ".join(path)] if path else [])])


def _info(name: str, type: TensorType, doc: str = "") -> ValueInfoProto:
    """A tensor's type; a symbolic dim is a `dim_param` with the dim's text."""
    shape = [dim if isinstance(dim, int) else str(dim) for dim in type.shape]
    return helper.make_tensor_value_info(name, ELEMENT[type.dtype], shape, doc)
