"""Fold a batch norm, scale or factor into the convolution or linear layer after it.

A layer on an affine s*x + t per channel is y = W*(s*x + t) + b = (W*s)*x + (b + W*t): a layer with weights W*s, scaled
per input channel, and bias b + sum over c, p, q of W[o, c, p, q]*t[c]. That bias is the same at all places, so this
holds only where every place sums all of W:

- a convolution with padding does not at its borders, where zeros stand for s*x + t and not for x;
- a transposed convolution does not at its borders, nor between the stamps of its kernel.

What only scales, a factor or a `scale` without bias, folds into both. The weights are computed in float64 and rounded
once. With S' = sum|W||s||x| + |b| + sum|W||t| the bound is that of the layer on S', with c + 4 for c: the terms of S'
are those of the affine's own bound, times |W|. Not so for a constant that is added or subtracted: x - m is exact where
x is near m, and W*x - W*m loses the digits that cancel. It is not folded.

Not folded either: an affine that is read elsewhere too, and into shared weights, f16 and bf16, or what would not be
finite.
"""

from __future__ import annotations

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.passes.affine import affine, bias_of, biased, check_changeable, has_offset, operand, per_input, refit, scaled
from cnnc.passes.engine import Pass, Refusal, Sweep


def into_next(node: Node, sweep: Sweep) -> Value | None:
    """An affine and the conv, deconv or linear on it as one layer."""
    if not isinstance(node.op, ops.Conv | ops.Deconv | ops.Linear):
        return None
    before = node.inputs[0]
    x = operand(before)
    if not isinstance(before, Node) or x is None:
        return None
    if not sweep.used_once(before):
        raise Refusal(f"the result of `{before.name}` is read elsewhere too")
    check_changeable(node, sweep)
    scale, shift = affine(before, sweep)
    op, bias = node.op, bias_of(node, sweep)
    if has_offset(before):
        _check_offset(node, before)
        op = biased(op)
        terms = sweep.array(node, "weight") * per_input(shift, node)
        bias = bias + terms.sum(tuple(range(1, terms.ndim)))
    return refit(op, node, (x,), scaled(node, per_input(scale, node), sweep), bias, sweep)


def _check_offset(layer: Node, before: Node) -> None:
    """Refusal unless the offset of an affine adds the same to every place of the layer's result."""
    if isinstance(before.op, ops.Add | ops.Sub):
        raise Refusal(f"`{before.name}` may cancel digits exactly, which sums of `{layer.name}` would not")
    match layer.op:
        case ops.Deconv():
            raise Refusal(f"the offset of `{before.name}` reaches some places of `{layer.name}` more often than others")
        case ops.Conv() as op if op.pads(layer.inputs[0].type) != (0, 0, 0, 0):
            raise Refusal(f"`{layer.name}` pads the result of `{before.name}` with zeros, which have no offset")


FOLD_INTO_NEXT = Pass("fold_into_next", __doc__ or "", (into_next,), level=2, of=(ops.Conv, ops.Deconv, ops.Linear))
