"""Every op on the target `torch` agrees with the reference within the derived bounds, for any batch and image size."""

from __future__ import annotations

import ast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnnc
from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.dim import Sym
from cnnc.ir.op import Op, registry
from cnnc.ir.types import DType, TensorType
from cnnc_torch import TorchTarget
from networks import Unruled
from numerics import Array, assert_node_agrees, random_inputs, random_weights, single

N, H, W = map(Sym.of, "NHW")
DIMS = {"H": 8, "W": 11}


def f32(*shape: int | Sym) -> TensorType:
    return TensorType(shape)


IMAGE = f32(N, 4, 9, 10)
ANY = f32(N, 4, H, W)
ROW = f32(N, 6)

CASES: list[tuple[Op, *tuple[TensorType, ...]]] = [
    (ops.Conv(8, 3, pad=1), IMAGE),
    (ops.Conv(8, [3, 2], stride=[2, 1], pad=[0, 1, 2, 0], groups=2, bias=False), IMAGE),
    (ops.Conv(4, 3, pad=2, dilation=2, groups=4), ANY),
    (ops.Conv(8, 3, stride=2, pad="same_upper"), ANY),
    (ops.Conv(8, 2, stride=3, pad="same_lower"), ANY),
    (ops.Conv(8, 3, stride=2, pad="same_lower", dilation=2), ANY),
    (ops.Deconv(6, 3, stride=2, pad=1, out_pad=1, groups=2), ANY),
    (ops.Deconv(6, [3, 4], stride=2, pad=[0, 1, 2, 1], out_pad=1), ANY),
    (ops.Local(3, 3, stride=2, pad=1), IMAGE),
    (ops.Local(3, 2, stride=2, pad="same_upper", bias=False), IMAGE),
    (ops.MaxPool(3, 2, pad=1, ceil=True), ANY),
    (ops.MaxPool(3, 2, pad="same_upper", dilation=2), ANY),
    (ops.MaxPool(2, pad="same_lower", ceil=True), IMAGE),
    (ops.MaxPool(3, 2, pad=2), ANY),
    (ops.AvgPool(3, 2, pad=1, ceil=True), ANY),
    (ops.AvgPool(3, 2, pad=2, ceil=True), ANY),
    (ops.AvgPool(3, 2, pad=1, ceil=True, count_include_pad=False), IMAGE),
    (ops.AvgPool(3, 2, pad="same_upper", count_include_pad=False), ANY),
    (ops.L2Pool(3, 2, pad=1, ceil=True), IMAGE),
    (ops.L2Pool(2), ANY),
    (ops.AdaptiveAvgPool([3, 5]), IMAGE),
    (ops.AdaptiveAvgPool([4, 3]), ANY),
    (ops.GlobalAvgPool(), ANY),
    (ops.GlobalMaxPool(), ANY),
    (ops.Unpool(2), f32(N, 4, 4, 5), IMAGE),
    (ops.Unpool([1, 2], 1), f32(N, 4, 9, 9), IMAGE),
    *((op, ANY) for op in (
        ops.Relu(), ops.LeakyRelu(0.1), ops.Prelu(), ops.Sigmoid(), ops.Tanh(), ops.Step(), ops.Elu(0.7), ops.Selu(),
        ops.Gelu(), ops.Gelu("tanh"), ops.Silu(), ops.HardSigmoid(), ops.HardSwish(), ops.Clip(-0.5, 1), ops.Clip(0, 6),
        ops.Softmax(), ops.LogSoftmax(3), ops.Abs(), ops.Exp(), ops.Log(), ops.Sqrt(), ops.Neg(), ops.Dropout(),
        ops.BatchNorm(), ops.Scale(), ops.Scale(bias=False), ops.InstanceNorm(), ops.InstanceNorm(affine=False),
        ops.GroupNorm(2), ops.GroupNorm(4, affine=False), ops.LayerNorm(2, affine=False),
        ops.Normalize([1, 2, 3, 4], [0.5]),
    )),
    (ops.Prelu(), ROW),
    (ops.BatchNorm(eps=0.1), ROW),
    (ops.BatchNorm(), f32(N, 4, 9)),
    (ops.LayerNorm(), IMAGE),
    (ops.LayerNorm(3), IMAGE),
    (ops.GroupNorm(3), ROW),
    (ops.Lrn(5), ANY),
    (ops.Lrn(4, alpha=1), ANY),
    (ops.Lrn(3, alpha=1, beta=0.5, k=2, within=True), ANY),
    (ops.Lrn(4, alpha=1, within=True), ANY),
    (ops.Add(), ANY),
    (ops.Add(), ANY, f32(4, 1, 1), ANY),
    (ops.Mul(), ANY, f32(N, 4, 1, 1)),
    (ops.Maximum(), ANY, f32(1), ANY),
    (ops.Minimum(), ANY, ANY),
    (ops.Sub(), f32(10), IMAGE),
    (ops.Div(), IMAGE, IMAGE),
    (ops.Linear(5), ROW),
    (ops.Linear(5, bias=False), ROW),
    (ops.Rbf(5), ROW),
    (ops.MatMul(), IMAGE, f32(10, 7)),
    (ops.Concat(), ANY, f32(N, 1, H, W)),
    (ops.Concat(0), ANY, ANY),
    (ops.Slice(1, -1), IMAGE),
    (ops.Slice(1, 100, 2, axis=3), ANY),
    (ops.Take([2, 0, 2]), ANY),
    (ops.Take([1, 2]), ANY),
    (ops.Pad([0, 1, 2, 3], -2.5), ANY),
    (ops.Flatten(), IMAGE),
    (ops.Flatten(2), ANY),
    (ops.Flatten(0), ANY),
    (ops.Reshape([2, -1]), ANY),
    (ops.Reshape([10, 2, 18]), IMAGE),
    (ops.Reshape([3, -1]), ROW),
    (ops.Transpose([0, 2, 3, 1]), ANY),
    (ops.ChannelShuffle(2), ANY),
    (ops.PixelShuffle(2), ANY),
    (ops.Upsample([2, 3]), ANY),
    (ops.Upsample([2, 3], mode="bilinear"), ANY),
    (ops.Upsample(2, mode="bilinear", align_corners=True), ANY),
    (ops.Resize([5, 21]), IMAGE),
    (ops.Resize([5, 21], mode="bilinear"), ANY),
    (ops.Resize(), ANY, f32(N, 1, 2 * H + 1, 8 * W)),
    (ops.Resize(mode="bilinear", align_corners=True), f32(N, 4, 3, 4), f32(N, 1, H, W)),
    (ops.Crop([1, 2]), IMAGE, f32(1, 1, 8, 5)),
    (ops.Crop([1, 2]), f32(N, 1, H + 4, 2 * W), ANY),
    (ops.ReduceMean([2, 3]), ANY),
    (ops.ReduceSum([1], keep=True), ANY),
    (ops.ReduceMax([0, 1]), ANY),
    (ops.ReduceMin([3]), ANY),
]  # fmt: skip
ROIS = np.array([
    [[1, 2, 7, 6], [0, 0, 10, 8], [3.4, 2.6, 3.9, 2.7], [-4, -3, 20, 30]],
    [[9, 7, 9, 7], [0.5, 1.5, 6.5, 5.5], [2, 2, 1, 1], [12, 12, 19, 19]],
], np.float32)  # fmt: skip
REGIONS: list[Op] = [
    ops.RoiPool([3, 2]),
    ops.RoiPool(2, scale=0.5),
    ops.RoiAlign([3, 2]),
    ops.RoiAlign(2, scale=0.5, samples=3, aligned=True),
]
DETECTORS = {ops.RoiAlignPyramid, ops.Anchors, ops.Decode, ops.ClipBoxes, ops.Nms, ops.Top}
"""test_detection_ops.py has these."""


