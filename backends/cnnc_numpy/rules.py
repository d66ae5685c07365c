"""One rule per op: the kernel that computes it and the attributes the kernel is called with.

A `Call` is the only description of a node: the evaluator makes the call, the source writer prints it. The operands and
then the parameters of a node, in the order of its op, are the positional arguments of its kernel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cnnc import ops
from cnnc.ir.op import Op
from cnnc.ir.types import TensorType
from cnnc.target import Rules, numpy_dtype
from cnnc_numpy.kernels import Array, activation, arithmetic, conv, detection, linear, norm, pool, resize, roi, shape

Kernel: TypeAlias = Callable[..., Array]


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel and its keyword arguments, which may hold symbolic dims.

    `view` says that the result may share memory with the first operand, `in_place` that the kernel can write it there.
    """

    kernel: Kernel
    attributes: Mapping[str, object] = field(default_factory=dict)
    view: bool = False
    in_place: bool = False

    @property
    def takes_out(self) -> bool:
        """Whether the kernel can write its result to an array that it is given."""
        return "out" in inspect.signature(self.kernel).parameters


rule: Rules[Callable[..., Call]] = Rules("numpy")
"""The table: a function of an op and the types of its operands."""


def _direct(op: type[Op], kernel: Kernel, *attributes: str, view: bool = False, in_place: bool = False) -> None:
    """The rule of an op whose kernel takes these of its attributes, under their own names."""

    @rule(op)
    def call(op: Op, *_: TensorType) -> Call:
        return Call(kernel, {name: getattr(op, name) for name in attributes}, view, in_place)


_direct(ops.Relu, activation.relu, in_place=True)
_direct(ops.LeakyRelu, activation.leaky_relu, "slope")
_direct(ops.Prelu, activation.prelu)
_direct(ops.Sigmoid, activation.sigmoid)
_direct(ops.Tanh, activation.tanh, in_place=True)
_direct(ops.Step, activation.step)
_direct(ops.Elu, activation.elu, "alpha")
_direct(ops.Selu, activation.selu)
_direct(ops.Gelu, activation.gelu, "approx")
_direct(ops.Silu, activation.silu)
_direct(ops.HardSigmoid, activation.hard_sigmoid)
_direct(ops.HardSwish, activation.hard_swish)
_direct(ops.Clip, activation.clip, "low", "high", in_place=True)
_direct(ops.Softmax, activation.softmax, "axis")
_direct(ops.LogSoftmax, activation.log_softmax, "axis")
_direct(ops.Abs, activation.absolute)
_direct(ops.Exp, activation.exp)
_direct(ops.Log, activation.log)
_direct(ops.Sqrt, activation.sqrt)
_direct(ops.Neg, activation.neg)
_direct(ops.Dropout, activation.dropout, view=True)

_direct(ops.Sub, arithmetic.sub, in_place=True)
_direct(ops.Div, arithmetic.div, in_place=True)
_direct(ops.ReduceMean, arithmetic.reduce_mean, "axes", "keep")
_direct(ops.ReduceSum, arithmetic.reduce_sum, "axes", "keep")
_direct(ops.ReduceMax, arithmetic.reduce_max, "axes", "keep")
_direct(ops.ReduceMin, arithmetic.reduce_min, "axes", "keep")

_direct(ops.Linear, linear.linear)
_direct(ops.MatMul, linear.matmul)
_direct(ops.Rbf, linear.rbf)

_direct(ops.Scale, norm.scale, in_place=True)
_direct(ops.BatchNorm, norm.batch_norm, "eps", in_place=True)
_direct(ops.Lrn, norm.lrn, "size", "alpha", "beta", "k", "within")
_direct(ops.LayerNorm, norm.layer_norm, "axis", "eps")
_direct(ops.GroupNorm, norm.group_norm, "groups", "eps")
_direct(ops.InstanceNorm, norm.instance_norm, "eps")
_direct(ops.Normalize, norm.normalize, "mean", "std")

_direct(ops.AdaptiveAvgPool, pool.adaptive_avg_pool, "size")
_direct(ops.GlobalAvgPool, pool.global_avg_pool)
_direct(ops.GlobalMaxPool, pool.global_max_pool)
_direct(ops.Unpool, pool.unpool, "kernel", "stride")

