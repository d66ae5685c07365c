"""The verifier: what every graph must satisfy, checked after the frontend and after every pass."""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Set as AbstractSet

from cnnc.diagnostics import CnncError, error
from cnnc.ir.graph import Graph, Node, Param, Value
from cnnc.ir.op import Op, OpError


def verify(
    graph: Graph, legal: Container[type[Op]] | None = None, known: AbstractSet[Value] = frozenset()
) -> Graph:
    """The graph itself, if it is well formed; else CnncError E0999 that names the node and the rule it breaks.

    Every value has a name of its own; operands are inputs of the graph or earlier nodes; the type of a node and the
    shapes of its parameters are what its op makes of its operands; parameters of one name are one; there are outputs;
    and if `legal` is given, ops are of those classes. Nodes of `known`, which nothing can have changed since they were
    verified in another graph, are not asked for their types again.
    """
    values: dict[str, Value] = {}
    params: dict[str, Param] = {}
    for given in graph.inputs:
        if given.name in values:
            raise _broken(given, "another value has its name")
        values[given.name] = given
    for node in graph.nodes:
        if legal is not None and type(node.op) not in legal:
            raise _broken(node, f"op `{node.op.name}` is not legal at this stage")
        for x in node.inputs:
            if values.get(x.name) is not x:
                raise _broken(node, f"operand `{x.name}` is not defined before it")
        if node not in known:
            _check_types(node)
        for param in node.params.values():
            if params.setdefault(param.name, param) is not param:
                raise _broken(node, f"parameter `{param.name}` is not the one of that name used before")
        if values.setdefault(node.name, node) is not node:
            raise _broken(node, "another value has its name")
    if not graph.outputs:
        raise error("E0999", f"graph `{graph.name}` has no output")
    for name, value in graph.outputs.items():
        if values.get(value.name) is not value:
            raise _broken(value, f"output `{name}` is not a value of the graph")
    return graph


def _check_types(node: Node) -> None:
    types = [x.type for x in node.inputs]
    try:
        wanted, expected = node.op.result(*types), node.op.param_types(*types)
    except OpError as e:
        raise _broken(node, f"`{node.op}` refuses its operands: {e}") from None
    if node.type != wanted:
        raise _broken(node, f"its type is {node.type}, `{node.op}` gives {wanted}")
    if (params := {role: x.type for role, x in node.params.items()}) != expected:
        has, takes = ({role: str(x) for role, x in each.items()} for each in (params, expected))
        raise _broken(node, f"its parameters are {has}, `{node.op}` takes {takes}")


def _broken(value: Value, rule: str) -> CnncError:
    return error("E0999", f"the graph is not well formed at `{value.name}`: {rule}")
