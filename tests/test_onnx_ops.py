"""Every op on the target `onnx`: ONNX Runtime agrees with the reference within the derived bounds, N symbolic."""

from __future__ import annotations

import numpy as np
import pytest

from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.dim import Sym
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.op import Op
from cnnc.ir.types import DType, TensorType
from cnnc_onnx import OnnxTarget
from cnnc_onnx.program import OnnxProgram
from numerics import assert_node_agrees, random_inputs, random_weights, single

N, H, W = map(Sym.of, "NHW")


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
    (ops.Local(3, 3, stride=2, pad=1), IMAGE),
    (ops.MaxPool(3, 2, pad=1, ceil=True), ANY),
    (ops.MaxPool(3, 2, pad="same_upper", dilation=2), ANY),
    (ops.MaxPool(2, pad="same_lower", ceil=True), IMAGE),
    (ops.AvgPool(3, 2, pad=1, ceil=True), ANY),
    (ops.AvgPool(3, 2, pad=1, ceil=True, count_include_pad=False), IMAGE),
    (ops.AvgPool(3, 2, pad="same_upper", count_include_pad=False), ANY),
    (ops.L2Pool(3, 2, pad=1, ceil=True), IMAGE),
    (ops.L2Pool(2), ANY),
    (ops.AdaptiveAvgPool([3, 5]), IMAGE),
    (ops.AdaptiveAvgPool([4, 3]), IMAGE),
    (ops.AdaptiveAvgPool([4, 3]), ANY),
    (ops.AdaptiveAvgPool(1), ANY),
    (ops.GlobalAvgPool(), ANY),
    (ops.GlobalMaxPool(), ANY),
    (ops.Unpool(2), f32(N, 4, 4, 5), IMAGE),
    (ops.Unpool([1, 3], [1, 2]), f32(N, 4, 9, 4), IMAGE),
    *((op, ANY) for op in (
        ops.Relu(), ops.LeakyRelu(0.1), ops.Prelu(), ops.Sigmoid(), ops.Tanh(), ops.Step(), ops.Elu(0.7), ops.Selu(),
        ops.Gelu(), ops.Gelu("tanh"), ops.Silu(), ops.HardSigmoid(), ops.HardSwish(), ops.Clip(-0.5, 1), ops.Softmax(),
        ops.LogSoftmax(3), ops.Abs(), ops.Exp(), ops.Log(), ops.Sqrt(), ops.Neg(), ops.Dropout(), ops.BatchNorm(),
        ops.Scale(), ops.Scale(bias=False), ops.InstanceNorm(), ops.InstanceNorm(affine=False), ops.GroupNorm(2),
        ops.GroupNorm(4, affine=False), ops.LayerNorm(2, affine=False), ops.Normalize([1, 2, 3, 4], [0.5]),
    )),
    (ops.Prelu(), ROW),
    (ops.BatchNorm(eps=0.1), ROW),
    (ops.LayerNorm(), IMAGE),
    (ops.LayerNorm(3), IMAGE),
    (ops.GroupNorm(3), ROW),
    (ops.Lrn(5), ANY),
    (ops.Lrn(4, alpha=1), ANY),
    (ops.Lrn(3, alpha=1, beta=0.5, k=2, within=True), ANY),
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
    (ops.Pad([0, 1, 2, 3], -2.5), ANY),
    (ops.Flatten(), IMAGE),
    (ops.Flatten(2), ANY),
    (ops.Flatten(0), ANY),
    (ops.Reshape([2, -1]), ANY),
    (ops.Reshape([10, 2, 18]), IMAGE),
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
OPSETS = (13, 16, 18, 21)
DIMS = {"H": 8, "W": 11}


def compile(graph: Graph, weights: dict[str, np.ndarray], **options: str) -> OnnxProgram:
    return OnnxTarget().compile(graph, weights, **options)


def check(graph: Graph, opset: int | None, *batches: int) -> None:
    weights = random_weights(graph)
    program = compile(graph, weights, **({"opset": str(opset)} if opset else {}))
    for n in batches:
        inputs = random_inputs(graph, N=n, **DIMS)
        if isinstance(graph.nodes[0].op, ops.Log | ops.Sqrt):
            inputs = {name: np.abs(x) for name, x in inputs.items()}
        assert_node_agrees(graph, weights, inputs, program(**inputs))


def show(case: object) -> str:
    return " ".join(map(str, case)) if isinstance(case, tuple) else str(case)


@pytest.mark.parametrize("case", CASES, ids=show)
def test_an_op_agrees_with_the_reference(case: tuple[Op, *tuple[TensorType, ...]]) -> None:
    check(single(*case), None, 1, 3)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("case", CASES, ids=show)
