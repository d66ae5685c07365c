"""Rules: data movement, resizing, constants."""

from __future__ import annotations

import numpy as np

from cnnc import ops
from cnnc.ir.dim import evaluate
from cnnc_onnx.emit import ELEMENT, Emitter, Ref, Tensor, rules


@rules(ops.Concat)
def concat(op: ops.Concat, e: Emitter, *xs: Ref) -> Tensor:
    return e("Concat", *xs, axis=op.axis)


@rules(ops.Slice)
def slice_(op: ops.Slice, e: Emitter, x: Ref) -> Tensor:
    start, stop = op.bounds(x.type)
    return e("Slice", x, e.ints(start), e.ints(stop), e.ints(op.axis), e.ints(op.step))


@rules(ops.Take)
def take(op: ops.Take, e: Emitter, x: Ref) -> Tensor:
    return e("Gather", x, e.ints(*op.indices), axis=op.axis)


@rules(ops.Pad)
def pad(op: ops.Pad, e: Emitter, x: Ref) -> Tensor:
    top, left, bottom, right = op.pads
    return e("Pad", x, e.ints(0, 0, top, left, 0, 0, bottom, right), e.number(op.value))


@rules(ops.Flatten, ops.Reshape)
def reshape(op: ops.Flatten | ops.Reshape, e: Emitter, x: Ref) -> Tensor:
    return e.reshape(x, x.type.shape, e.type.shape)


@rules(ops.Transpose)
def transpose(op: ops.Transpose, e: Emitter, x: Ref) -> Tensor:
    return e("Transpose", x, perm=op.axes)


@rules(ops.Cast)
def cast(op: ops.Cast, e: Emitter, x: Ref) -> Tensor:
    return e("Cast", x, to=ELEMENT[op.dtype])


@rules(ops.Constant)
def constant(op: ops.Constant, e: Emitter) -> Tensor:
    return e.floats(np.reshape(op.values, op.shape))


@rules(ops.ChannelShuffle)
def shuffle(op: ops.ChannelShuffle, e: Emitter, x: Ref) -> Tensor:
    dealt = evaluate(x.type.shape[1], {}) // op.groups
    split = e("Transpose", e("Reshape", x, e.ints(0, op.groups, dealt, -1)), perm=(0, 2, 1, 3))
    return e.reshape(split, x.type.shape[:1], x.type.shape)


@rules(ops.PixelShuffle)
def pixel_shuffle(op: ops.PixelShuffle, e: Emitter, x: Ref) -> Tensor:
    return e("DepthToSpace", x, blocksize=op.scale, mode="CRD")


@rules(ops.Upsample)
def upsample(op: ops.Upsample, e: Emitter, x: Ref) -> Tensor:
    scales = e.array(np.array([1, 1, *op.scale], np.float32))
    if op.mode == "nearest":
        floor = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return e("Resize", x, None, scales, mode="nearest", **floor)
    return e("Resize", x, None, scales, **_linear(op))


@rules(ops.Resize)
def resize(op: ops.Resize, e: Emitter, x: Ref, like: Ref | None = None) -> Tensor:
    """Nearest rows and columns are gathered by integer indices: ONNX Runtime's `Resize` rounds i*14/2 = 7 down to 6."""
    if op.mode == "nearest":
        y: Tensor = x
        for axis in (2, 3):
            before, after = x.type.shape[axis], e.type.shape[axis]
            y = e("Gather", y, e("Div", e("Mul", e.range(after), e.dim(before)), e.dim(after)), axis=axis)
        return y
    if e.opset >= 18:
        return e("Resize", x, None, None, e.dims(e.type.shape[2:]), axes=(2, 3), **_linear(op))
    return e("Resize", x, None, None, e.dims(e.type.shape), **_linear(op))


def _linear(op: ops.Upsample | ops.Resize) -> dict[str, str]:
    return {"mode": "linear", "coordinate_transformation_mode": "align_corners" if op.align_corners else "half_pixel"}


@rules(ops.Crop)
def crop(op: ops.Crop, e: Emitter, x: Ref, like: Ref) -> Tensor:
    ends = [start + size for start, size in zip(op.offset, e.type.shape[2:], strict=True)]
    return e("Slice", x, e.ints(*op.offset), e.dims(ends), e.ints(2, 3))
