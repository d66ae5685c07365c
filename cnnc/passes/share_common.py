"""Compute equal nodes once (common subexpressions).

Two nodes are equal when their ops, operands and parameters are the same; the later one is replaced by the earlier. The
same computation gives the same bits.
"""

from __future__ import annotations

from cnnc.ir.graph import Node, Value
from cnnc.passes.engine import Pass, Sweep


def common(node: Node, sweep: Sweep) -> Value | None:
    """The earlier node that computes the same."""
    first = sweep.memo.setdefault(node.inputs[0] if node.inputs else None, node)
    if first is node:  # most nodes are the only ones on their operand: they need no key
        return None
    sweep.memo.setdefault(_key(first), first)
    earlier = sweep.memo.setdefault(_key(node), node)
    return None if earlier is node else earlier


def _key(node: Node) -> object:
    return node.op, node.inputs, tuple(node.params.values())


SHARE_COMMON = Pass("share_common", __doc__ or "", (common,), level=1)
