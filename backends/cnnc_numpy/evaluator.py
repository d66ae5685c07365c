"""Running a graph with NumPy: the reference of the project, and the fast path of the `numpy` target.

`evaluate` in float64 on the graph as it was written is what every other target is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from cnnc.ir.dim import Sym, solve, substitute
from cnnc.ir.dim import evaluate as evaluate_dim
from cnnc.ir.graph import Graph, Input, Node, Value
from cnnc.ir.types import DType
from cnnc.ops.fused import unfused
from cnnc.target import check_shape, ports
from cnnc_numpy.kernels import Array
from cnnc_numpy.kernels.rounding import rounded
from cnnc_numpy.rules import Call, rule

if TYPE_CHECKING:
    from cnnc.target import Weights


@dataclass(frozen=True, slots=True)
class Step:
    """A node, how it is computed, and what its operands are worth afterwards."""

    node: Node
    call: Call
    in_place: bool
    """The result is written over the first operand, which nothing reads after this."""
    dead: tuple[Value, ...]
    """Operands that nothing reads after this."""

    @property
    def low(self) -> bool:
        """Whether the node is computed in f32 and rounded to the type of 16 bits that it works on."""
        types = {x.type.dtype for x in self.node.inputs}
        return bool(types) and types != {DType.F32} and self.node.type.dtype in types


def steps(graph: Graph) -> tuple[Step, ...]:
    """The nodes in order with their calls and lifetimes; CnncError E0601 for ops without a rule."""
    rule.check(graph)
    calls = {node: rule[node.op](node.op, *(x.type for x in node.inputs)) for node in graph.nodes}
    owner: dict[Value, Value] = {x: x for x in graph.inputs}  # whose memory a value may lie in
    for node, call in calls.items():
        owner[node] = owner[node.inputs[0]] if call.view else node
    last: dict[Value, int] = {}  # the last step that reads a value
    last_of_memory: dict[Value, int] = {}  # ... or any value in its memory
    for i, node in enumerate(graph.nodes):
        for x in node.inputs:
            last[x] = last_of_memory[owner[x]] = i
    for x in graph.outputs.values():
        last[x] = last_of_memory[owner[x]] = len(graph.nodes)

    def in_place(i: int, node: Node, call: Call) -> bool:
        if not call.in_place or call.view or node.type.rank == 0:  # NumPy's results of rank 0 are no arrays
            return False
        memory = [owner[x] for x in node.inputs]
        free = not isinstance(memory[0], Input) and last_of_memory[memory[0]] == i
        return free and memory.count(memory[0]) == 1 and node.inputs[0].type == node.type

    return tuple(
        Step(node, call, in_place(i, node, call), tuple(x for x in dict.fromkeys(node.inputs) if last[x] == i))
        for i, (node, call) in enumerate(calls.items())
    )


def evaluate(
    graph: Graph, weights: Weights, inputs: Mapping[str, Array], dtype: DTypeLike | None = np.float64
) -> dict[str, Array]:
    """The outputs by name, computed in `dtype` throughout; only `cast` rounds to its type on the way.

    With `dtype=None` each node computes in its own type: in f32, and rounded where the graph says f16 or bf16.
    """
    graph = unfused(graph)
    values = run(graph, steps(graph), weights, inputs, bind_dims(graph, inputs), dtype)
    return {name: values[x] for name, x in graph.outputs.items()}


def evaluate_nodes(
    graph: Graph, weights: Weights, inputs: Mapping[str, Array], dtype: DTypeLike | None = np.float64
) -> dict[str, Array]:
    """As `evaluate`, but the values of all inputs and nodes, by their names."""
    graph = unfused(graph)
    values = run(graph, steps(graph), weights, inputs, bind_dims(graph, inputs), dtype, keep=True)
    return {x.name: value for x, value in values.items()}


def bind_dims(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, int]:
    """The symbolic dims that these inputs stand for; CnncError E0320 where they contradict each other."""
    dims: dict[str, int] = {}
    for x in graph.inputs:
        for dim, size in zip(x.type.shape, inputs[x.name].shape, strict=True):
            found = solve(substitute(dim, dims), size) or {}
            dims.update({name: bound for name, bound in found.items() if isinstance(bound, int)})
    for port in ports(graph)[0]:
        check_shape(inputs[port.name], port, dims)
    return dims


def run(
    graph: Graph,
    steps: tuple[Step, ...],
    weights: Weights,
    inputs: Mapping[str, Array],
    dims: Mapping[str, int],
    dtype: DTypeLike | None = None,
    keep: bool = False,
) -> dict[Value, Array]:
    """The values of the outputs, or with `keep` of everything; other arrays are let go as soon as they are dead."""

    def convert(x: Array) -> Array:
        return x if dtype is None else x.astype(dtype, copy=False)

    values: dict[Value, Array] = {x: convert(inputs[x.name]) for x in graph.inputs}
    with np.errstate(all="ignore"):  # Inf and NaN are values like others
        for step in steps:
            node = step.node
            operands = [values[x] for x in node.inputs]
            attributes = {name: _bound(value, dims) for name, value in step.call.attributes.items()}
            if dtype is None and step.low:
                parameters = [weights[param.name] for param in node.params.values()]
                values[node] = rounded(step.call.kernel, *operands, *parameters, **attributes)
            else:
                if step.in_place and not keep:
                    attributes["out"] = operands[0]
                parameters = [convert(weights[param.name]) for param in node.params.values()]
                values[node] = convert(step.call.kernel(*operands, *parameters, **attributes))
            if not keep:
                for x in step.dead:
                    del values[x]
    return values


def _bound(value: Any, dims: Mapping[str, int]) -> Any:
    """An attribute with its symbolic dims replaced by numbers."""
    if isinstance(value, Sym):
        return evaluate_dim(value, dims)
    return tuple(_bound(item, dims) for item in value) if isinstance(value, tuple) else value