def show(case: object) -> str:
    return " ".join(map(str, case)) if isinstance(case, tuple) else str(case)


def check(op: Op, *types: TensorType, inputs: dict[str, Array] | None = None, n: int = 2) -> None:
    graph = single(op, *types)
    weights = random_weights(graph)
    inputs = inputs or random_inputs(graph, N=n, **DIMS)
    if isinstance(op, ops.Log | ops.Sqrt):
        inputs = {name: np.abs(x) for name, x in inputs.items()}
    if isinstance(op, ops.Gelu):  # beyond 2, torch's erf is off by a little more than numerics.py allows
        inputs = {name: x / 2 for name, x in inputs.items()}
    program = TorchTarget().compile(graph, weights)
    ast.parse(program.source())
    assert_node_agrees(graph, weights, inputs, program(**inputs))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=show)
def test_an_op_agrees_with_the_reference(case: tuple[Op, *tuple[TensorType, ...]], n: int) -> None:
    check(*case, n=n)


@pytest.mark.parametrize("op", REGIONS, ids=show)
def test_regions_agree_with_the_reference(op: Op) -> None:
    image = np.random.default_rng(0).standard_normal((2, 4, 9, 10)).astype(np.float32)
    check(op, IMAGE, f32(N, 4, 4), inputs={"x0": image, "x1": ROIS})


