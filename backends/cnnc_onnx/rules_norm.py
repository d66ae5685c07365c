"""Rules: normalisation."""

from __future__ import annotations

import numpy as np

from cnnc import ops
from cnnc.ir.dim import evaluate
from cnnc_onnx.emit import Emitter, Ref, Tensor, in_f32, rules


@rules(ops.BatchNorm)
def bn(op: ops.BatchNorm, e: Emitter, x: Ref, weight: Ref, bias: Ref, running_mean: Ref, running_var: Ref) -> Tensor:
    return e("BatchNormalization", x, weight, bias, running_mean, running_var, epsilon=op.eps)


@rules(ops.Lrn)
@in_f32
def lrn(op: ops.Lrn, e: Emitter, x: Ref) -> Tensor:
    """x / (k + alpha * mean of squares)^beta in parts.

    ONNX's `LRN` places even windows one channel later, and ONNX Runtime slides the sum along the channels: what it adds
    and takes off again leaves errors that can exceed the sum (NaN where it falls below zero).
    """
    before, after = op.size // 2, (op.size - 1) // 2
    mean: Tensor = e("Mul", x, x)
    if op.within:
        pads = (before, before, after, after)
        mean = e("AveragePool", mean, kernel_shape=(op.size, op.size), pads=pads, count_include_pad=1)
    else:
        n, c, h, w = x.type.shape
        mean = e.reshape(mean, x.type.shape, (n, 1, c, h * w))  # channels as rows
        mean = e("AveragePool", mean, kernel_shape=(op.size, 1), pads=(before, 0, after, 0), count_include_pad=1)
        mean = e.reshape(mean, (n, 1, c, h * w), x.type.shape)
    base = e("Add", e("Mul", mean, e.number(op.alpha)), e.number(op.k))
    return e("Div", x, e("Pow", base, e.number(op.beta)))


@rules(ops.LayerNorm)
def layer_norm(op: ops.LayerNorm, e: Emitter, x: Ref, weight: Ref | None = None, bias: Ref | None = None) -> Tensor:
    e.needs_opset(17, "`layer_norm`")
    scale = weight or e("Expand", e.number(1), e.dims(x.type.shape[op.axis :]))
    return e("LayerNormalization", x, scale, bias, axis=op.axis, epsilon=op.eps)


@rules(ops.InstanceNorm)
def instance_norm(
    op: ops.InstanceNorm, e: Emitter, x: Ref, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    channels = evaluate(x.type.shape[1], {})
    weight, bias = weight or e.floats(np.ones(channels)), bias or e.floats(np.zeros(channels))
    return e("InstanceNormalization", x, weight, bias, epsilon=op.eps)


@rules(ops.GroupNorm)
@in_f32
def group_norm(op: ops.GroupNorm, e: Emitter, x: Ref, weight: Ref | None = None, bias: Ref | None = None) -> Tensor:
    """Instances of one channel a group; ONNX's own `GroupNormalization` (opset 21) subtracts squares of means."""
    ones, zeros = e.floats(np.ones(op.groups)), e.floats(np.zeros(op.groups))
    y = e("InstanceNormalization", e("Reshape", x, e.ints(0, op.groups, -1)), ones, zeros, epsilon=op.eps)
    return e.affine(e.reshape(y, x.type.shape[:1], x.type.shape), weight, bias, x.type.rank)


@rules(ops.Normalize)
@in_f32
def normalize(op: ops.Normalize, e: Emitter, x: Ref) -> Tensor:
    mean, std = (e.floats(np.reshape(v, (-1, *[1] * (x.type.rank - 2)))) for v in (op.mean, op.std))
    return e("Div", e("Sub", x, mean), std)
