"""The verifier: what every graph must satisfy, checked after the frontend and after every pass."""

from __future__ import annotations

from collections.abc import Container, Iterable
from collections.abc import Set as AbstractSet
from typing import TypeVar

from cnnc.diagnostics import CnncError, error
from cnnc.ir.graph import Graph, Node, Param, Value
from cnnc.ir.op import Op, OpError

Named = TypeVar("Named", Value, Param)


def verify(
    graph: Graph, legal: Container[type[Op]] | None = None, known: AbstractSet[Value] = frozenset()
) -> Graph:
    """The graph itself, if it is well formed; else CnncError E0999 that names the node and the rule it breaks.

    Every value has a name of its own; operands are inputs of the graph or nodes; the type of a node and the
    shapes of its parameters are what its op makes of its operands; parameters of one name are one; there are outputs;
    and if `legal` is given, ops are of those classes. Nodes of `known`, which nothing can have changed since they were
    verified in another graph, are not asked for their types again.
    """
    named: list[Value] = [*graph.inputs, *graph.nodes]
    if len(dict.fromkeys([x.name for x in named])) < len(named):
        raise _broken(_second_of_a_name(named), "another value has its name")
    try:
        _ = graph.uses  # what passes ask for again, and where every operand is looked up
    except KeyError:
        raise _stray(graph, frozenset(named)) from None
    for node in graph.nodes:
        if legal is not None and type(node.op) not in legal:
            raise _broken(node, f"op `{node.op.name}` is not legal at this stage")
        if node not in known:
            _check_types(node)
    if len(graph.params) != len(graph.param_uses):
        param = _second_of_a_name(graph.param_uses)
        node = next(node for node in graph.nodes if param in node.params.values())
        raise _broken(node, f"parameter `{param.name}` is not the one of that name used before")
    if not graph.outputs:
        raise error("E0999", f"graph `{graph.name}` has no output")
    return graph


def _stray(graph: Graph, values: AbstractSet[Value]) -> CnncError:
    """What reads a value that the graph does not have."""
    for node in graph.nodes:
        for x in node.inputs:
            if x not in values:
                return _broken(node, f"operand `{x.name}` is not a value of the graph")
    name, value = next((name, x) for name, x in graph.outputs.items() if x not in values)
    return _broken(value, f"output `{name}` is not a value of the graph")


def _second_of_a_name(named: Iterable[Named]) -> Named:
    """The first of these whose name one before it has."""
    names: set[str] = set()
    for each in named:
        if each.name in names:
            return each
        names.add(each.name)
    raise ValueError("each has a name of its own")


def _check_types(node: Node) -> None:
    types = [x.type for x in node.inputs]
    try:
        wanted, expected = node.op.result(*types), node.op.param_types(*types)
    except OpError as e:
        raise _broken(node, f"`{node.op}` refuses its operands: {e}") from None
    if node.type != wanted:
        raise _broken(node, f"its type is {node.type}, `{node.op}` gives {wanted}")
    params = {role: x.type for role, x in node.params.items()}
    if params != expected:
        has, takes = ({role: str(x) for role, x in each.items()} for each in (params, expected))
        raise _broken(node, f"its parameters are {has}, `{node.op}` takes {takes}")


def _broken(value: Value, rule: str) -> CnncError:
    return error("E0999", f"the graph is not well formed at `{value.name}`: {rule}")
