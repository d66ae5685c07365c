"""Every op on concrete and symbolic shapes, against PyTorch where it has the op; parameters; arithmetic counts."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import pytest
import torch
from torch import nn
from torch.nn import functional as fn
from torch.utils.flop_counter import FlopCounterMode

from cnnc import ops
from cnnc.ir.dim import parse_dim, substitute
from cnnc.ir.op import Op, registry
from cnnc.ir.types import DType, TensorType
from cnnc.ops.window import static_padding

ENV = {"N": 3, "C": 6, "H": 15, "W": 22, "h": 2, "F": 40, "R": 5, "K": 24}


def shape(text: str) -> TensorType:
    return TensorType.parse(f"f32[{text}]")


@dataclass(frozen=True)
class Case:
    """An op on operand shapes, what comes out, and what PyTorch does with tensors of these sizes."""

    op: Op
    operands: tuple[str, ...]
    out: str
    torch: object = None

    def __str__(self) -> str:
        return f"{self.op}-{'-'.join(self.operands)}"


ANY = ("N, 6, H, W",)  # what does not look at axes takes anything; this stands for it
POINTWISE = [
    (ops.Relu(), torch.relu), (ops.LeakyRelu(0.2), fn.leaky_relu), (ops.Sigmoid(), torch.sigmoid),
    (ops.Tanh(), torch.tanh), (ops.Step(), None), (ops.Elu(), fn.elu), (ops.Selu(), fn.selu),
    (ops.Gelu("tanh"), fn.gelu), (ops.Silu(), fn.silu), (ops.HardSigmoid(), fn.hardsigmoid),
    (ops.HardSwish(), fn.hardswish), (ops.Clip(0, 6), fn.hardtanh), (ops.Abs(), torch.abs), (ops.Exp(), torch.exp),
    (ops.Log(), torch.log), (ops.Sqrt(), torch.sqrt), (ops.Neg(), torch.neg), (ops.Dropout(0.1), fn.dropout),
]  # fmt: skip
ARITHMETIC = [
    (ops.Add(), torch.add), (ops.Mul(), torch.mul), (ops.Maximum(), torch.maximum), (ops.Minimum(), torch.minimum),
    (ops.Sub(), torch.sub), (ops.Div(), torch.div),
]  # fmt: skip

CASES = [
    *(Case(op, ANY, ANY[0], function) for op, function in POINTWISE),
    *(Case(op, ("N",), "N", function) for op, function in POINTWISE),
    Case(ops.Prelu(), ANY, ANY[0], lambda x: nn.PReLU(6, device="meta")(x)),
    Case(ops.Softmax(), ("N, F",), "N, F", lambda x: x.softmax(1)),
    Case(ops.LogSoftmax(3), ANY, ANY[0], lambda x: x.log_softmax(3)),
    # convolution
    Case(ops.Conv(8, 5), ANY, "N, 8, H - 4, W - 4", nn.Conv2d(6, 8, 5)),
    Case(ops.Conv(8, (3, 2), stride=(2, 3), pad=(1, 2), dilation=(2, 1), groups=2), ANY,
         "N, 8, (H - 3)//2 + 1, (W + 2)//3 + 1", nn.Conv2d(6, 8, (3, 2), (2, 3), (1, 2), (2, 1), 2)),
    Case(ops.Conv(8, 3, pad="half"), ANY, "N, 8, H, W", nn.Conv2d(6, 8, 3, padding="same")),
    Case(ops.Conv(8, 4, pad="same_upper"), ANY, "N, 8, H, W", lambda x: nn.Conv2d(6, 8, 4)(fn.pad(x, (1, 2, 1, 2)))),
    Case(ops.Conv(8, 3, stride=2, pad="same_lower"), ANY, "N, 8, (H + 1)//2, (W + 1)//2", nn.Conv2d(6, 8, 3, 2, 1)),
    Case(ops.Conv(8, 3, pad=(0, 1, 2, 3)), ANY, "N, 8, H, W + 2",
         lambda x: nn.Conv2d(6, 8, 3)(fn.pad(x, (1, 3, 0, 2)))),
    Case(ops.Deconv(8, 4, stride=2, pad=1), ANY, "N, 8, 2*H, 2*W", nn.ConvTranspose2d(6, 8, 4, 2, 1)),
    Case(ops.Deconv(8, 3, stride=(2, 3), pad=(1, 0), out_pad=(1, 2), dilation=(1, 2), groups=2), ANY,
         "N, 8, 2*H, 3*W + 4", nn.ConvTranspose2d(6, 8, 3, (2, 3), (1, 0), (1, 2), 2, dilation=(1, 2))),
    Case(ops.Local(8, 3, stride=2, pad=1), ("N, 6, 15, 22",), "N, 8, 8, 11", lambda x: nn.Conv2d(6, 8, 3, 2, 1)(x)),
    # linear
    Case(ops.Linear(10), ("N, 40",), "N, 10", nn.Linear(40, 10)),
    Case(ops.MatMul(), ("N, F, 7", "7, H"), "N, F, H", torch.matmul),
    Case(ops.MatMul(), ("N, 1, F, H", "6, H, W"), "N, 6, F, W", torch.matmul),
    Case(ops.Rbf(10), ("N, 40",), "N, 10", lambda x: nn.Linear(40, 10)(x)),
    Case(ops.Scale(), ANY, ANY[0]),
    # norms
    Case(ops.BatchNorm(), ANY, ANY[0], nn.BatchNorm2d(6)),
    Case(ops.BatchNorm(), ("N, 6",), "N, 6", nn.BatchNorm1d(6)),
    Case(ops.Lrn(5), ANY, ANY[0], nn.LocalResponseNorm(5)),
    Case(ops.LayerNorm(2), ("N, C, 4, 5",), "N, C, 4, 5", nn.LayerNorm((4, 5))),
    Case(ops.LayerNorm(affine=False), ANY, ANY[0], lambda x: fn.layer_norm(x, x.shape[1:])),
    Case(ops.GroupNorm(3), ANY, ANY[0], nn.GroupNorm(3, 6)),
    Case(ops.InstanceNorm(), ANY, ANY[0], nn.InstanceNorm2d(6, affine=True)),
    Case(ops.InstanceNorm(), ("N, 6, H",), "N, 6, H", nn.InstanceNorm1d(6, affine=True)),
    Case(ops.Normalize([0.5], [0.1] * 6), ANY, ANY[0]),
    # pools
    Case(ops.MaxPool(2), ("N, C, H, W",), "N, C, H//2, W//2", nn.MaxPool2d(2)),
    Case(ops.MaxPool(3, 2, 1, ceil=True), ANY, "N, 6, H//2 + 1, W//2 + 1", nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    Case(ops.MaxPool(3, 2, ceil=True), ANY, "N, 6, H//2, W//2", nn.MaxPool2d(3, 2, ceil_mode=True)),
    Case(ops.MaxPool(2, 3, 1, ceil=True), ANY, "N, 6, H//3 + 1, W//3 + 1", nn.MaxPool2d(2, 3, 1, ceil_mode=True)),
    Case(ops.MaxPool(2, 1, dilation=3), ANY, "N, 6, H - 3, W - 3", nn.MaxPool2d(2, 1, dilation=3)),
    Case(ops.AvgPool((2, 3), pad=(1, 0)), ANY, "N, 6, H//2 + 1, W//3", nn.AvgPool2d((2, 3), padding=(1, 0))),
    Case(ops.AvgPool(3, 2, "same_upper"), ANY, "N, 6, (H + 1)//2, (W + 1)//2", nn.AvgPool2d(3, 2, 1)),
    Case(ops.L2Pool(3, 2, ceil=True), ANY, "N, 6, H//2, W//2", nn.LPPool2d(2, 3, 2, ceil_mode=True)),
    Case(ops.AdaptiveAvgPool((7, 5)), ANY, "N, 6, 7, 5", nn.AdaptiveAvgPool2d((7, 5))),
    Case(ops.GlobalAvgPool(), ("N, C, H, W",), "N, C, 1, 1", nn.AdaptiveAvgPool2d(1)),
    Case(ops.GlobalMaxPool(), ANY, "N, 6, 1, 1", lambda x: x.amax((2, 3), keepdim=True)),
    Case(ops.Unpool(2), ("N, C, H//2, W//2", "N, C, H, W"), "N, C, H, W"),
    Case(ops.Unpool(3, 2), ("N, C, h, W//2", "N, C, 2*h + 1, W + 1"), "N, C, 2*h + 1, W + 1"),
    # elementwise
    *(Case(op, ("N, 6, H, W", "N, 6, 1, 1"), ANY[0], function) for op, function in ARITHMETIC),
    Case(ops.Add(), ("", "N, 1, H", "C, H"), "N, C, H", lambda a, b, c: a + b + c),
    # shapes
    Case(ops.Concat(), ("N, 6, H, W", "N, C, H, W", "N, 1, H, W"), "N, C + 7, H, W", lambda *x: torch.cat(x, 1)),
    Case(ops.Concat(2), ("N, 4, H", "N, 4, W"), "N, 4, H + W", lambda *x: torch.cat(x, 2)),
    Case(ops.Slice(1, 5), ANY, "N, 4, H, W", lambda x: x[:, 1:5]),
    Case(ops.Slice(-4, -1), ANY, "N, 3, H, W", lambda x: x[:, -4:-1]),
    Case(ops.Slice(1, 99, step=2, axis=3), ANY, "N, 6, H, (min(W, 99))//2", lambda x: x[..., 1:99:2]),
    Case(ops.Take([5, 0, 0]), ANY, "N, 3, H, W", lambda x: x[:, [5, 0, 0]]),
    Case(ops.Pad((1, 2, 3, 4), 0.5), ANY, "N, 6, H + 4, W + 6", lambda x: fn.pad(x, (2, 4, 1, 3))),
    Case(ops.Flatten(), ANY, "N, 6*H*W", nn.Flatten()),
    Case(ops.Flatten(2), ("N, 6, H, W",), "N, 6, H*W", nn.Flatten(2)),
    Case(ops.Reshape((2, -1, 3)), ANY, "N, 2, H*W, 3", lambda x: x.reshape(len(x), 2, -1, 3)),
    Case(ops.Reshape((8, 5)), ("N, 40",), "N, 8, 5", lambda x: x.reshape(-1, 8, 5)),
    Case(ops.Reshape((1, 1)), ("N",), "N, 1, 1", lambda x: x.reshape(-1, 1, 1)),
    Case(ops.Transpose((0, 2, 3, 1)), ANY, "N, H, W, 6", lambda x: x.permute(0, 2, 3, 1)),
    Case(ops.Cast("f32"), ANY, ANY[0], lambda x: x.float()),
    Case(ops.Constant([1, 2, 3, 4, 5, 6], [2, 3]), (), "2, 3", lambda: torch.zeros(2, 3)),
    Case(ops.Constant(0.5), (), "", lambda: torch.tensor(0.5)),
    Case(ops.ChannelShuffle(3), ANY, ANY[0], nn.ChannelShuffle(3)),
    Case(ops.PixelShuffle(2), ("N, 8, H, W",), "N, 2, 2*H, 2*W", nn.PixelShuffle(2)),
    Case(ops.Upsample((2, 3)), ANY, "N, 6, 2*H, 3*W", nn.Upsample(scale_factor=(2, 3))),
    Case(ops.Resize((7, 9), "bilinear"), ANY, "N, 6, 7, 9", nn.Upsample((7, 9), mode="bilinear")),
    Case(ops.Resize(), ("N, 6, 4, 5", "N, 1, H, W"), ANY[0], lambda x, like: fn.interpolate(x, like.shape[2:])),
    Case(ops.Crop((1, 2)), (ANY[0], "N, 2, H - 3, W - 2"), "N, 6, H - 3, W - 2", lambda x, like: x[..., 1:-2, 2:]),
    Case(ops.Crop(1), (ANY[0], "N, 2, h, 9"), "N, 6, h, 9", lambda x, like: x[..., 1:3, 1:10]),
    *(Case(op, ANY, "N, 6", lambda x: x.mean((2, 3))) for op in (ops.ReduceMean([2, 3]), ops.ReduceSum([3, 2]))),
    Case(ops.ReduceMax([1], keep=True), ANY, "N, 1, H, W", lambda x: x.amax(1, keepdim=True)),
    Case(ops.ReduceMin([0, 1, 2, 3]), ANY, "", torch.min),
    # fused
    Case(ops.Fused((ops.Conv(8, 3), ops.Add(), ops.Prelu())), (ANY[0], "N, 8, 1, 1"), "N, 8, H - 2, W - 2"),
    # detection
    Case(ops.RoiPool(6, 1 / 16), ("N, 6, H, W", "N, R, 5"), "N*R, 6, 6, 6"),
    Case(ops.RoiAlign((7, 5), aligned=True), ("N, 6, H, W", "N, R, 4"), "N*R, 6, 7, 5"),
    Case(ops.RoiAlignPyramid(7, [1 / 4, 1 / 8]), ("N, R, 5", "N, 6, H, W", "N, 6, H//2, W//2"), "N*R, 6, 7, 7"),
    Case(ops.Anchors([32, 64, 128], [0.5, 1], 16), ANY, "N, 6*H*W, 4"),
    Case(ops.Decode(), ("N, 3*H*W, 4", "N, 12, H, W"), "N, 3*H*W, 4"),
    Case(ops.ClipBoxes(), ("N, K, 4", "N, 3, H, W"), "N, K, 4"),
    Case(ops.Nms(1000, 50, 0.7), ("N, 3*H*W, 4", "N, 3, H, W"), "N, 50, 5"),
    Case(ops.Top(100), ("N, 50, 5", "N, K, 5"), "N, 100, 5"),
    Case(ops.Top(9), ("N, K, 5",), "N, 9, 5"),
]  # fmt: skip


def torch_shape(function: object, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """What PyTorch gives for operands of these shapes; the meta device computes shapes only."""
    with torch.device("meta"):
        if isinstance(function, nn.Module):
            function = function.to("meta")
        return tuple(function(*map(torch.empty, shapes)).shape)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_result_of_symbolic_operands(case):
    assert case.op.result(*map(shape, case.operands)) == shape(case.out)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_binding_commutes_with_inference(case):
    operands = [shape(text) for text in case.operands]
    concrete = case.op.result(*(x.bind(ENV) for x in operands))
    assert case.op.result(*operands).bind(ENV) == concrete
    assert not concrete.symbols


@pytest.mark.parametrize("case", [case for case in CASES if case.torch], ids=str)
def test_torch_gives_the_same_shape(case):
    operands = [shape(text).bind(ENV).shape for text in case.operands]
    assert torch_shape(case.torch, *operands) == shape(case.out).bind(ENV).shape


@pytest.mark.parametrize("case", [case for case in CASES if isinstance(case.torch, nn.Module)], ids=str)
def test_parameters_are_named_and_shaped_as_in_torch(case):
    expected = {name: tuple(x.shape) for name, x in case.torch.state_dict().items() if x.ndim}
    params = case.op.params(*map(shape, case.operands))
    assert {role: spec.shape for role, spec in params.items()} == expected
    assert all(spec.trainable == (not role.startswith("running")) for role, spec in params.items())


def test_every_op_is_in_the_table():
    missing = {name for name in ops.__all__ if not any(type(case.op).__name__ == name for case in CASES)}
    assert missing == set()


@pytest.mark.parametrize("name", ops.__all__)
def test_every_op_is_registered_and_documented(name):
    cls = getattr(ops, name)
    assert registry()[cls.name] is cls
    assert cls.__doc__ is not None
    assert "Shapes: " in cls.__doc__


@pytest.mark.parametrize("dtype", DType)
def test_element_types_are_kept(dtype):
    x = TensorType((2, 4, 8, 8), dtype)
    for op in (ops.Conv(3, 3), ops.Relu(), ops.MaxPool(2), ops.Flatten(), ops.BatchNorm(), ops.GlobalAvgPool()):
        assert op.result(x).dtype is dtype
    assert ops.Cast("bf16").result(x).dtype is DType.BF16
    assert ops.Constant([1], dtype="f16").result() == TensorType((), DType.F16)


@pytest.mark.parametrize(
    ("op", "x", "shapes"),
    [
        (ops.Local(8, 3), "N, 6, 15, 22", {"weight": (8, 13, 20, 6, 3, 3), "bias": (8, 13, 20)}),
        (ops.Local(8, 3, bias=False), "N, 6, 3, 4", {"weight": (8, 1, 2, 6, 3, 3)}),
        (ops.Conv(8, 3, bias=False), "N, 6, H, W", {"weight": (8, 6, 3, 3)}),
        (ops.Deconv(8, 3, groups=2, bias=False), "N, 6, H, W", {"weight": (6, 4, 3, 3)}),
        (ops.Linear(10, bias=False), "N, 40", {"weight": (10, 40)}),
        (ops.Rbf(10), "N, 84", {"weight": (10, 84)}),
        (ops.Scale(), "N, 6, H, W", {"weight": (6,), "bias": (6,)}),
        (ops.Scale(bias=False), "N, 6", {"weight": (6,)}),
        (ops.InstanceNorm(), "N, 6, H", {"weight": (6,), "bias": (6,)}),
        (ops.InstanceNorm(affine=False), "N, 6, H", {}),
        (ops.GroupNorm(2, affine=False), "N, 6, H", {}),
        (ops.LayerNorm(affine=False), "N, 6, H", {}),
        (ops.Prelu(), "N, 6, H", {"weight": (6,)}),
        (
            ops.Fused((ops.Conv(8, 3, bias=False), ops.Relu(), ops.Scale(), ops.Prelu())),
            "N, 6, H, W",
            {"weight": (8, 6, 3, 3), "scale2_weight": (8,), "scale2_bias": (8,), "prelu3_weight": (8,)},
        ),
        (ops.Relu(), "N, 6, H", {}),
    ],
    ids=str,
)
def test_parameters(op, x, shapes):
    assert {role: spec.shape for role, spec in op.params(shape(x)).items()} == shapes


def test_parameters_start_as_documented():
    x = shape("N, 6, H, W")
    of = [ops.Conv(2, 3, init="orthogonal"), ops.BatchNorm(), ops.Scale(), ops.Prelu(), ops.Prelu("constant(0)")]
    assert [{role: str(spec.init) for role, spec in op.params(x).items()} for op in of] == [
        {"weight": "orthogonal", "bias": "constant(0)"},
        {"weight": "constant(1)", "bias": "constant(0)", "running_mean": "constant(0)", "running_var": "constant(1)"},
        {"weight": "constant(1)", "bias": "constant(0)"},
        {"weight": "constant(0.25)"},
        {"weight": "constant(0)"},
    ]


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if isinstance(case.op, ops.Conv | ops.Deconv | ops.Linear | ops.MatMul) and case.torch],
    ids=str,
)
def test_multiply_accumulates_are_half_of_torchs_flops(case):
    operands = [shape(text) for text in case.operands]
    with FlopCounterMode(display=False) as counter:
        torch_shape(case.torch, *(x.bind(ENV).shape for x in operands))
    macs = case.op.macs(case.op.result(*operands), *operands)
    assert substitute(macs, ENV) * 2 == counter.get_total_flops()


@pytest.mark.parametrize(
    ("op", "operands", "macs"),
    [
        (ops.Conv(48, 5), ["N, 3, 32, 32"], "N*48*28*28*75"),
        (ops.Conv(64, 3, pad=1, groups=64), ["N, 64, H, W"], "N*64*9*H*W"),
        (ops.Local(16, (9, 8)), ["N, 32, 63, 63"], "N*16*55*56*32*72"),
        (ops.Deconv(6, (2, 3), groups=2), ["N, 4, 5, 7"], "N*4*5*7*3*6"),
        (ops.Rbf(10), ["N, 84"], "840*N"),
        (ops.MatMul(), ["N, 8, H, W", "W, 5"], "N*8*H*W*5"),
        (ops.MaxPool(2), ["N, 3, H, W"], "0"),
        (ops.Fused((ops.Conv(8, 3), ops.Add())), ["N, 3, H, W", "N, 8, 1, 1"], "N*8*27*(H - 2)*(W - 2)"),
        (ops.BatchNorm(), ["N, 3, H, W"], "0"),
    ],
    ids=str,
)
def test_multiply_accumulates(op, operands, macs):
    types = [shape(text) for text in operands]
    assert op.macs(op.result(*types), *types) == parse_dim(macs)


@pytest.mark.parametrize(
    ("op", "pads"),
    [
        (ops.Conv(8, 3, pad="half"), (1, 1, 1, 1)),
        (ops.Local(8, (3, 4), (2, 3), "same_upper"), (1, 1, 1, 2)),
        (ops.Conv(8, (3, 4), (2, 3), "same_lower", (2, 1)), (2, 2, 2, 1)),
        (ops.MaxPool(2, 2, "same_upper"), (0, 0, 1, 0)),
        (ops.AvgPool(3, 2, "same_lower"), (1, 1, 1, 0)),
        (ops.L2Pool((2, 3), pad=(0, 1)), (0, 1, 0, 1)),
    ],
    ids=str,
)
def test_padding_in_numbers(op, pads):
    """Top, left, bottom, right, on 15 rows and 22 columns."""
    assert op.pads(shape("N, 6, 15, 22")) == pads


@pytest.mark.parametrize(
    ("make", "out"),
    [
        (lambda: ops.Clip(1, 1), "N, 6, 15, 22"),
        (lambda: ops.MaxPool(3, pad=2), "N, 6, 6, 8"),
        (lambda: ops.Deconv(8, 1, stride=(2, 1), out_pad=(1, 2), dilation=(1, 3)), "N, 8, 30, 24"),
        (lambda: ops.Slice(0, 1), "N, 1, 15, 22"),
        (lambda: ops.Slice(2, -3), "N, 1, 15, 22"),
        (lambda: ops.Slice(-4, 3), "N, 1, 15, 22"),
        (lambda: ops.Upsample(2, "bilinear", align_corners=True), "N, 6, 30, 44"),
    ],
)  # fmt: skip
def test_attributes_at_their_limits(make, out):
    assert make().result(shape("N, 6, 15, 22")) == shape(out)


def test_a_stride_as_large_as_the_kernel_is_not_written():
    assert str(ops.MaxPool(2)) == str(ops.MaxPool(2, 2)) == "maxpool(2)"
    assert str(ops.MaxPool(3, 2)) == "maxpool(3, s=2)"
    assert str(ops.Unpool(2, 1)) == "unpool(2, s=1)"


def test_axes_are_tuples_and_those_of_reductions_sorted():
    assert ops.ReduceSum([3, 0, 2]).axes == (0, 2, 3)
    assert ops.Transpose([1, 0]).axes == (1, 0)


@pytest.mark.parametrize(
    ("pad", "span", "stride", "expected"),
    [
        ("half", (3, 7), (2, 3), (1, 3, 1, 3)),
        ("same_upper", (6, 3), (1, 1), (2, 1, 3, 1)),
        ("same_lower", (6, 3), (1, 1), (3, 1, 2, 1)),
        ("same_upper", (6, 3), (1, 2), "same_upper"),
        ("same_lower", (6, 3), (2, 1), "same_lower"),
        ((0, 1, 2, 3), (2, 2), (1, 1), (0, 1, 2, 3)),
    ],
    ids=str,
)
def test_padding_that_does_not_depend_on_the_input(pad, span, stride, expected):
    assert static_padding(pad, span, stride) == expected
    assert static_padding(pad, span, stride) == expected


def test_padding_is_resolved_at_construction():
    assert ops.Conv(8, (3, 5), dilation=(2, 1), pad="half").pad == (2, 2, 2, 2)
    assert ops.Deconv(8, (3, 5), pad="half").pad == (1, 2, 1, 2)
    assert ops.Local(8, (3, 4), pad="same_lower").pad == (1, 2, 1, 1)
    assert ops.MaxPool((3, 4), 1, "same_upper", dilation=(1, 2)).pad == (1, 3, 1, 3)
    assert ops.MaxPool((3, 4), pad="same_upper").pad == "same_upper"


class TestLayerFacts:
    """Figures of textbooks and papers."""

    def test_48_filters_of_5x5x3_over_32x32x3(self):
        x = shape("1, 3, 32, 32")
        conv = ops.Conv(48, 5)
        assert conv.result(x) == shape("1, 48, 28, 28")
        assert [prod(spec.shape) for spec in conv.params(x).values()] == [5 * 5 * 3 * 48, 48]

    def test_3x3_over_7x7(self):
        x = shape("1, 1, 7, 7")
        assert ops.Conv(1, 3).result(x) == shape("1, 1, 5, 5")
        assert ops.Conv(1, 3, stride=2).result(x) == shape("1, 1, 3, 3")
        assert ops.Conv(1, 3, pad=1).result(x) == x
        assert ops.Conv(1, 3, pad="half").result(x) == x

    def test_100_filters_of_10x10_are_10000_parameters(self):
        assert ops.Conv(100, 10, bias=False).params(shape("1, 1, 200, 200"))["weight"].shape == (100, 1, 10, 10)

    def test_maxpool_halves(self):
        assert ops.MaxPool(2).result(shape("1, 48, 256, 256")) == shape("1, 48, 128, 128")

    def test_alexnets_first_layer(self):
        x = shape("1, 3, 227, 227")
        conv = ops.Conv(96, 11, stride=4)
        assert conv.result(x) == shape("1, 96, 55, 55")
        assert ops.MaxPool(3, 2).result(conv.result(x)) == shape("1, 96, 27, 27")
        assert conv.macs(conv.result(x), x) == 105_415_200

    def test_vggs_first_linear_layer_has_most_parameters(self):
        assert prod(ops.Linear(4096).params(shape("1, 25088"))["weight"].shape) == 102_760_448
