"""Binding: the same graph for given sizes or another element type, with every type inferred anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from cnnc.diagnostics import CnncError, Diagnostic, Help, Label
from cnnc.ir.attrs import DTypeKind
from cnnc.ir.explain import diagnose
from cnnc.ir.graph import Graph, Input, Node, Param, Value
from cnnc.ir.op import MAX_ELEMENTS, Op, OpError, attributes
from cnnc.ir.types import DType, TensorType


def bind(graph: Graph, dims: Mapping[str, int], dtype: DType | None = None) -> Graph:
    """The graph with symbolic dims of its inputs replaced, and with elements of `dtype` where one is given.

    CnncError E0205 for a dim that no input has or a size below 1; E0222 and E0502 for an input that becomes empty or
    too large; and what the ops say of the new sizes. All independent errors are reported: a node fed by a failed one
    is skipped.
    """
    if found := _unknown(graph, dims):
        raise CnncError(tuple(found))
    inputs = tuple(replace(x, type=x.type.bind(dims, dtype)) for x in graph.inputs)
    faults = [_input_faults(x) for x in inputs]
    found = [fault for each in faults for fault in each]
    new: dict[Value, Value] = {old: x for old, x, bad in zip(graph.inputs, inputs, faults, strict=True) if not bad}
    params: dict[str, Param] = {}
    for node in graph.nodes:
        operands = [new[x] for x in node.inputs if x in new]
        if len(operands) < len(node.inputs):
            continue
        op = node.op if dtype is None or node.inputs else _retyped(node.op, dtype)
        try:
            new[node] = Node(op, tuple(operands), _params(node, operands, params), node.name, node.origin)
        except OpError as e:
            found.append(diagnose(e, op, operands, node.origin))
    if found:
        raise CnncError(tuple(found))
    return replace(graph, inputs=inputs, outputs={name: new[x] for name, x in graph.outputs.items()})


def _unknown(graph: Graph, dims: Mapping[str, int]) -> list[Diagnostic]:
    known = sorted(graph.symbols)
    found = []
    for name, size in dims.items():
        if name not in known:
            close = [x for x in known if x.lower() == name.lower()] or get_close_matches(name, known, 1)
            mend = Help(f"did you mean `{close[0]}`?") if close else None
            which = f"they have {', '.join(f'`{x}`' for x in known)}" if known else "all their dimensions are known"
            message = f"the inputs of `{graph.name}` have no dimension `{name}`: {which}"
            found.append(Diagnostic("E0205", message, help=mend))
        elif size < 1:
            found.append(Diagnostic("E0205", f"dimension `{name}` is {size}: a size is at least 1"))
    return found


def _input_faults(x: Input) -> list[Diagnostic]:
    labels = (Label(x.origin.span, str(x.type), primary=True),) if x.origin else ()
    if any(isinstance(dim, int) and dim < 1 for dim in x.type.shape):
        return [Diagnostic("E0222", f"input `{x.name}` is {x.type}: a dimension is empty", labels)]
    if isinstance(x.type.size, int) and x.type.size >= MAX_ELEMENTS:
        message = f"input `{x.name}` is {x.type}: {x.type.size:,} elements, the limit is {MAX_ELEMENTS:,}"
        return [Diagnostic("E0502", message, labels)]
    return []


def _retyped(op: Op, dtype: DType) -> Op:
    """An op without operands with `dtype` as its element type: it has no operand to take that from."""
    changes: dict[str, Any] = {x.name: dtype for x in attributes(type(op)) if isinstance(x.metadata["kind"], DTypeKind)}
    return replace(op, **changes)


def _params(node: Node, operands: list[Value], params: dict[str, Param]) -> dict[str, Param]:
    """The node's parameters in the element type of its operands; `params` has those made so far, for sharing."""
    for param in node.params.values():
        if param.name not in params:
            dtype = operands[0].type.dtype
            same = param.type.dtype == dtype
            params[param.name] = param if same else replace(param, type=TensorType(param.type.shape, dtype))
    return {role: params[param.name] for role, param in node.params.items()}
