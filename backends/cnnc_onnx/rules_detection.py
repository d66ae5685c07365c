"""Rules of detectors: reading of regions, anchors, boxes and their selection."""

from __future__ import annotations

from math import log

import numpy as np

from cnnc import ops
from cnnc.ir.dim import Dim, minimum
from cnnc.ir.types import DType
from cnnc_onnx.emit import ELEMENT, Emitter, Ref, Tensor, in_f32, rules


@rules(ops.RoiPool)
def roi_pool(op: ops.RoiPool, e: Emitter, x: Ref, rois: Ref) -> Tensor:
    """`MaxRoiPool` takes [R, 5], the row of the batch before the corners."""
    rows = e("Cast", _batch_rows(e, rois), to=ELEMENT[rois.type.dtype])
    regions = e("Concat", e("Unsqueeze", rows, e.ints(1)), _corners(e, rois), axis=1)
    return e("MaxRoiPool", x, regions, pooled_shape=op.size, spatial_scale=op.scale)


@rules(ops.RoiAlign)
def roi_align(op: ops.RoiAlign, e: Emitter, x: Ref, rois: Ref) -> Tensor:
    if op.aligned:
        e.needs_opset(16, "`roi_align` with `aligned`")
    return _aligned(e, op, x, _corners(e, rois), _batch_rows(e, rois))


@rules(ops.RoiAlignPyramid)
@in_f32
def roi_align_pyramid(op: ops.RoiAlignPyramid, e: Emitter, rois: Ref, *levels: Ref) -> Tensor:
    """`RoiAlign` on each level of the regions that suit it, scattered to their places."""
    corners, rows = _corners(e, rois), _batch_rows(e, rois)
    left, top, right, bottom = e.many("Split", 4, corners, e.ints(1, 1, 1, 1), axis=1)
    side = e("Sqrt", e("Mul", e("Sub", right, left), e("Sub", bottom, top)))
    octave = e("Div", e("Log", e("Div", side, e.number(224))), e.number(log(2)))
    first = round(-log(op.scales[0], 2))
    suited = e("Sub", e("Floor", e("Add", octave, e.number(4 + 1e-6))), e.number(first))
    suited = e("Min", e("Max", suited, e.number(0)), e.number(len(levels) - 1))  # NaN of a negative area stays
    suited = e("Reshape", suited, e.ints(-1))
    y = _zeros(e, e.type.shape)
    for i, (x, scale) in enumerate(zip(levels, op.scales, strict=True)):
        chosen = e("Reshape", e("NonZero", e("Equal", suited, e.number(i))), e.ints(-1))
        of_level = ops.RoiAlign(op.size, scale, op.samples)
        values = _aligned(e, of_level, x, e("Gather", corners, chosen), e("Gather", rows, chosen))
        y = e("ScatterND", y, e("Unsqueeze", chosen, e.ints(1)), values)
    return y


@rules(ops.Anchors)
@in_f32
def anchors(op: ops.Anchors, e: Emitter, x: Ref) -> Tensor:
    n, _, h, w = x.type.shape
    down, across = op.stride
    rows = e("Mul", e("Unsqueeze", e.range(h), e.ints(1, 2, 3)), e.ints(0, down, 0, down))
    columns = e("Mul", e("Unsqueeze", e.range(w), e.ints(1, 2)), e.ints(across, 0, across, 0))
    boxes = e("Add", e("Add", rows, columns), e.array(np.array(op.corners)))  # [H, W, a, 4]
    boxes = e("Reshape", e("Cast", boxes, to=ELEMENT[e.type.dtype]), e.ints(1, -1, 4))
    return e("Expand", boxes, e.dims((n, 1, 1)))


@rules(ops.Decode)
@in_f32
def decode(op: ops.Decode, e: Emitter, anchors: Ref, deltas: Ref) -> Tensor:
    n, _, h, w = deltas.type.shape
    count = anchors.type.shape[1]
    grouped = e("Reshape", deltas, e.dims((n, -1, 4, h, w)))
    rows = e("Reshape", e("Transpose", grouped, perm=(0, 3, 4, 1, 2)), e.dims((n, count, 4)))
    first, last = e.many("Split", 2, anchors, e.ints(2, 2), axis=2)
    shift, growth = e.many("Split", 2, rows, e.ints(2, 2), axis=2)
    size, half = e("Sub", last, first), e.number(0.5)
    centre = e("Add", e("Add", first, e("Mul", size, half)), e("Mul", shift, size))
    grown = e("Mul", e("Exp", e("Min", growth, e.number(log(1000 / 16)))), e("Mul", size, half))
    return e("Concat", e("Sub", centre, grown), e("Add", centre, grown), axis=2)


