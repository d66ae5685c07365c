"""Heads of detectors in a random graph: boxes around the places of a map, the best of them, and what lies in them.

Where rounding may exchange two boxes, as their scores are all but equal, `network_bounds` sees them exchanged in some
of its evaluations, and allows as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from cnnc import ops
from cnnc.ir.graph import Value

if TYPE_CHECKING:
    from growing import Growing

HEAD = (ops.Conv, ops.Sigmoid, ops.Anchors, ops.Decode, ops.ClipBoxes, ops.Nms, ops.Top)
PYRAMID = (ops.Upsample, ops.RoiAlignPyramid)


def head(growing: Growing) -> None:
    """Anchors of a map, moved by what a convolution of it says and often cut to the image; the best, in two ways."""
    x = growing.pick(maps(growing))
    around = ops.Anchors(growing.pick([(4.0,), (3.0, 6.0)]), growing.pick([(1.0,), (0.5, 2.0)]), growing.pick([1, 2]))
    anchors = growing.node(around, x)
    growing.constant.append(anchors)
    count = len(around.corners)
    boxes = growing.node(ops.Decode(), anchors, growing.conv(4 * count, 1, x))
    if growing.draw(st.booleans()):
        boxes = growing.node(ops.ClipBoxes(), boxes, growing.inputs[0])
    scores = growing.node(ops.Sigmoid(), growing.conv(count, 1, x))
    best = [ops.Nms(growing.pick([4, 100]), growing.pick([1, 6]), iou) for iou in (0.3, 0.7)]
    lists = [growing.node(op, boxes, scores) for op in best]
    growing.node(ops.Top(growing.pick([1, 3, 6])), *lists[: growing.pick([1, 2])])


def pyramid(growing: Growing) -> None:
    """What lies in boxes: of those below 7 pixels in a finer map, of larger ones in the map itself."""
    x = growing.pick(maps(growing))
    fine = growing.node(ops.Upsample(3), x)
    lists = [y for y in growing.nodes if isinstance(y.op, ops.Nms | ops.Top)]
    rois = growing.pick([*lists, growing.boxes(x.type.dtype)])
    growing.node(ops.RoiAlignPyramid(growing.pick([1, (2, 3)]), (3.0, 1.0)), rois, fine, x)


def maps(growing: Growing) -> list[Value]:
    """The images that are those of the batch, not regions of them."""
    return [x for x in growing.images if x.type.shape[0] == growing.inputs[0].type.shape[0]]