def test_every_op_has_a_case() -> None:
    tested = {type(op) for op, *_ in CASES} | set(map(type, REGIONS)) | {ops.Cast, ops.Constant}
    ours = {x for x in registry().values() if x.__module__.startswith("cnnc.") and not x.internal}
    missing = {x.__name__ for x in ours - tested - DETECTORS}
    assert not missing


ROUNDING = (ops.Deconv, ops.InstanceNorm, ops.Softmax, ops.LogSoftmax, ops.Add)
"""Ops that torch, or an expression of several calls, rounds more than once in f16 and bf16."""
LOW = [case for case in CASES if not isinstance(case[0], ROUNDING)]


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
@pytest.mark.parametrize("case", LOW, ids=show)
def test_low_precision(case: tuple[Op, *tuple[TensorType, ...]], dtype: DType) -> None:
    op, *types = case
    check(op, *(TensorType(x.shape, dtype) for x in types))


@pytest.mark.parametrize("to", [DType.F16, DType.BF16])
def test_casts(to: DType) -> None:
    check(ops.Cast(to), ANY)
    check(ops.Cast(DType.F32), TensorType(ANY.shape, to))


def test_an_op_without_a_rule_is_refused_by_name() -> None:
    with pytest.raises(CnncError, match=r"E0601.*target `torch` has no rule for `unruled`"):
        check(Unruled(), IMAGE)


PADS = st.one_of(
    st.sampled_from(["same_upper", "same_lower", "valid"]), st.tuples(*[st.integers(0, 3)] * 4), st.integers(0, 2)
)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(kernel=SIZES, stride=SIZES, pad=PADS, dilation=st.integers(1, 2), groups=st.sampled_from([1, 2, 4]))
def test_convolutions(kernel: object, stride: object, pad: object, dilation: int, groups: int) -> None:
    check(ops.Conv(4, kernel, stride, pad, dilation, groups), ANY)  # type: ignore[arg-type]


@given(kernel=SIZES, stride=SIZES, pad=PADS, ceil=st.booleans(), count=st.booleans(), kind=st.integers(0, 2))
def test_pools(kernel: tuple[int, int], stride: object, pad: object, ceil: bool, count: bool, kind: int) -> None:
    cls = (ops.MaxPool, ops.AvgPool, ops.L2Pool)[kind]
    if isinstance(pad, int):
        pad = min(pad, *(k - 1 for k in kernel))
    elif isinstance(pad, tuple):
        pad = [min(size, k - 1) for size, k in zip(pad, kernel * 2, strict=True)]
    more = {"count_include_pad": count} if cls is ops.AvgPool else {}
    op = cls(kernel, stride, pad, ceil, **more)  # type: ignore[arg-type]
    check(op, ANY)


@pytest.mark.parametrize("affine", ["true", "false"])
def test_instance_norm_of_one_pixel(affine: str) -> None:
    """PyTorch's own module refuses it; what is left is the bias, to within the rounding of the mean."""
    graph = cnnc.load(f"model M {{ input x: f32[N, 4, 1, 1] output y y = x -> instance_norm(affine={affine}) }}")
    weights = {name: np.arange(4, dtype=np.float32) for name in graph.params}
    x = np.random.default_rng(0).standard_normal((2, 4, 1, 1)).astype(np.float32)
    got = cnnc.compile(graph, "torch", weights)(x=x)["y"]
    expected = np.arange(4, dtype=np.float32) if affine == "true" else np.zeros(4, np.float32)
    rounding = np.abs(x).max() * 2.0**-23 / np.sqrt(1e-5) * 3  # of the mean, divided by the deviation, times the weight
    np.testing.assert_allclose(got[..., 0, 0], np.broadcast_to(expected, (2, 4)), rtol=0, atol=rounding)