_direct(ops.Concat, shape.concat, "axis")
_direct(ops.Take, shape.take, "indices", "axis")
_direct(ops.Pad, shape.pad, "pads", "value", view=True)
_direct(ops.Flatten, shape.flatten, "axis", view=True)
_direct(ops.Reshape, shape.reshape, "dims", view=True)
_direct(ops.Transpose, shape.transpose, "axes", view=True)
_direct(ops.ChannelShuffle, shape.channel_shuffle, "groups", view=True)
_direct(ops.PixelShuffle, shape.pixel_shuffle, "scale", view=True)
_direct(ops.Crop, shape.crop, "offset", view=True)
_direct(ops.Upsample, resize.upsample, "scale", "mode", "align_corners")

_direct(ops.RoiPool, roi.roi_pool, "size", "scale")
_direct(ops.RoiAlign, roi.roi_align, "size", "scale", "samples", "aligned")
_direct(ops.RoiAlignPyramid, roi.roi_align_pyramid, "size", "scales", "samples")
_direct(ops.Anchors, detection.anchors, "corners", "stride")
_direct(ops.Decode, detection.decode)
_direct(ops.ClipBoxes, detection.clip_boxes)
_direct(ops.Nms, detection.nms, "pre", "keep", "iou")
_direct(ops.Top, detection.top, "k")


@rule(ops.Conv)
def _(op: ops.Conv, x: TensorType) -> Call:
    attributes = {"stride": op.stride, "pads": op.pads(x), "dilation": op.dilation, "groups": op.groups}
    return Call(conv.conv, attributes)


@rule(ops.Deconv)
def _(op: ops.Deconv, x: TensorType) -> Call:
    attributes: dict[str, object] = {"stride": op.stride, "pads": op.pads, "out_pad": op.out_pad}
    return Call(conv.deconv, {**attributes, "dilation": op.dilation, "groups": op.groups})


@rule(ops.Local)
def _(op: ops.Local, x: TensorType) -> Call:
    return Call(conv.local, {"stride": op.stride, "pads": op.pads(x)})


@rule(ops.MaxPool)
def _(op: ops.MaxPool, x: TensorType) -> Call:
    return Call(pool.max_pool, {**_pool(op, x), "dilation": op.dilation})


@rule(ops.AvgPool)
def _(op: ops.AvgPool, x: TensorType) -> Call:
    return Call(pool.avg_pool, {**_pool(op, x), "count_include_pad": op.count_include_pad})


@rule(ops.L2Pool)
def _(op: ops.L2Pool, x: TensorType) -> Call:
    return Call(pool.l2_pool, _pool(op, x))


def _pool(op: ops.MaxPool | ops.AvgPool | ops.L2Pool, x: TensorType) -> dict[str, Any]:
    return {"kernel": op.kernel, "stride": op.stride, "pads": op.pads(x), "ceil": op.ceil}


@rule(ops.Add, ops.Mul, ops.Maximum, ops.Minimum)
def _(op: ops.Add | ops.Mul | ops.Maximum | ops.Minimum, *xs: TensorType) -> Call:
    kernel: Kernel = getattr(arithmetic, op.name)
    return Call(kernel, view=len(xs) == 1, in_place=True)


@rule(ops.Slice)
def _(op: ops.Slice, x: TensorType) -> Call:
    start, stop = op.bounds(x)
    return Call(shape.slice_axis, {"start": start, "stop": stop, "step": op.step, "axis": op.axis}, view=True)


@rule(ops.Cast)
def _(op: ops.Cast, x: TensorType) -> Call:
    return Call(shape.cast, {"dtype": str(numpy_dtype(op.dtype))})


@rule(ops.Constant)
def _(op: ops.Constant) -> Call:
    return Call(shape.constant, {"values": op.values, "shape": op.shape, "dtype": str(numpy_dtype(op.dtype))})


@rule(ops.Resize)
def _(op: ops.Resize, x: TensorType, like: TensorType | None = None) -> Call:
    attributes: dict[str, object] = {"mode": op.mode, "align_corners": op.align_corners}
    if like is not None:
        return Call(resize.resize_like, attributes)
    return Call(resize.resize, {"size": op.size, **attributes})
