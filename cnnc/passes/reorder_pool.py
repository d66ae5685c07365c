"""Move what never decreases from before a max-pool to after it, where fewer places are left.

For a function f with f(a) <= f(b) whenever a <= b, the maximum of f(x) over a window is f of the maximum of x. This
holds for computed numbers too where f is made of correctly rounded steps that never decrease: relu, clip, hard_sigmoid,
leaky_relu with a positive slope and prelu with positive slopes. Both sides are the same number, and NaN where x has
NaN; the sign of a zero is open in both, as it is in any maximum of +0 and -0. Not moved: sigmoid, tanh, exp and the
like, whose approximations promise no order of neighbouring numbers, and step and sqrt, which drop or make NaN.

Not moved away from a layer in whose epilogue it costs nothing (`fuse_epilogue`).

Padding counts as -Inf, and each window has a place of the map (a pool's padding is smaller than its kernel), so f
never sees a bare -Inf. A dilated window can lie in padding alone: f(-Inf) would take the place of -Inf.
"""

from __future__ import annotations

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.passes.cost import nominal
from cnnc.passes.engine import Pass, Refusal, Sweep
from cnnc.passes.fuse_epilogue import EPILOGUE, LAYERS, LONGEST

RISING = (ops.Relu, ops.Clip, ops.HardSigmoid, ops.LeakyRelu, ops.Prelu)


def after_pool(node: Node, sweep: Sweep) -> Value | None:
    """relu -> maxpool as maxpool -> relu."""
    before = node.inputs[0] if isinstance(node.op, ops.MaxPool | ops.GlobalMaxPool) else None
    if not isinstance(before, Node) or not isinstance(before.op, RISING):
        return None
    if nominal(node.type.size) >= nominal(before.type.size):
        raise Refusal(f"the pool leaves as many places for `{before.op.name}` as there are")
    if not sweep.used_once(before):
        raise Refusal(f"the result of `{before.name}` is read elsewhere too")
    if layer := _layer(before.inputs[0], sweep):
        raise Refusal(f"`{before.op.name}` costs nothing as the epilogue of `{layer.name}`")
    _check_rising(before, sweep)
    if isinstance(node.op, ops.MaxPool) and node.op.dilation != (1, 1) and any(node.op.pads(before.type)):
        raise Refusal("a dilated window can lie in the padding alone")
    pool = Node(node.op, before.inputs, {}, node.name, node.origin)
    return Node(before.op, (pool,), before.params, before.name, before.origin)


def _layer(x: Value, sweep: Sweep) -> Node | None:
    """The layer in whose epilogue what reads x can be: x, or before others of its epilogue."""
    for _ in range(LONGEST):
        if not isinstance(x, Node) or not sweep.used_once(x):
            return None
        if isinstance(x.op, LAYERS):
            return x
        if not isinstance(x.op, EPILOGUE) or len(x.inputs) != 1:
            return None
        x = x.inputs[0]
    return None


def _check_rising(node: Node, sweep: Sweep) -> None:
    """Refusal where a slope is not above zero (0 * -Inf is NaN)."""
    if isinstance(node.op, ops.LeakyRelu) and node.op.slope <= 0:
        raise Refusal(f"the slope of `{node.name}` is not positive")
    if isinstance(node.op, ops.Prelu) and not (sweep.array(node, "weight") > 0).all():
        raise Refusal(f"a slope of `{node.name}` is not positive")


REORDER_POOL = Pass("reorder_pool", __doc__ or "", (after_pool,), level=1, of=(ops.MaxPool, ops.GlobalMaxPool))
