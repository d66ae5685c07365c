"""Running a graph with NumPy: the reference of the project, and the fast path of the `numpy` target.

`evaluate` in float64 on the graph as it was written is what every other target is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from cnnc import memory, ops
from cnnc.ir.dim import Sym
from cnnc.ir.dim import evaluate as evaluate_dim
from cnnc.ir.graph import Graph, Node, Value
from cnnc.ir.types import DType, TensorType
from cnnc.memory import Place
from cnnc.ops.fused import unfused
from cnnc.target import bind_dims, numpy_dtype
from cnnc_numpy.kernels import Array
from cnnc_numpy.kernels.rounding import rounded
from cnnc_numpy.rules import Call, rule

if TYPE_CHECKING:
    from cnnc.target import Weights


@dataclass(frozen=True, slots=True)
class Step:
    """A node, how it is computed, where its result goes, and what its operands are worth afterwards."""

    node: Node
    call: Call
    dead: tuple[Value, ...]
    """Operands that nothing reads after this."""
    in_place: bool = False
    """The result is written over the first operand, which nothing reads after this."""
    place: Place[Value] | None = None
    """The part that the result is of a concatenation to come."""
    copied: tuple[tuple[Value, Place[Value]], ...] | None = None
    """Of a concatenation that other operands are parts of already, those to copy into it, and where to."""

    @property
    def low(self) -> bool:
        """Whether the node is computed in f32 and rounded to the type of 16 bits that it works on."""
        types = {x.type.dtype for x in self.node.inputs}
        return bool(types) and types != {DType.F32} and self.node.type.dtype in types

    @property
    def writes_out(self) -> bool:
        """Whether the kernel is given an array of the plan's to write to."""
        return (self.in_place or self.place is not None) and self.call.takes_out and not self.low


def steps(graph: Graph, share: bool = True) -> tuple[Step, ...]:
    """The nodes in order with their calls and lifetimes; CnncError E0601 for ops without a rule.

    Unless they `share` memory by plan, each result is an array of its own or a view of one.
    """
    rule.check(graph)
    calls = {node: rule[node.op](node.op, *(x.type for x in node.inputs)) for node in graph.nodes}
    last: dict[Value, Node] = {x: node for node in graph.nodes for x in node.inputs}
    outputs = set(graph.outputs.values())
    dead = {
        node: tuple(x for x in dict.fromkeys(node.inputs) if last[x] is node and x not in outputs) for node in calls
    }
    if not share:
        return tuple(Step(node, call, dead[node]) for node, call in calls.items())
    planned = {node: _planned(node, call) for node, call in calls.items() if not call.view}
    views: dict[Value, Value] = {node: node.inputs[0] for node, call in calls.items() if call.view}
    types = {x: x.type for x in graph.users}
    plan = memory.arrange(types, (), views, tuple(planned.values()), outputs)  # the inputs are the caller's

    def step(node: Node, call: Call) -> Step:
        place = plan.places.get(node)
        part = place if place and place.axis is not None else None
        copied = tuple(plan.copied(planned[node])) if plan.joined.get(node) else None
        return Step(node, call, dead[node], node in plan.over, part, copied)

    return tuple(step(node, call) for node, call in calls.items())


def _planned(node: Node, call: Call) -> memory.Step[Value]:
    """The node as a plan of memory sees it. Only parts whose images lie in one piece are written by kernels."""
    axis = node.op.axis if isinstance(node.op, ops.Concat) else 2
    if axis < 2 and all(isinstance(x.type.shape[axis], int) for x in node.inputs):
        return memory.Step(node, node.inputs, axis=axis)
    writable = call.in_place and node.type.rank > 0  # NumPy's results of rank 0 are no arrays
    return memory.Step(node, node.inputs, node.inputs[:1] if writable else ())


def evaluate(
    graph: Graph, weights: Weights, inputs: Mapping[str, Array], dtype: DTypeLike | None = np.float64
) -> dict[str, Array]:
    """The outputs by name, computed in `dtype` throughout; only `cast` rounds to its type on the way.

    With `dtype=None` each node computes in its own type: in f32, and rounded where the graph says f16 or bf16.
    """
    graph = unfused(graph)
    values = run(graph, steps(graph, share=False), weights, inputs, bind_dims(graph.inputs, inputs), dtype)
    return {name: values[x] for name, x in graph.outputs.items()}


def evaluate_nodes(
    graph: Graph, weights: Weights, inputs: Mapping[str, Array], dtype: DTypeLike | None = np.float64
) -> dict[str, Array]:
    """As `evaluate`, but the values of all inputs and nodes, by their names."""
    graph = unfused(graph)
    values = run(graph, steps(graph, share=False), weights, inputs, bind_dims(graph.inputs, inputs), dtype, keep=True)
    return {x.name: value for x, value in values.items()}


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

    def part(place: Place[Value], type: TensorType) -> Array:
        """The part of a concatenation for a value of this type; the first makes room for all."""
        whole = place.block
        if whole not in values:
            shape = tuple(evaluate_dim(dim, dims) for dim in whole.type.shape)
            values[whole] = np.empty(shape, dtype or numpy_dtype(type.dtype))
        return values[whole][place.index(type)]

    def compute(step: Step, out: Array | None) -> Array:
        operands, params = [values[x] for x in step.node.inputs], step.node.params.values()
        attributes = {name: _bound(value, dims) for name, value in step.call.attributes.items()}
        if dtype is None and step.low:
            return rounded(step.call.kernel, *operands, *(weights[x.name] for x in params), **attributes)
        if step.writes_out:
            attributes["out"] = out
        return convert(step.call.kernel(*operands, *(convert(weights[x.name]) for x in params), **attributes))

    with np.errstate(all="ignore"):  # Inf and NaN are values like others
        for step in steps:
            node = step.node
            if step.copied is not None:
                for x, place in step.copied:
                    part(place, x.type)[...] = values[x]
                values[node] = part(step.place or Place(node), node.type)
            elif step.place is not None:
                out = part(step.place, node.type)
                result = compute(step, out)
                if result is not out:
                    out[...] = result
                values[node] = out
            else:
                values[node] = compute(step, values[node.inputs[0]] if step.in_place else None)
            if not keep:
                for x in step.dead:
                    del values[x]
    return values


def _bound(value: Any, dims: Mapping[str, int]) -> Any:
    """An attribute with its symbolic dims replaced by numbers."""
    if isinstance(value, Sym):
        return evaluate_dim(value, dims)
    return tuple(_bound(item, dims) for item in value) if isinstance(value, tuple) else value
