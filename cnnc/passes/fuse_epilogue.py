"""Make a layer and the element-wise ops after it one node.

conv -> add(shortcut) -> relu becomes `fused(conv(...), add, relu)`: the epilogue is computed where the sums still are,
and neither the layer's result nor the sum is written to memory. Layers are convolutions, transposed and locally
connected ones, and linear. The epilogue is ops that keep the shape and need one place of the result at a time; of a
merge (`add`, `mul`, `maximum`, `minimum`) of two, either operand may be the layer: of two layers the second, since the
first is the shortcut in the networks of He et al. The ops and their order stay, so every bit does.

Not fused: a layer whose result is read elsewhere too or is an output of the graph, and where the result has another
shape than the layer's. An epilogue has at most 8 ops, so that the cost of the pass stays linear.
"""

from __future__ import annotations

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.ops.activation import Pointwise
from cnnc.ops.elementwise import Merge
from cnnc.ops.fused import Fused, parts_of
from cnnc.passes.engine import Pass, Refusal, Sweep

LAYERS = (ops.Conv, ops.Deconv, ops.Local, ops.Linear)
"""Ops that can have an epilogue."""
EPILOGUE = (Pointwise, Merge, ops.Scale, ops.BatchNorm)
LONGEST = 8


def fuse(node: Node, sweep: Sweep) -> Value | None:
    """An element-wise op becomes the last part of the layer before it."""
    if not isinstance(node.op, EPILOGUE) or len(node.inputs) != (2 if isinstance(node.op, Merge) else 1):
        return None
    layers = [x for x in node.inputs if isinstance(x, Node) and isinstance(parts_of(x.op)[0], LAYERS)]
    refusal: Refusal | None = None
    for layer in reversed(layers):
        try:
            _check(node, layer, sweep)
        except Refusal as e:
            refusal = refusal or e
        else:
            return _fused(node, layer, sweep)
    if refusal is not None:
        raise refusal
    return None


def _check(node: Node, layer: Node, sweep: Sweep) -> None:
    """Refusal unless `node` may become a part of `layer`."""
    if not sweep.used_once(layer):
        raise Refusal(f"the result of `{layer.name}` is read elsewhere too")
    if node.type != layer.type:
        raise Refusal(f"`{node.op.name}` gives {node.type}, not {layer.type} as `{layer.name}` does")
    if isinstance(layer.op, Fused) and layer.op.wide:
        raise Refusal(f"`{layer.name}` would not round its result, which `{node.op.name}` takes rounded")
    if len(parts_of(layer.op)) > LONGEST:
        raise Refusal(f"`{layer.name}` has {LONGEST} ops after it in one node already")


def _fused(node: Node, layer: Node, sweep: Sweep) -> Node:
    # One object for the same two ops, which a network repeats; they are kept, so that no others get their identities.
    key = (id(layer.op), id(node.op))
    if key not in sweep.memo:
        sweep.memo[key] = (layer.op, node.op, Fused((*parts_of(layer.op), node.op)))
    op: Fused = sweep.memo[key][2]
    others = list(node.inputs)
    others.remove(layer)
    params = {op.role(len(op.parts) - 1, role): param for role, param in node.params.items()}
    return Node(op, (*layer.inputs, *others), {**layer.params, **params}, layer.name, layer.origin)


FUSE_EPILOGUE = Pass("fuse_epilogue", __doc__ or "", (fuse,), level=1, of=EPILOGUE)
