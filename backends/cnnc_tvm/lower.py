"""From a graph to functions and a plan: which results are stored, and which are computed where they are used.

A node's result stays an expression until somebody needs it in memory. An element-wise node takes the expressions of its
operands into its own, so that a convolution, its normalisation, its activation and the sum after it are one function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx

from cnnc import ops
from cnnc.diagnostics import CnncError, Diagnostic, Label, error
from cnnc.ir.graph import Graph, Node, Value
from cnnc.ir.op import Op
from cnnc.ir.types import DType
from cnnc.ops.fused import chain
from cnnc.target import Rules, numpy_dtype
from cnnc_tvm import (
    rules_dense,
    rules_dense_cpu,
    rules_detection,
    rules_norm,
    rules_pointwise,
    rules_pool,
    rules_roi,
    rules_shape,
)  # fmt: skip
from cnnc_tvm.builder import Builder, Tuned, untuned
from cnnc_tvm.conv_shape import Machine
from cnnc_tvm.placing import place
from cnnc_tvm.plan import Plan
from cnnc_tvm.rules import Rule
from cnnc_tvm.tensor import Function, Tensor, loaded, stored, written_out

if TYPE_CHECKING:
    from cnnc.target import Array, Weights

TABLES = (
    rules_dense, rules_dense_cpu, rules_detection, rules_norm, rules_pointwise, rules_pool, rules_roi, rules_shape,
)  # fmt: skip
"""The modules that fill the tables of rules."""

POINTWISE: frozenset[type[Op]] = frozenset({
    ops.Abs, ops.Add, ops.BatchNorm, ops.Cast, ops.Clip, ops.Div, ops.Dropout, ops.Elu, ops.Exp, ops.Gelu,
    ops.HardSigmoid, ops.HardSwish, ops.LeakyRelu, ops.Log, ops.Maximum, ops.Minimum, ops.Mul, ops.Neg, ops.Normalize,
    ops.Prelu, ops.Relu, ops.Scale, ops.Selu, ops.Sigmoid, ops.Silu, ops.Sqrt, ops.Step, ops.Sub, ops.Tanh,
})  # fmt: skip
"""Ops each element of whose result reads each operand of its shape once, at its own place."""

MOVING: frozenset[type[Op]] = frozenset({
    ops.ChannelShuffle, ops.Concat, ops.Crop, ops.Pad, ops.PixelShuffle, ops.Slice, ops.Transpose,
})  # fmt: skip
"""Ops that read an element of their operands at most once."""

CHOOSING: frozenset[type[Op]] = frozenset({
    ops.Abs, ops.ChannelShuffle, ops.Concat, ops.Crop, ops.Dropout, ops.GlobalMaxPool, ops.Maximum, ops.MaxPool,
    ops.Minimum, ops.Neg, ops.PixelShuffle, ops.ReduceMax, ops.ReduceMin, ops.Relu, ops.Slice, ops.Step, ops.Transpose,
})  # fmt: skip
"""Ops whose results are elements of their operands but for the sign, 0 or 1, which every type has."""

_MAX_LABEL = 48
_MAX_SIZE = 1_000
"""Of an expression that takes in others: TVM's time to compile grows exponentially with the functions in it."""


@dataclass(frozen=True)
class Lowered:
    """Functions to schedule and build, the plan that calls them and the weights it reads, packed where rules asked."""

    functions: dict[str, Function]
    plan: Plan
    weights: dict[str, Array]
    instructions: frozenset[str]
    """What kernels need that LLVM does not choose by itself, by Linux's names."""


def lower(
    graph: Graph, weights: Weights, rules: Rules[Rule], machine: Machine | None = None, tuned: Tuned = untuned
) -> Lowered:
    """The graph by these rules, with images in blocks of channels as wide as a machine's vectors.

    CnncError E0601 for ops without a rule, E0999 where a rule fails.
    """
    rules.check(graph)
    b = Builder(weights, machine, tuned, reserved=graph.symbols)
    values: dict[Value, Tensor] = {x: b.input(x.type) for x in graph.inputs}
    inputs = {x.name: values[x] for x in graph.inputs}
    wanted = set(graph.outputs.values())
    outputs: dict[Value, Tensor] = {x: values[x] for x in graph.inputs}
    for node in graph.nodes:
        b.node, b.label = node.name, node.op.name
        try:
            fused = isinstance(node.op, ops.Fused)
            result = _fused(b, node, values, rules) if fused else _result(b, node, values, rules, _rounds(node))
            users = len(graph.users[node])
            if node in wanted:
                values[node] = b.store(result) if users else b.plain(result)
                outputs[node] = b.plain(values[node])
            else:
                values[node] = result if users == 1 or result.within else b.store(result)
        except CnncError:
            raise
        except Exception as e:  # whatever TVM raises: its own words are no use to the author of a model
            raise at_node("E0999", f"lowering `{node.op}` failed: {first_line(e)}", node) from e
    functions, plan = place(b, inputs, {name: outputs[x] for name, x in graph.outputs.items()})
    read = {*plan.outputs.values(), *(i for step in plan.steps for i in step.args)}
    used = {plan.tensors[i].memory for i in read}
    constants = {name: array for name, array in b.constants.items() if name in used}
    # The program reads its constants where they lie: what was not rearranged is the caller's, who may change it.
    own = {name: array.copy() if array is weights.get(name) else array for name, array in constants.items()}
    return Lowered(functions, plan, own, frozenset(b.instructions))


