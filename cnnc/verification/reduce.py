"""Making the case that shows a fault small."""

from __future__ import annotations

from cnnc.ir.graph import Graph, Input, Node, Value
from cnnc.ir.types import TensorType
from cnnc.target import numpy_dtype
from cnnc.verification.case import Case, reference


def around(case: Case, node: Node, depth: int) -> Case:
    """A node and what lies fewer than `depth` steps before it, at the sizes of the case.

    What they read from outside become inputs, with the values of the reference rounded to their element types.
    """
    near, level = {node}, {node}
    for _ in range(1, depth):
        level = {x for y in level for x in y.inputs if isinstance(x, Node)}
        near |= level
    nodes = [each for each in case.pruned(node).graph.nodes if each in near]
    outside = {x.name: x for each in nodes for x in each.inputs if x not in near}
    computed = {name: x for name, x in outside.items() if isinstance(x, Node)}
    values = {**case.inputs, **reference(Case(case.graph.with_outputs(computed), case.weights, case.inputs))}
    arrays = {name: values[name].astype(numpy_dtype(x.type.dtype)) for name, x in outside.items()}
    new: dict[Value, Value] = {
        x: Input(name, TensorType(arrays[name].shape, x.type.dtype), origin=x.origin) for name, x in outside.items()
    }
    inputs = tuple(x for x in new.values() if isinstance(x, Input))
    for each in nodes:
        new[each] = Node(each.op, tuple(new[x] for x in each.inputs), each.params, each.name, each.origin)
    graph = Graph(case.graph.name, inputs, {node.name: new[node]})
    return Case(graph, {name: case.weights[name] for name in graph.params}, arrays)