def test_older_opsets(case: tuple[Op, *tuple[TensorType, ...]], opset: int) -> None:
    op, *_ = case
    if opset < _needs(op):
        with pytest.raises(CnncError, match=rf"E0601.*from opset {_needs(op)} on, and opset {opset}"):
            check(single(*case), opset, 2)
    else:
        check(single(*case), opset, 2)


def _needs(op: Op) -> int:
    match op:
        case ops.LayerNorm():
            return 17
        case ops.L2Pool(ceil=True):
            return 18
        case ops.Unpool(kernel=(1, 3)):
            return 16
        case _:
            return 13


ROIS = np.array([
    [[1, 2, 7, 6], [0, 0, 10, 8], [3.4, 2.6, 3.9, 2.7], [-4, -3, 20, 30]],
    [[9, 7, 9, 7], [0.5, 1.5, 6.5, 5.5], [2, 2, 1, 1], [12, 12, 19, 19]],
], np.float32)  # fmt: skip


@pytest.mark.parametrize("columns", [4, 5])
@pytest.mark.parametrize("opset", [13, 16, None])
@pytest.mark.parametrize(
    "op",
    [
        ops.RoiPool([3, 2]),
        ops.RoiPool(2, scale=0.5),
        ops.RoiAlign([3, 2]),
        ops.RoiAlign(2, scale=0.5, samples=3),
        ops.RoiAlign([2, 3], scale=0.7, aligned=True),
    ],
    ids=str,
)
def test_regions(op: ops.RoiPool | ops.RoiAlign, opset: int | None, columns: int) -> None:
    graph = single(op, f32(N, 3, 9, 11), f32(N, 4, columns))
    if isinstance(op, ops.RoiAlign) and op.aligned and opset == 13:
        with pytest.raises(CnncError, match=r"E0601.*`roi_align` with `aligned` from opset 16 on"):
            compile(graph, {}, opset="13")
        return
    inputs = random_inputs(graph, N=2)
    inputs["x1"] = np.concatenate([ROIS, np.full((2, 4, columns - 4), 7, np.float32)], axis=2)
    program = compile(graph, {}, **({"opset": str(opset)} if opset else {}))
    assert_node_agrees(graph, {}, inputs, program(**inputs))


@pytest.mark.parametrize("size", [(14, 2), (9, 3), (7, 23), (40, 31), (1, 5)])
def test_nearest_rows_are_exact(size: tuple[int, int]) -> None:
    """ONNX Runtime's own nearest `Resize` of 14 rows to 2 takes row 6 where 7 is right."""
    before, after = size
    graph = single(ops.Resize(), f32(1, 2, H, 3), f32(1, 1, W, 3))
    program = compile(graph, {})
    inputs = random_inputs(graph, H=before, W=after)
    rows = np.arange(after) * before // after
    np.testing.assert_array_equal(program(**inputs)["y"], inputs["x0"][:, :, rows])


def test_lrn_of_channels_that_differ_in_scale() -> None:
    """ONNX Runtime's own `LRN` gives NaN here: it takes large squares off a running sum again."""
    graph = single(ops.Lrn(5, alpha=100), f32(N, 16, 5, 5))
    inputs = random_inputs(graph, N=2)
    inputs["x0"][:, ::4] *= 1e5
    assert_node_agrees(graph, {}, inputs, compile(graph, {})(**inputs))


def test_a_constant_and_a_scalar() -> None:
    x = Input("x", f32(N, 2))
    pair = Node.make(ops.Constant([1.5, -2], [2]), name="pair")
    half = Node.make(ops.Constant([0.5]), name="half")
    graph = Graph("Constants", (x,), {"y": Node.make(ops.Mul(), x, pair, half, name="y")})
    y = compile(graph, {})(x=np.ones((3, 2), np.float32))["y"]
    np.testing.assert_array_equal(y, np.tile(np.array([[0.75, -1]], np.float32), (3, 1)))


def test_cast_rounds_to_nearest_even() -> None:
    graph = single(ops.Cast("f16"), f32(4))
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 65519, 1e6], np.float32)
    y = compile(graph, {})(x0=x)["y"]
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, np.array([1, 1 + 2**-9, 65504, np.inf], np.float16))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
@pytest.mark.parametrize("case", CASES, ids=show)
def test_low_precision(case: tuple[Op, *tuple[TensorType, ...]], dtype: DType) -> None:
    """Operands, weights and results are f16 or bf16; results are rounded once."""
    op, *types = case
    check(single(op, *(TensorType(x.shape, dtype) for x in types)), None, 2)
