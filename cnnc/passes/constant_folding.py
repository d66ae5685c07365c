"""Compute what is constant while compiling.

A node whose operands are all constants becomes a constant: its value is computed in float64 by the reference, with the
weights at hand, and rounded once to its element type. That is within the bound of every op. The rounding may differ
from a target's own in the last bit (of an `exp`, say), so not every bit is kept. Of two factors in a row,
(x*a)*b = x*(a*b), where a*b is a number of the element type, so that one rounding remains of two.

A constant stands in the graph, in its text and in the generated code with all its numbers. So none is made that has
more than 1,024 of them, unless its operands have as many together: nothing that is printed or saved grows by more than
some pages. Nor are there constants of Inf, NaN or -0, which the text of a graph has no words for.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.graph import Graph, Node, Value
from cnnc.ir.types import TensorType
from cnnc.passes.engine import Pass, Refusal, Sweep

if TYPE_CHECKING:
    from cnnc.passes.engine import Array

LARGEST = 1024
"""Numbers that a new constant may have whatever its operands."""


def folded(node: Node, sweep: Sweep) -> Value | None:
    """A node on constants as a constant."""
    if not node.inputs or not all(map(_is_constant, node.inputs)):
        return None
    return _constant(_value(node, sweep), node, node.name)


def joined(node: Node, sweep: Sweep) -> Value | None:
    """mul(mul(x, a), b) as mul(x, a*b), where a*b needs no rounding."""
    outer = _product(node)
    inner = _product(outer[0]) if outer else None
    if outer is None or inner is None:
        return None
    if not sweep.used_once(outer[0]):
        raise Refusal(f"the result of `{outer[0].name}` is read elsewhere too")
    factor = Node(ops.Mul(), (inner[1], outer[1]), {}, node.name, node.origin)
    value = _value(factor, sweep)
    if (_rounded(value, factor.type) != value).any():
        raise Refusal(f"the product of the factors would be rounded to {node.type.dtype}")
    constant = _constant(value, factor, sweep.name(f"{node.name}.factor"))
    return Node(ops.Mul(), (inner[0], constant), {}, node.name, node.origin)


def _is_constant(x: Value) -> bool:
    return isinstance(x, Node) and isinstance(x.op, ops.Constant)


def _product(node: Value) -> tuple[Value, Value] | None:
    """The factors of x*constant and of constant*x, in the order x, constant."""
    if not isinstance(node, Node) or not isinstance(node.op, ops.Mul) or len(node.inputs) != 2:
        return None
    x, y = node.inputs
    if _is_constant(x) == _is_constant(y):
        return None
    return (x, y) if _is_constant(y) else (y, x)


def _value(node: Node, sweep: Sweep) -> Array:
    """What a node on constants gives, in float64; Refusal where it is too large or cannot be computed."""
    from cnnc.target import reference

    size, most = _size(node.type), max(LARGEST, sum(_size(x.type) for x in node.inputs))
    if size > most:
        raise Refusal(f"the constant would have {size:,} numbers, more than {most:,}")
    weights = {param.name: sweep.weights[param.name] for param in node.params.values()}
    try:
        return reference(Graph(node.name, (), {"y": node}), weights, {})["y"]
    except CnncError as e:  # an op that the reference lacks
        raise Refusal(e.diagnostics[0].message) from None


def _constant(value: Array, node: Node, name: str) -> Node:
    """A constant of the type of `node`, in its place."""
    import numpy as np

    stored = _rounded(value, node.type)
    if not np.isfinite(stored).all() or (np.signbit(stored) & (stored == 0)).any():
        raise Refusal("there are no constants of Inf, NaN or -0")
    op = ops.Constant(tuple(stored.ravel().tolist()), stored.shape, node.type.dtype)
    return Node(op, (), {}, name, node.origin)


def _rounded(value: Array, to: TensorType) -> Array:
    """The value in float64 as elements of a type hold it."""
    import numpy as np

    from cnnc.target import numpy_dtype

    return value.astype(numpy_dtype(to.dtype)).astype(np.float64)


def _size(x: TensorType) -> int:
    """The elements of a tensor whose sizes are known, as those of constants and what is made of them are."""
    return prod(dim for dim in x.shape if isinstance(dim, int))


CONSTANT_FOLDING = Pass("constant_folding", __doc__ or "", (folded, joined), level=2)
