"""Make a convolution whose kernel covers the whole map a linear layer.

Where the kernel is as large as the unpadded map there is one window, and conv is y[n, o] = b[o] + sum over c, p, q of
weight[o, c, p, q] * x[n, c, p, q]: the linear layer with the same weights, row by row, on the flattened map. A 1x1
convolution on 1x1 maps (the gates of Hu et al. 2018, classifiers after gap) is the smallest case.

The linear layer is the canonical one of the two forms: it is one matrix product for the whole batch, which reads the
weights once, where a convolution is a product for each image; it has no windows to gather; and reshaping costs nothing
on any target. Nothing here makes a convolution of a linear layer (that is `fully_convolutional`), so the two forms do
not alternate. The result is reshaped to a map of one place; reshapes move down past what works place by place and meet
the next flatten, with which they vanish, so that fc -> relu -> fc is left. The same products are summed, in any order.

Not done with groups, which a linear layer has not, or with shared weights.
"""

from __future__ import annotations

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.ops.activation import Pointwise
from cnnc.passes.engine import Pass, Refusal, Sweep


def as_linear(node: Node, sweep: Sweep) -> Value | None:
    """conv with one window as flatten -> linear -> reshape."""
    op = node.op
    if not isinstance(op, ops.Conv) or node.inputs[0].type.shape[2:] != op.kernel or any(op.pads(node.inputs[0].type)):
        return None
    if op.groups > 1:
        raise Refusal("a linear layer has no groups")
    if not all(map(sweep.owned, node.params.values())):
        raise Refusal(f"the weights of `{node.name}` are shared")
    (x,) = node.inputs
    flat = _flat(x) or Node(ops.Flatten(), (x,), {}, sweep.name(f"{node.name}.flatten"), node.origin)
    like = node.params["weight"]
    weight = sweep.weights[like.name]
    params = {**node.params, "weight": sweep.param(like.name, weight.reshape(len(weight), -1), like)}
    linear = Node(ops.Linear(op.channels, op.bias, op.init), (flat,), params, node.name, node.origin)
    return Node(ops.Reshape((op.channels, 1, 1)), (linear,), {}, sweep.name(f"{node.name}.reshape"), node.origin)


def reshape_later(node: Node, sweep: Sweep) -> Value | None:
    """reshape -> relu as relu -> reshape, flatten of a map of one place as what it was before."""
    before = node.inputs[0] if node.inputs else None
    if not isinstance(before, Node) or (flat := _flat(before)) is None:
        return None
    if node.op == ops.Flatten():
        return flat
    if not isinstance(node.op, Pointwise | ops.Scale | ops.BatchNorm) or not sweep.used_once(before):
        return None
    inner = Node(node.op, (flat,), node.params, node.name, node.origin)
    return Node(before.op, (inner,), {}, before.name, before.origin)


def _flat(x: Value) -> Value | None:
    """The vectors [N, C] that x [N, C, 1, 1] is a reshape of."""
    if not isinstance(x, Node) or not isinstance(x.op, ops.Reshape):
        return None
    flat = x.inputs[0]
    return flat if x.type.shape == (*flat.type.shape, 1, 1) else None


POINTWISE_LINEAR = Pass(
    "pointwise_linear", __doc__ or "", (as_linear, reshape_later), level=2,
    of=(ops.Conv, ops.Flatten, Pointwise, ops.Scale, ops.BatchNorm),
)
