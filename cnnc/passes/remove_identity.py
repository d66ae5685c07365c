"""Remove nodes that pass their operand on unchanged.

Dropout is the identity when a network is used and not trained. The others are identities bit for bit: a cast to the
type at hand; a reshape, flatten, slice, pad or crop that keeps the shape; a transpose that keeps the order; nearest
resizing to the same size; a merge of one operand; a pool of 1x1 windows; a shuffle of single channels.
"""

from __future__ import annotations

from cnnc import ops
from cnnc.ir.graph import Node, Value
from cnnc.ops.elementwise import Merge
from cnnc.passes.engine import Pass, Sweep

IDENTITIES = (
    ops.Dropout, ops.Cast, ops.Reshape, ops.Flatten, ops.Slice, ops.Pad, ops.Crop, ops.Upsample, ops.Resize,
    ops.PixelShuffle, ops.Transpose, ops.ChannelShuffle, ops.Concat, Merge, ops.MaxPool, ops.AvgPool,
)  # fmt: skip
"""Ops that can be one."""


def identity(node: Node, sweep: Sweep) -> Value | None:
    """The operand of a node that changes nothing."""
    if not node.inputs or node.type != node.inputs[0].type:
        return None
    x = node.inputs[0]
    match node.op:
        case ops.Dropout() | ops.Cast() | ops.Reshape() | ops.Flatten() | ops.Slice() | ops.Pad() | ops.Crop():
            return x  # the type is the same, so nothing is moved
        case ops.Upsample(mode="nearest") | ops.Resize(mode="nearest") | ops.PixelShuffle():
            return x
        case ops.Transpose(axes=axes) if axes == tuple(range(len(axes))):
            return x
        case ops.ChannelShuffle(groups=groups) if groups in (1, x.type.shape[1]):
            return x
        case ops.Concat() | ops.Add() | ops.Mul() | ops.Maximum() | ops.Minimum() if len(node.inputs) == 1:
            return x
        case ops.MaxPool(kernel=(1, 1), stride=(1, 1)) | ops.AvgPool(kernel=(1, 1), stride=(1, 1)):
            return x
        case _:
            return None


REMOVE_IDENTITY = Pass("remove_identity", __doc__ or "", (identity,), level=1, of=IDENTITIES)