def _fused(b: Builder, node: Node, values: dict[Value, Tensor], rules: Rules[Rule]) -> Tensor:
    """The result of a layer with its epilogue, which takes in the layer's expression; other operands are in memory."""
    for x in node.inputs[1:]:
        values[x] = b.readable(values[x])
    assert isinstance(node.op, ops.Fused)
    wide, result = node.op.wide, values[node.inputs[0]]
    for part in chain(node, node.inputs):
        last = part.name == node.name
        result = _result(b, part, values, rules, last if wide else _rounds(part))
        if result.loops:
            result = replace(result, node=node.name)  # all that is computed for a part is for the node
        values[part] = result
    return result


def _result(b: Builder, node: Node, values: dict[Value, Tensor], rules: Rules[Rule], rounds: bool) -> Tensor:
    """The node's result, rounded to its type or not, stored or not, named after the nodes it takes in."""
    operands = _operands(b, node, values)
    params = {role: b.param(param) for role, param in node.params.items()}
    result = rules[node.op](b, node.op, node.type, *operands, **params)
    if type(node.op) in POINTWISE and result.loops and _size(result) > _MAX_SIZE:
        result = rules[node.op](b, node.op, node.type, *map(b.store, operands), **params)
    if result.loops is None or (result in operands and not rounds):
        return result
    exact = result
    low = node.type.dtype
    if rounds and low is not DType.F32:  # as if it had been stored
        result = replace(exact, te=None, element=lambda *i: loaded(stored(exact[i], low), low))
    joined = result.kernel.rows.between if result.kernel and result.kernel.rows else ()
    taken = [x for x in operands if x.loops and (x in joined or x.kernel in (None, result.kernel))]
    label = "_".join([*dict.fromkeys(x.label for x in taken), node.op.name])
    heart = next((x.node for x in taken if x.reduces and x not in joined), node.name)
    return replace(result, type=node.type, label=label[:_MAX_LABEL], node=heart)


def _rounds(node: Node) -> bool:
    """Whether a node on numbers of its type may give others."""
    if isinstance(node.op, ops.Clip):
        dtype = numpy_dtype(node.type.dtype)
        return any(float(np.asarray(x, dtype)) != x for x in (node.op.low, node.op.high))
    return type(node.op) not in CHOOSING


def _size(x: Tensor) -> int:
    """How large TVM makes the expression of an element."""
    return written_out(x[tuple(tirx.Var(f"i{axis}", "int32") for axis in range(x.type.rank))])


def _operands(b: Builder, node: Node, values: dict[Value, Tensor]) -> list[Tensor]:
    """The operands, stored where the node cannot take their expressions into its own: of two reductions one is stored.

    A slice of a stored tensor is read where it lies. A convolution decides itself whether to store its image or to
    take in what makes it.
    """
    found: list[Tensor] = []
    reduces = False
    for x in reversed(node.inputs):  # of several convolutions under a sum the last is taken in
        value = values[x]
        pointwise = type(node.op) in POINTWISE and value.type.shape == node.type.shape
        moving = type(node.op) in MOVING and not value.reduces
        joining = type(node.op) is ops.Conv and value.kernel is not None and value.kernel.rows is not None
        if not (pointwise or moving or joining or value.within) or (value.reduces and reduces):
            value = values[x] = b.store(value)
        reduces |= value.reduces
        found.insert(0, value)
    return found


def at_node(code: str, message: str, node: Node) -> CnncError:
    """An error at the line of the model that the node comes from."""
    if node.origin is None:
        return error(code, f"{message} (node `{node.name}`)")
    path = node.origin.frame.path() if node.origin.frame else ()
    return CnncError((Diagnostic(code, message, (Label(node.origin.span, primary=True),), path),))


def first_line(e: BaseException) -> str:
    """What a TVM error says, without its C++ trace.

    KeyboardInterrupt where it says nothing: TVM looks for signals while it works, and so it gives Ctrl-C back.
    """
    if type(e) is RuntimeError and not str(e):
        raise KeyboardInterrupt from e
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("Error message: ")]  # after a print-out of the function
    return (told or lines or [type(e).__name__])[-1][:200]
