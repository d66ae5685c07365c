"""Fold batch norm, and any affine per channel, into the convolution or linear layer before it.

With s = weight / sqrt(running_var + eps), batch norm is y = s*x + t per channel, t = bias - s*running_mean; `scale` and
arithmetic with a constant per channel are of that form too. After a layer x = W*v + b it is y = (s*W)*v + (s*b + t): a
layer with weights s*W, scaled per output channel, and bias s*b + t. Source: Jacob et al. 2018, section 3.2.

The new weights are computed in float64 and rounded once, so that with S' = |s|*(sum|W||v| + |b| + |running_mean|) +
|bias| the bound is that of the layer on S', with c + 4 for c. An added constant t has it too: where sums cancel to a
small y, |t| <= |y| + |W*v + b|.

Not folded: into a layer whose result is read elsewhere, whose weights are shared, or in f16 and bf16, where the scaled
weights would be rounded again; and where a new weight would not be finite.
"""

from __future__ import annotations

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.passes.affine import (
    AFFINES,
    affine,
    bias_of,
    biased,
    check_changeable,
    has_offset,
    operand,
    per_output,
    refit,
    scaled,
)
from cnnc.passes.engine import Pass, Refusal, Sweep


def into_layer(node: Node, sweep: Sweep) -> Value | None:
    """conv, deconv or linear, and an affine after it, as one layer."""
    layer = operand(node)
    if not isinstance(layer, Node) or not isinstance(layer.op, ops.Conv | ops.Deconv | ops.Linear):
        return None
    if not sweep.used_once(layer):
        raise Refusal(f"the result of `{layer.name}` is read elsewhere too")
    check_changeable(layer, sweep)
    scale, shift = affine(node, sweep)
    weight, bias = scaled(layer, per_output(scale, layer), sweep), scale * bias_of(layer, sweep) + shift
    op = layer.op if layer.op.bias or not has_offset(node) else biased(layer.op)
    return refit(op, layer, layer.inputs, weight, bias, sweep)


FOLD_BATCH_NORM = Pass("fold_batch_norm", __doc__ or "", (into_layer,), level=2, of=AFFINES)
