"""How far from the reference each output of a network may be, derived from the bounds of its nodes.

The network is evaluated again in float64 with each place of each node moved, up or down at random, by the largest error
that was ever measured at any place of such a node: 5*u*S for a sum, more for a convolution by Winograd's algorithm. The
bound is the largest deviation of the output that this makes, and no less than the output's own op allows. Signs are
random since those of rounding are; what rounds one way only, as truncation does, is a fault to be found. The errors of
real programs are some 20 times smaller, since hardly a place has the largest one, which leaves room for what passes do
to values on the way: folded weights are rounded once more (c + 4 for c at worst), merged layers sum other terms.

Where values are stored in f16 or bf16, each is moved by what rounding it does at most, and the errors of real programs
are a half of that: `ROOM` times the deviation is what an output of few places, which may move little by chance, needs.

A worst-case analysis, error(y) = |W|*error(x) + c*u*S, says more than 1e-5 of the largest value after two or three
layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from cnnc import ops
from cnnc.ir.graph import Graph, Input, Node, Value
from cnnc.ir.types import DType
from cnnc.target import numpy_dtype
from cnnc.verification.case import Case, reference
from cnnc.verification.node_bound import EXACT, MEASURED, U_OUT, U, bound_on

if TYPE_CHECKING:
    from cnnc.target import Array, Weights

RUNS: Final = 8
"""Evaluations with moved values: an output of few places may move little by chance, though not as often."""
ROOM: Final = 3
"""How many times the largest deviation is allowed where f16 or bf16 is among the types: an output of one place whose
deviations are normal, and its error uniform, is beyond it once in a hundred thousand."""


def network_bounds(case: Case, *, winograd: bool = False) -> dict[str, float]:
    """The absolute bound of each output: of the largest deviation at any of its places.

    With `winograd` convolutions may be computed by that algorithm, where it can.
    """
    graph = case.graph
    values = reference(Case(graph.with_outputs({x.name: x for x in graph.users}), case.weights, case.inputs))
    stored: dict[Value, Array] = {x: values[x.name].astype(numpy_dtype(x.type.dtype)) for x in graph.users}
    bounds = {name: _own(x, stored, case.weights, winograd) for name, x in graph.outputs.items()}
    rounding = [node for node in graph.nodes if not isinstance(node.op, EXACT)]
    moves = {node.name: _move(node, stored, case.weights, winograd) for node in rounding}
    moved, errors = _moved(graph)
    room = ROOM if has_16_bits(graph) else 1
    rng = np.random.default_rng(0)
    for _ in range(RUNS):
        drawn = {x.name: moves[name] * rng.choice([-1.0, 1.0], moves[name].shape) for name, x in errors.items()}
        for name, found in reference(Case(moved, case.weights, {**case.inputs, **drawn})).items():
            with np.errstate(invalid="ignore"):  # Inf - Inf
                bounds[name] = max(bounds[name], room * largest(found - values[graph.outputs[name].name]))
    return bounds


def has_16_bits(graph: Graph) -> bool:
    """Whether f16 or bf16 is among the types of the values."""
    return any(x.type.dtype is not DType.F32 for x in graph.uses)


def largest(values: Array) -> float:
    """The largest finite absolute value."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def _own(x: Value, values: Mapping[Value, Array], weights: Weights, winograd: bool) -> float:
    """The bound of an output whose operands are right; that of two roundings at least."""
    rounding = 2 * (U + U_OUT[x.type.dtype]) * largest(values[x].astype(np.float64))
    if not isinstance(x, Node):
        return rounding
    return max(rounding, largest(bound_on(x, values, weights, winograd=winograd)[1]))


def _move(node: Node, values: Mapping[Value, Array], weights: Weights, winograd: bool) -> Array:
    """By how much each place of a node is moved."""
    bound = bound_on(node, values, weights, MEASURED, winograd=winograd)[1]
    move = np.maximum(bound, (U + U_OUT[node.type.dtype]) * np.abs(values[node].astype(np.float64)))
    return np.where(np.isfinite(move), move, 0)


def _moved(graph: Graph) -> tuple[Graph, dict[str, Input]]:
    """The graph with an input, its error, added to each node that rounds; these inputs by the names of the nodes."""
    errors: dict[str, Input] = {}

    def move(node: Node, operands: tuple[Value, ...]) -> Value:
        new = Node(node.op, operands, node.params, node.name)
        if isinstance(node.op, EXACT):
            return new
        errors[node.name] = Input(f"{node.name}.error", node.type)
        return Node(ops.Add(), (new, errors[node.name]), {}, f"{node.name}.moved")

    moved = graph.rebuild(move)
    return replace(moved, inputs=(*graph.inputs, *errors.values())), errors
