"""Round the results of fused nodes in f16 and bf16 once, not after each part.

conv -> bn -> add(shortcut) -> relu in bf16 rounds four results to 8 bits. As the parts of one node they need not leave
the registers, where they are f32: `fused(conv(...), bn, add, relu, wide=true)` is rounded at its end. This is nearer to
the exact value and takes fewer operations. Of the error |y' - y| <= c*u*S + u_out*|y| that each node may make, the
parts before the last lose the second term, by far the larger one in 16 bits. What is too large for f16 on the way need
not become infinite.

Source: mixed precision training (Micikevicius et al. 2018, section 3.3) accumulates likewise.
"""

from __future__ import annotations

from dataclasses import replace

from cnnc.ir.graph import Node, Value
from cnnc.ir.types import DType
from cnnc.ops.fused import Fused
from cnnc.passes.engine import Pass, Sweep


def widened(node: Node, sweep: Sweep) -> Value | None:
    """A fused node of 16 bits, as one that rounds once."""
    if not isinstance(node.op, Fused) or node.op.wide or node.type.dtype is DType.F32:
        return None
    return Node(replace(node.op, wide=True), node.inputs, node.params, node.name, node.origin)


ROUND_ONCE = Pass("round_once", __doc__ or "", (widened,), level=2, of=(Fused,))
