"""The graph as JSON: what the text form holds, for tools. What is written reads back equal.

    {"format": 1, "name": "Tiny", "doc": "",
     "inputs": [{"name": "image", "type": "f32[N, 3, 32, 32]", "doc": ""}],
     "nodes": [{"name": "stem", "op": "conv", "attributes": {"c": 16, "k": [3, 3], "pad": [1, 1, 1, 1]},
                "inputs": ["image"], "type": "f32[N, 16, 32, 32]", "params": {}}],
     "outputs": {"features": "stem"}}

Attributes at their default are left out, and so are parameters that are as the op would make them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from cnnc.diagnostics import CnncError, error
from cnnc.ir.assemble import Assembly, Named, make_op, named_params
from cnnc.ir.graph import Graph, Node
from cnnc.ir.op import Init, Op, attributes

FORMAT: Final = 1
T = TypeVar("T")


def to_json(graph: Graph) -> dict[str, Any]:
    """The graph as plain data for `json.dumps`."""
    return {
        "format": FORMAT,
        "name": graph.name,
        "doc": graph.doc,
        "inputs": [{"name": x.name, "type": str(x.type), "doc": x.doc} for x in graph.inputs],
        "nodes": [_node_json(node) for node in graph.nodes],
        "outputs": {name: x.name for name, x in graph.outputs.items()},
    }


def from_json(data: object) -> Graph:
    """The graph of data from `json.loads`; CnncError E0405 for data that is no graph of this format."""
    try:
        version = _get(data, "format", int)
        if version != FORMAT:
            raise _invalid(f"its format is {version}, this cnnc reads {FORMAT}")
        assembly = Assembly()
        for x in _get(data, "inputs", list):
            assembly.input(_get(x, "name", str), _get(x, "type", str), _get(x, "doc", str))
        for x in _get(data, "nodes", list):
            _read_node(x, assembly)
        outputs = {name: str(x) for name, x in _get(data, "outputs", dict).items()}
        return assembly.graph(_get(data, "name", str), outputs, _get(data, "doc", str))
    except ValueError as e:
        raise _invalid(str(e)) from None


def _node_json(node: Node) -> dict[str, Any]:
    params = {
        role: {"name": x.name, **({"init": str(x.init), "trainable": x.trainable} if x.init else {})}
        for role, x in named_params(node).items()
    }
    return {
        "name": node.name,
        "op": node.op.name,
        "attributes": _attributes_json(node.op),
        "inputs": [x.name for x in node.inputs],
        "type": str(node.type),
        "params": params,
    }


def _attributes_json(op: Op) -> dict[str, Any]:
    values = {x.metadata["name"]: (getattr(op, x.name), x.default) for x in attributes(type(op))}
    return {name: _plain(value) for name, (value, default) in values.items() if value != default}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, str | Init | Op) else value


def _read_node(data: object, assembly: Assembly) -> None:
    op = make_op(_get(data, "op", str), [], _get(data, "attributes", dict))
    inputs = [str(x) for x in _get(data, "inputs", list)]
    named = {role: _read_param(x) for role, x in _get(data, "params", dict).items()}
    assembly.node(_get(data, "name", str), op, inputs, named, _get(data, "type", str))


def _read_param(data: object) -> Named:
    if isinstance(data, Mapping) and "init" in data:
        return Named(_get(data, "name", str), Init.parse(_get(data, "init", str)), _get(data, "trainable", bool))
    return Named(_get(data, "name", str))


def _get(data: object, key: str, kind: type[T]) -> T:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"`{key}` is missing or not of the right kind")
    return value


def _invalid(reason: str) -> CnncError:
    return error("E0405", f"the data is no graph: {reason}")
