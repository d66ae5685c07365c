"""Rules: pooling of regions of interest."""

from __future__ import annotations

from cnnc import ops
from cnnc_onnx.emit import ELEMENT, Emitter, Ref, Tensor, rules


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
    mode = {"coordinate_transformation_mode": "half_pixel" if op.aligned else "output_half_pixel"}
    height, width = op.size
    return e(
        "RoiAlign", x, _corners(e, rois), _batch_rows(e, rois),
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
