"""Fold `normalize` into the convolution or linear layer on it.

With V = W/std per input channel, a layer on (x - mean)/std is W*((x - mean)/std) + b = V*(x - mean) + b
= V*x + (b - sum V*mean). Zero padding comes after the normalisation, so outside the image it is x = mean that adds
nothing. Three forms, the cheapest that is exact:

- without padding, or where all means are 0: a layer with weights V and bias b - sum V*mean;
- where all means are one number: the same without padding of its own, on x padded with that number;
- else the weights alone, V, on x - mean. `pad` has one value for all channels, and the missing terms of the border as
  a correction would be a tensor of the size of the result.

V is computed in float64 and rounded once, and sum V*mean with V as it was rounded: then a place where x = mean adds
nothing, as before, and the rounding of V costs u*sum|V||x - mean| only. With S' = sum|V|(|x| + |mean|) + |b|, where x
is mean in the padding, the bound is that of the layer on S', with c + 4 for c.

Not folded: a normalised image that is read elsewhere too, since it is computed anyway; into shared weights, f16 and
bf16.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.passes.affine import bias_of, check_changeable, per_input, refit, scaled
from cnnc.passes.engine import Pass, Refusal, Sweep

if TYPE_CHECKING:
    from cnnc.passes.engine import Array


def into_layer(node: Node, sweep: Sweep) -> Value | None:
    """normalize -> conv and normalize -> linear with the weights divided by std."""
    before = node.inputs[0] if isinstance(node.op, ops.Conv | ops.Linear) else None
    if not isinstance(before, Node) or not isinstance(before.op, ops.Normalize):
        return None
    if not sweep.used_once(before):
        raise Refusal(f"the result of `{before.name}` is read elsewhere too")
    check_changeable(node, sweep)
    return _folded(node, before, sweep)


def _folded(layer: Node, before: Node, sweep: Sweep) -> Node:
    import numpy as np

    assert isinstance(layer.op, ops.Conv | ops.Linear)
    assert isinstance(before.op, ops.Normalize)
    op, (x,) = layer.op, before.inputs
    channels = x.type.shape[1]
    assert isinstance(channels, int)
    mean = np.broadcast_to(np.asarray(before.op.mean, np.float32).astype(np.float64), channels)
    bias = bias_of(layer, sweep)
    weight = scaled(layer, per_input(1 / np.broadcast_to(before.op.std, channels), layer), sweep)
    terms = weight.astype(np.float64) * per_input(mean, layer)
    shifted = bias - terms.sum(tuple(range(1, terms.ndim)))
    pads = op.pads(x.type) if isinstance(op, ops.Conv) else (0, 0, 0, 0)
    biased = replace(op, bias=op.bias or bool(mean.any()))
    if not mean.any() or pads == (0, 0, 0, 0):
        return refit(biased, layer, (x,), weight, shifted, sweep)
    match op, pads:
        case ops.Conv(), (int() as top, int() as left, int() as bottom, int() as right) if (mean == mean[0]).all():
            pad = ops.Pad((top, left, bottom, right), value=float(mean[0]))
            padded = Node(pad, (x,), {}, before.name, before.origin)
            return refit(replace(op, pad=(0, 0, 0, 0), bias=True), layer, (padded,), weight, shifted, sweep)
    return refit(op, layer, (_centred(x, mean, before, sweep),), weight, bias, sweep)


def _centred(x: Value, mean: Array, before: Node, sweep: Sweep) -> Node:
    """x - mean, in the place of `before`."""
    op = ops.Constant(tuple(mean.tolist()), (len(mean), *[1] * (x.type.rank - 2)))
    constant = Node(op, (), {}, sweep.name(f"{before.name}.mean"), before.origin)
    return Node(ops.Sub(), (x, constant), {}, before.name, before.origin)


FOLD_NORMALIZE = Pass("fold_normalize", __doc__ or "", (into_layer,), level=2, of=(ops.Conv, ops.Linear))
