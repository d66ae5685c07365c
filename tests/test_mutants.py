"""Faults such as compilers have had, planted one at a time: the comparison with the reference finds every one of them.

Each is shown by a small model on which the unchanged compiler agrees. A fault in a kernel of NumPy's is one of the
reference too, so another target tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

import cnnc
from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.op import Op, OpError
from cnnc.passes import (
    affine,
    canonical,
    commute_pool,
    dead_channels,
    fold_batch_norm,
    fold_into_next,
    fold_normalize,
    fold_scale,
    fuse_epilogue,
    merge_pools,
    merge_siblings,
    pointwise_linear,
    remove_identity,
    reorder_pool,
    share_common,
)
from cnnc.verification import Case, Expected, random_inputs, random_weights
from cnnc_numpy.kernels import conv, norm, pool, shape
from cnnc_onnx import rules_norm, rules_pointwise, rules_window
from cnnc_torch import rules_modules
from cnnc_tvm import conv_direct, rules_dense, rules_shape, scalar
from cnnc_tvm import rules_norm as tvm_norm
from cnnc_tvm.lower import TABLES
from cnnc_tvm.rules import CPU
from planting import planted
from random_checks import compiled

LEVELS = (0, 3)


@dataclass(frozen=True)
class Mutant:
    """A fault: in `function`, `old` became `new`. `body` is the model that shows it, on an input x, on `target`."""

    name: str
    function: Callable[..., Any]
    old: str
    new: str
    body: str
    target: str = "numpy"
    x: str = "N, 4, 9, 9"


def cpu(op: Op) -> Callable[..., Any]:
    """The rule of an op for native code."""
    assert TABLES  # whose import fills the table
    return CPU[op]


BN = "y = x -> conv(6, 3) -> bn(eps=1e-5) -> relu"
BETWEEN = "y = x -> relu -> bn -> conv(4, 3{}) -> tanh"
SHARED = "shared c = conv(4, 3, pad=1)\n  y = x -> c -> bn -> c"
NORMALIZE = "y = x -> normalize(mean=[0.1, 0.2, 0.3, 0.4], std=[0.5, 0.6, 0.7, 0.8]) -> conv(5, 3{})"

MUTANTS = (
    # Passes
    Mutant("epsilon of another framework", affine.affine, "+ eps)", "+ 1e-3)", BN),
    Mutant("mean forgotten", affine.affine, '- scale * sweep.array(node, "running_mean")', "", BN),
    Mutant("variance for deviation", affine.affine, "np.sqrt(", "(", BN),
    Mutant("bias of the layer dropped", fold_batch_norm.into_layer, "bias_of(layer, sweep) + shift", "0 + shift", BN),
    Mutant("bias not scaled", fold_batch_norm.into_layer, "scale * bias_of", "bias_of", BN),
    Mutant(
        "fold through a shared value", fold_batch_norm.into_layer, "not sweep.used_once(layer)", "False",
        "a = x -> conv(4, 3)\n  y = concat { a | a -> bn }",
    ),
    Mutant(
        "fold into shared weights", affine.check_changeable, "not all(map(sweep.owned", "False and (map(sweep.owned",
        SHARED,
    ),
    Mutant(
        "groups of a deconv in another order", affine._second, "values.reshape(groups, 1, -1)",
        "values.reshape(groups, 1, -1)[::-1]", "y = x -> deconv(6, 3, groups=2) -> bn",
    ),
    Mutant(
        "normalize folded at padded borders", fold_normalize._folded, "if not mean.any() or pads == (0, 0, 0, 0)",
        "if True", NORMALIZE.format(", pad=1"),
    ),
    Mutant(
        "normalize multiplies by the deviation", fold_normalize._folded, "per_input(1 / np",
        "per_input(1 * np", NORMALIZE.format(""),
    ),
    Mutant(
        "offset folded at padded borders", fold_into_next._check_offset,
        "op.pads(layer.inputs[0].type) != (0, 0, 0, 0)", "False", BETWEEN.format(", pad=1"),
    ),
    Mutant(
        "offset subtracted", fold_into_next.into_next, "bias = bias + terms", "bias = bias - terms",
        BETWEEN.format(""),
    ),
    Mutant(
        "second scale forgotten for the offset", fold_scale.into_scale, "scale * t + shift", "t + shift",
        "y = x -> relu -> bn -> scale -> tanh",
    ),
    Mutant(
        "transposes composed the wrong way round", canonical.movement, "inner[axis] for axis in outer",
        "outer[axis] for axis in inner", "y = x -> transpose(0, 2, 3, 1) -> transpose(0, 3, 2, 1)", x="N, 5, 5, 5",
    ),
    Mutant(
        "rows and columns of padding swapped", canonical.padding, "top, left, bottom, right = (a + b",
        "left, top, right, bottom = (a + b", "y = x -> pad([1, 0, 0, 1]) -> conv(4, 3)",
    ),
    Mutant(
        "negative clip taken for never negative", canonical._never_negative, "low >= 0", "low >= -1",
        "y = x -> clip(-1, 1) -> relu",
    ),
    Mutant(
        "wider of two clips kept", canonical.clipping, "max(min(b, d), c)", "max(b, d)",
        "y = x -> clip(-1, 1) -> clip(-0.5, 0.5)",
    ),
    Mutant(
        "slices joined in any order", canonical._whole, "start != position or", "",
        "y = concat { x -> slice(2, 4) | x -> slice(0, 2) }",
    ),
    Mutant(
        "any shuffle an identity", remove_identity.identity, "if groups in (1, x.type.shape[1])", "if groups",
        "y = x -> shuffle(2) -> conv(4, 1)",
    ),
    Mutant(
        "layers equal but for their weights", share_common._key, ", tuple(node.params.values())", "",
        "y = add { x -> conv(4, 3) | x -> conv(4, 3) -> tanh }",
    ),
    Mutant(
        "inner stride of two pools lost", merge_pools.merge, "first.stride[0] * second.stride[0]",
        "second.stride[0]", "y = x -> maxpool(2, s=2) -> maxpool(2, s=2)", x="N, 2, 16, 16",
    ),
    Mutant(
        "outer padding in outer places", merge_pools._padding, "p2 * stride[axis])", "p2)",
        "y = x -> maxpool(2, s=2) -> maxpool(2, s=2, pad=1)", x="N, 2, 64, 64",
    ),
    Mutant(
        "pools with gaps merged", merge_pools.merge,
        "first.stride[0] > first.kernel[0] or first.stride[1] > first.kernel[1]", "False",
        "y = x -> maxpool([1, 2], s=2) -> maxpool([2, 1], s=[2, 1])", x="N, 2, 32, 32",
    ),
    Mutant(
        "pool moved past a falling slope", reorder_pool._check_rising, "node.op.slope <= 0", "False",
        "y = x -> leaky_relu(-0.5) -> maxpool(2)",
    ),
    Mutant(
        "bias averaged with padding", commute_pool._check, "counts_padding and conv.op.bias", "False",
        "y = x -> conv(16, 1) -> avgpool(3, s=2, pad=1)",
    ),
    Mutant(
        "siblings cut one channel early", merge_siblings._stack, "start += channels", "start += channels - 1",
        "y = concat { x -> conv(4, 1) -> conv(2, 3) | x -> conv(4, 1) -> conv(2, 3) }",
    ),
    Mutant(
        "one activation for all siblings", merge_siblings._alike, "tuple(node.op for node in after)", "()",
        "y = concat { x -> conv(4, 1) -> relu -> conv(2, 3) | x -> conv(4, 1) -> tanh -> conv(2, 3) }",
    ),
    Mutant(
        "channels counted as before", dead_channels.select, "where[channel] for", "channel for",
        "a = x -> conv(9, 1)\n  y = add { a -> slice(2, 4) | a -> slice(5, 7) }",
    ),
    Mutant(
        "a map reshaped for its channels", pointwise_linear._flat, "(*flat.type.shape, 1, 1)", "x.type.shape",
        "y = x -> conv(6, 3) -> reshape(6, 49, 1) -> relu -> flatten",
    ),
    Mutant(
        "fused though read twice", fuse_epilogue._check, "not sweep.used_once(layer)", "False",
        "a = x -> conv(4, 3)\n  y = concat { a | a -> relu }",
    ),
    # Kernels of NumPy's
    Mutant("dilation of rows ignored", conv.columns, "p * dilation[0]", "p", "y = x -> conv(4, 3, dilation=2)", "onnx"),
    Mutant(
        "padding in another order", conv.padded, "top, left, bottom, right = pads",
        "left, top, right, bottom = pads", "y = x -> conv(4, 3, pad=[1, 0, 0, 1])", "onnx",
    ),
    Mutant(
        "padding of ceil windows counted", pool.avg_pool, "high + pads[2 + axis]", "high + pads[2 + axis] + 1",
        "y = x -> avgpool(3, s=2, pad=1, ceil=true)", "onnx", x="N, 2, 8, 8",
    ),
    Mutant(
        "ceil window that starts in padding", pool.pool_size, "min(-(-room // s) + 1, -(-(size + first) // s))",
        "-(-room // s) + 1", "y = x -> maxpool(2, s=2, pad=1, ceil=true)", "onnx",
    ),
    Mutant(
        "even window of lrn one channel on", norm.lrn, "(size // 2, size - 1 - size // 2)",
        "(size - 1 - size // 2, size // 2)", "y = x -> lrn(4, alpha=0.5)", "onnx",
    ),
    Mutant(
        "shuffle the other way", shape.channel_shuffle, "groups, c // groups, h", "c // groups, groups, h",
        "y = x -> shuffle(2)", "onnx", x="N, 6, 3, 3",
    ),
    Mutant(
        "unbiased variance", norm.standardized, "(x * x).mean(-1, keepdims=True)",
        "(x * x).sum(-1, keepdims=True) / (x.shape[-1] - 1)", "y = x -> group_norm(2)", "onnx",
    ),
    Mutant(
        "crop of a deconv swapped", conv.deconv, "top : rows - bottom", "bottom : rows - top",
        "y = x -> deconv(3, 4, s=2, pad=[1, 0, 2, 1])", "onnx",
    ),
    Mutant(
        "epsilon outside the root", norm.batch_norm, "np.sqrt(variance + eps)", "(np.sqrt(variance) + eps)",
        "y = x -> relu -> bn(eps=0.1)", "onnx",
    ),
    Mutant(
        "first maximum taken twice", pool.max_pool, "q * dilation[1]", "p * dilation[1]", "y = x -> maxpool(2)",
        "onnx",
    ),
    # ONNX and PyTorch
    Mutant(
        "weights of a linear layer not transposed", rules_pointwise.linear, "transB=1", "transB=0",
        "y = x -> flatten -> linear(16)", "onnx", x="N, 4, 2, 2",
    ),
    Mutant(
        "padding always counted", rules_window.avgpool, "int(op.count_include_pad)", "1",
        "y = x -> avgpool(3, pad=1, count_include_pad=false)", "onnx",
    ),
    Mutant("default slope", rules_pointwise.leaky_relu, ", alpha=op.slope", "", "y = x -> leaky_relu(0.3)", "onnx"),
    Mutant("hard sigmoid of ONNX", rules_pointwise.hard_sigmoid, "alpha=1 / 6, ", "", "y = x -> hard_sigmoid", "onnx"),
    Mutant(
        "softmax over the last axis", rules_pointwise.softmax, "axis=op.axis", "axis=-1", "y = x -> softmax", "onnx",
    ),
    Mutant("default epsilon", rules_norm.bn, ", epsilon=op.eps", "", "y = x -> relu -> bn(eps=0.1) -> tanh", "onnx"),
    Mutant(
        "sides in another order", rules_modules.sides, "return left, right, top, bottom",
        "return top, bottom, left, right", "y = x -> conv(4, 3, pad=[1, 0, 0, 1])", "torch",
    ),
    # Native code
    Mutant(
        "step of a slice ignored", cpu(ops.Slice(0, 4)), "i[op.axis] * op.step + start", "i[op.axis] + start",
        "y = x -> slice(0, 4, step=2) -> tanh", "cpu",
    ),
    Mutant(
        "products of TF32", rules_dense.direct, "weight[o, c, p, q]",
        'weight[o, c, p, q].astype("float16").astype("float32")', "y = x -> conv(4, 3)", "cuda",
    ),
    Mutant("upper bound ignored", scalar.at_most, "f32(high), v))", "v, v))", "y = x -> clip(-0.5, 0.5)", "cpu"),
    Mutant(
        "ceil windows divided in full", cpu(ops.AvgPool(2)), "size + after", "size + after + 1",
        "y = x -> avgpool(3, s=2, pad=1, ceil=true)", "cpu", x="N, 2, 8, 8",
    ),
    Mutant(
        "window of lrn centred upwards", cpu(ops.Lrn(4)), "before = op.size // 2", "before = (op.size - 1) // 2",
        "y = x -> lrn(4, alpha=0.5)", "cpu",
    ),
    Mutant(
        "corners not aligned", rules_shape._corners, "_split(i * (size - 1)", "_split(i * size",
        'y = x -> upsample(2, mode="bilinear", align_corners=true)', "cpu",
    ),
    Mutant(
        "maximum added back", cpu(ops.LogSoftmax()), "x[i] - largest[row(i)] - c_function", "x[i] - c_function",
        "y = x -> log_softmax", "cpu",
    ),
    Mutant(
        "last channel not packed", conv_direct.pack, "full[:, :per_group, :channels] = weight.reshape",
        "per_group -= 1; full[:, :per_group, :channels] = weight[:-1].reshape", "y = x -> conv(9, 3)", "cpu",
    ),
    Mutant(
        "all groups read the first channels", cpu(ops.Conv(1, 1)),
        "tirx.floordiv(o, per_group) * size if op.groups > 1 else 0", "0", "y = x -> conv(32, 3, groups=2)", "cpu",
    ),
    Mutant(
        "epsilon dropped", cpu(ops.BatchNorm()), "var + np.float32(op.eps)", "var", "y = x -> relu -> bn(eps=0.1)",
        "cpu",
    ),
    Mutant(
        "kernel rows of a deconv unstepped", rules_dense.Stamps._reach, "r = first + step * t", "r = first + t",
        "y = x -> deconv(3, 4, s=2)", "cuda",
    ),
    Mutant(
        "variance of another row", tvm_norm._statistics, "f32(1) / te.sqrt", "te.sqrt", "y = x -> layer_norm", "cpu",
    ),
    Mutant(
        "unpooled to the last maximum", cpu(ops.Unpool(2)),
        "places = b.store(b.reduce(pooled, op.kernel, place, MIN",
        "places = b.store(b.reduce(pooled, op.kernel, place, MAX",
        "y = unpool(2) { x -> relu -> maxpool(2) | x -> relu }", "cpu", x="N, 2, 8, 8",
    ),
    Mutant(
        "nearest rounds up", cpu(ops.Upsample(2)), "_div(k * h, g)", "_div(k * h + g - 1, g + 1)",
        "y = x -> upsample(3)", "cpu",
    ),
)  # fmt: skip

CRASHES = (CnncError, OpError, ValueError, IndexError)
"""What a fault may end in instead of another number; anything else would be a mutant that is not even Python."""


def found(mutant: Mutant) -> str:
    """How the comparison with the reference finds something wrong with the model of a mutant; '' if it does not."""
    try:
        graph = cnnc.load(f"model M {{\n  input x: f32[{mutant.x}]\n  output y\n  {mutant.body}\n}}")
        case = Case(graph, random_weights(graph), random_inputs(graph, N=2))
        expected = Expected(case)
        expected.check_varied()
        for level in LEVELS:
            program = compiled(graph, mutant.target, case.weights, level)
            wrong = [x for x in expected.compare(program(**case.inputs)) if x.mismatch]
            if wrong:
                return f"-O{level}: {wrong[0].mismatch}, {wrong[0].error:.1e} (bound {wrong[0].bound:.1e})"
    except CRASHES as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0]}"
    return ""


@cache
def found_unchanged(target: str, body: str, x: str) -> str:
    return found(Mutant("", found, "", "", body, target, x))


def test_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40


@pytest.mark.parametrize("mutant", [pytest.param(x, id=x.name.replace(" ", "-")) for x in MUTANTS])
def test_is_found(mutant: Mutant) -> None:
    assert not found_unchanged(mutant.target, mutant.body, mutant.x)
    with planted(mutant.function, mutant.old, mutant.new):
        how = found(mutant)
    assert how, f"{mutant.name}: nobody noticed"
    print(how)
