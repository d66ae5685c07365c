"""Make linear layers on flattened maps convolutions whose kernel covers the map.

flatten -> linear on maps [N, C, h, w] is conv(c, (h, w)) -> flatten: weight[o, :] in rows of C, h and w is a kernel of
the map's size. The flatten moves down past what works place by place, so the next linear layer finds a map of one
place and becomes a 1x1 convolution; one flatten is left at the end. The same products are summed, in any order.

A network of convolutions alone can be given a larger image, where it computes what the linear layers would at every
place of it: Long, Shelhamer & Darrell 2015, section 3.1; Sermanet et al. 2014 (OverFeat). On the image at hand it is no
cheaper, and `pointwise_linear` does the opposite, so no level has this pass: ask for it by name.

Not done with shared weights or on maps of unknown size, which a linear layer does not take anyway.
"""

from __future__ import annotations

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.ops.activation import Pointwise
from cnnc.passes.engine import Pass, Refusal, Sweep


def as_conv(node: Node, sweep: Sweep) -> Value | None:
    """flatten -> linear as conv -> flatten."""
    op, flat = node.op, node.inputs[0] if node.inputs else None
    if not isinstance(op, ops.Linear) or not isinstance(flat, Node) or flat.op != ops.Flatten():
        return None
    (maps,) = flat.inputs
    if maps.type.rank != 4:
        raise Refusal(f"`{flat.name}` flattens no maps, but {maps.type}")
    _, c, h, w = maps.type.shape
    assert isinstance(c, int)  # a linear layer takes features of known number only
    assert isinstance(h, int)
    assert isinstance(w, int)
    if not all(map(sweep.owned, node.params.values())):
        raise Refusal(f"the weights of `{node.name}` are shared")
    like = node.params["weight"]
    kernels = sweep.weights[like.name].reshape(op.channels, c, h, w)
    params = {**node.params, "weight": sweep.param(like.name, kernels, like)}
    conv = Node(ops.Conv(op.channels, (h, w), bias=op.bias, init=op.init), (maps,), params, node.name, node.origin)
    return Node(ops.Flatten(), (conv,), {}, sweep.name(f"{node.name}.flatten"), node.origin)


def flatten_later(node: Node, sweep: Sweep) -> Value | None:
    """flatten -> relu on maps of one place as relu -> flatten."""
    flat = node.inputs[0] if isinstance(node.op, Pointwise | ops.Scale | ops.BatchNorm) else None
    if not isinstance(flat, Node) or flat.op != ops.Flatten() or not sweep.used_once(flat):
        return None
    (maps,) = flat.inputs
    if maps.type.shape[2:] != (1, 1):
        return None
    inner = Node(node.op, (maps,), node.params, node.name, node.origin)
    return Node(flat.op, (inner,), {}, flat.name, flat.origin)


FULLY_CONVOLUTIONAL = Pass(
    "fully_convolutional", __doc__ or "", (as_conv, flatten_later), level=4,
    of=(ops.Linear, Pointwise, ops.Scale, ops.BatchNorm),
)
