"""Fold batch norm into the convolution or linear layer before it, or into one affine.

With s = weight / sqrt(running_var + eps), batch norm is y = s*x + t per channel, t = bias - s*running_mean. After a
layer x = W*v + b it is y = (s*W)*v + (s*b + t): a layer with weights s*W, scaled per output channel, and bias s*b + t.
Where no layer precedes, two parameters remain of four: y = s*x + t is a `scale`. The new weights are computed in
float64 and rounded once; the bound is that of the layer with c + 4 for c. Source: Jacob et al. 2018, section 3.2.

Not folded: into a layer whose result is read elsewhere, whose weights are shared, or in f16 and bf16, where the scaled
weights would be rounded again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.ir.types import DType
from cnnc.passes.engine import Pass, Refusal, Sweep

if TYPE_CHECKING:
    from cnnc.passes.engine import Array


def into_layer(node: Node, sweep: Sweep) -> Value | None:
    """conv -> bn, deconv -> bn and linear -> bn as one layer."""
    layer = node.inputs[0] if isinstance(node.op, ops.BatchNorm) else None
    if not isinstance(layer, Node) or not isinstance(layer.op, ops.Conv | ops.Deconv | ops.Linear):
        return None
    if not sweep.used_once(layer):
        raise Refusal(f"the result of `{layer.name}` is read elsewhere too")
    if not all(map(sweep.owned, layer.params.values())):
        raise Refusal(f"the weights of `{layer.name}` are shared")
    if node.type.dtype is not DType.F32:
        raise Refusal(f"scaled weights would be rounded to {node.type.dtype} again")
    scale, shift = affine(node, sweep)
    weight = sweep.array(layer, "weight")
    bias = sweep.array(layer, "bias") if layer.op.bias else 0.0
    like = layer.params["weight"]
    params = {
        "weight": sweep.param(like.name, weight * _per_output(scale, layer.op, weight.shape), like),
        "bias": sweep.param(f"{like.name.removesuffix('weight')}bias", scale * bias + shift, like),
    }
    return Node(replace(layer.op, bias=True), layer.inputs, params, layer.name, layer.origin)


def into_scale(node: Node, sweep: Sweep) -> Value | None:
    """A batch norm on its own as one multiplication and one addition."""
    if not isinstance(node.op, ops.BatchNorm) or node.type.dtype is not DType.F32:
        return None
    if not all(map(sweep.owned, node.params.values())):
        raise Refusal(f"the parameters of `{node.name}` are shared")
    scale, shift = affine(node, sweep)
    like = node.params["weight"]
    params = {
        "weight": sweep.param(like.name, scale, like),
        "bias": sweep.param(node.params["bias"].name, shift, like),
    }
    return Node(ops.Scale(bias=True), node.inputs, params, node.name, node.origin)


def affine(node: Node, sweep: Sweep) -> tuple[Array, Array]:
    """s and t of a batch norm, in float64, [C] each."""
    import numpy as np

    assert isinstance(node.op, ops.BatchNorm)
    scale = sweep.array(node, "weight") / np.sqrt(sweep.array(node, "running_var") + node.op.eps)
    return scale, sweep.array(node, "bias") - scale * sweep.array(node, "running_mean")


def _per_output(scale: Array, op: ops.Conv | ops.Deconv | ops.Linear, shape: tuple[int, ...]) -> Array:
    """`scale` [O] shaped to multiply weights along their output channels."""
    if not isinstance(op, ops.Deconv):
        return scale.reshape(-1, *[1] * (len(shape) - 1))
    # [C, O/groups, kh, kw]: the inputs of group g meet the outputs of group g.
    per_group = scale.reshape(op.groups, 1, -1)
    return per_group.repeat(shape[0] // op.groups, axis=1).reshape(shape[0], shape[1], 1, 1)


FOLD_BATCH_NORM = Pass("fold_batch_norm", __doc__ or "", (into_layer, into_scale), level=2)