@rules(ops.ClipBoxes)
def clip_boxes(op: ops.ClipBoxes, e: Emitter, boxes: Ref, image: Ref) -> Tensor:
    _, _, h, w = image.type.shape
    limits = e("Cast", e.dims((w, h, w, h)), to=ELEMENT[e.type.dtype])
    return e("Min", e("Max", boxes, e.number(0)), limits)


@rules(ops.Nms)
@in_f32
def nms(op: ops.Nms, e: Emitter, boxes: Ref, scores: Ref) -> Tensor:
    """`NonMaxSuppression` says which of the best boxes are kept, in no order that is specified: their ranks are sorted.

    It would exchange corners that are the wrong way round; a box without area overlaps none, as these shall.
    """
    n, count, _ = boxes.type.shape
    considered = minimum(count, op.pre)
    last = e("Transpose", scores, perm=(0, 2, 3, 1))
    last = e("Reshape", last, e.dims((n, count, 1)))
    best = _best(e, e("Concat", boxes, last, axis=2), considered)
    first, second, _ = e.many("Split", 3, best, e.ints(2, 2, 1), axis=2)
    corners = e("Concat", first, e("Max", first, second), axis=2)
    ranks = e("Neg", e("Cast", e.range(considered), to=ELEMENT[DType.F32]))
    limits = e.ints(op.keep), e.array(np.array([min(op.iou, 1)], np.float32))
    kept = e("NonMaxSuppression", corners, e("Expand", ranks, e.dims((n, 1, considered))), *limits)
    image, _, rank = e.many("Split", 3, kept, e.ints(1, 1, 1), axis=1)  # [kept, 1]
    keys = e("Expand", e.number(-np.inf), e.dims((n, considered)))
    value = e("Reshape", e("Neg", e("Cast", rank, to=ELEMENT[DType.F32])), e.ints(-1))
    keys = e("ScatterND", keys, e("Concat", image, rank, axis=1), value)
    length = minimum(considered, op.keep)
    keys, order = e.many("TopK", 2, keys, e.dims((length,)), axis=1)
    none = e("Unsqueeze", e("IsInf", keys), e.ints(2))
    return _filled(e, e("Where", none, e.number(0), _rows(e, best, order)), length, op.keep)


@rules(ops.Top)
def top(op: ops.Top, e: Emitter, *lists: Ref) -> Tensor:
    count: Dim = 0
    for boxes in lists:
        count = boxes.type.shape[1] + count
    length = minimum(count, op.k)
    return _filled(e, _best(e, e("Concat", *lists, axis=1), length), length, op.k)


def _best(e: Emitter, scored: Tensor, length: Dim) -> str:
    """The best of scored boxes [N, K, 5], best first. NaN counts as infinity: `TopK` says nothing of it."""
    scores = e("Reshape", e("Slice", scored, e.ints(4), e.ints(5), e.ints(2)), e.ints(0, -1))
    keys = e("Where", e("IsNaN", scores), e.number(np.inf), scores)
    return _rows(e, scored, e.many("TopK", 2, keys, e.dims((length,)), axis=1)[1])


def _rows(e: Emitter, x: Tensor, order: Tensor) -> str:
    """The rows of x [N, K, 5] in an order [N, k]."""
    return e("GatherND", x, e("Unsqueeze", order, e.ints(2)), batch_dims=1)


def _filled(e: Emitter, x: Tensor, length: Dim, wanted: int) -> Tensor:
    """A list of boxes of some length, filled up with zeros."""
    if length == wanted:
        return x
    return e("Pad", x, e.dims((0, 0, 0, 0, wanted - length, 0)), e.number(0))


def _zeros(e: Emitter, shape: tuple[Dim, ...]) -> str:
    return e("Expand", e.number(0), e.dims(shape))


def _aligned(e: Emitter, op: ops.RoiAlign, x: Ref, corners: Tensor, rows: Tensor) -> str:
    """`RoiAlign` of corners [R, 4] on the images of x that `rows` [R] names."""
    mode = {"coordinate_transformation_mode": "half_pixel" if op.aligned else "output_half_pixel"}
    height, width = op.size
    return e(
        "RoiAlign", x, corners, rows,
        output_height=height, output_width=width, sampling_ratio=op.samples, spatial_scale=op.scale,
        **(mode if e.opset >= 16 else {}),
    )  # fmt: skip


def _corners(e: Emitter, rois: Ref) -> str:
    """[N*R, 4] of rois [N, R, 4 or 5]."""
    return e("Reshape", e("Slice", rois, e.ints(0), e.ints(4), e.ints(2)), e.ints(-1, 4))


def _batch_rows(e: Emitter, rois: Ref) -> str:
    """int64[N*R]: which image each region belongs to."""
    n, r, _ = rois.type.shape
    return e("Reshape", e("Expand", e("Unsqueeze", e.range(n), e.ints(1)), e.dims((n, r))), e.ints(-1))
