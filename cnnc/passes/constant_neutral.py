"""Remove constants that arithmetic with them does not change: x*1, x/1, x - 0.

Each keeps every bit, if the constant does not stretch x to another shape. x + 0 stays: it is 0 and not -0 for
x = -0, and 1/x shows the difference. In a layer before it the 0 vanishes all the same (`fold_batch_norm`).
"""

from __future__ import annotations

from math import copysign

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.passes.engine import Pass, Sweep


def neutral(node: Node, sweep: Sweep) -> Value | None:
    """The node without operands that change nothing, or the operand that is left."""
    match node.op:
        case ops.Mul():
            kept = tuple(x for x in node.inputs if not _all(x, 1.0))
        case ops.Div() | ops.Sub():
            x, y = node.inputs
            kept = (x,) if _all(y, 1.0 if isinstance(node.op, ops.Div) else 0.0) else node.inputs
        case _:
            return None
    if not kept or len(kept) == len(node.inputs):
        return None
    value = kept[0] if len(kept) == 1 else Node(node.op, kept, {}, node.name, node.origin)
    return value if value.type == node.type else None


def _all(x: Value, number: float) -> bool:
    """Whether x is a constant of this number, which is not negative, everywhere."""
    if not isinstance(x, Node) or not isinstance(x.op, ops.Constant):
        return False
    return all(value == number and copysign(1, value) > 0 for value in x.op.values)


CONSTANT_NEUTRAL = Pass("constant_neutral", __doc__ or "", (neutral,), level=1, of=(ops.Mul, ops.Div, ops.Sub))
