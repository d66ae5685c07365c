"""Which kernel computes a convolution on a CPU: chosen from its shape and the machine, never by measuring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnnc import ops
from cnnc.ir.types import DType, TensorType
from cnnc_tvm import conv_direct
from cnnc_tvm.builder import Builder
from cnnc_tvm.conv_shape import ConvShape, Finish
from cnnc_tvm.tensor import KERNEL, Expr, Kernel, Tensor


def convolution(b: Builder, op: ops.Conv, out: TensorType, x: Tensor, weight: Tensor) -> Tensor | None:
    """The convolution by a kernel; None where there is none for its shape, or where images are stored plainly."""
    shape = _shape(b, op, x.type)
    if b.machine is None or shape is None or b.memory(out) is None:
        return None
    lanes = b.machine.lanes
    if op.groups > 1 and (shape.channels // op.groups % lanes or shape.filters // op.groups % lanes):
        return None
    image = b.in_blocks(x)
    if image is None and op.groups > 1:
        return None
    plan = conv_direct.choose(shape, b.machine, plain=image is None)
    packed = b.packed(weight, f"{plan}", lambda w: conv_direct.pack(w, plan, op.groups))

    def write(finish: Callable[..., Expr], x: Any, w: Any, y: Any) -> None:
        conv_direct.write(shape, plan, _by_channel(finish, lanes), x, w, y)

    heart = b.heart(out)
    kernel = Kernel(heart, (image or b.plain(x), packed), write)
    return Tensor(TensorType(out.shape), lambda *i: heart(*i), loops=KERNEL, kernel=kernel)


def _shape(b: Builder, op: ops.Conv, x: TensorType) -> ConvShape | None:
    n, c, h, w = x.shape
    if x.dtype is not DType.F32 or not (isinstance(c, int) and isinstance(h, int) and isinstance(w, int)):
        return None
    top, left, bottom, right = (pad if isinstance(pad, int) else 0 for pad in op.pads(x))
    return ConvShape(
        b.size(n), c, op.channels, (h, w), op.kernel, op.stride, op.dilation, (top, left, bottom, right), op.groups
    )


def _by_channel(finish: Callable[..., Expr], lanes: int) -> Finish:
    def finish_channel(value: Expr, n: Expr, o: Expr, i: Expr, j: Expr) -> Expr:
        block, lane = o.a, o.b
        return finish(value, n, block.a, lane, i, j)

    return finish_channel
