"""How the ops that become modules are written: those with parameters, statistics or another behaviour in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from cnnc.ir.attrs import Padding, Pair
from cnnc.ir.graph import Node
from cnnc.ir.types import DType
from cnnc.ops import (
    BatchNorm,
    Constant,
    Conv,
    Deconv,
    Dropout,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Linear,
    Local,
    Normalize,
    Prelu,
    Rbf,
    Scale,
)
from cnnc.target import Rules
from cnnc_torch.written import Optional, Written, module, pair, text

Rule: TypeAlias = Callable[[Node], Written]
rules: Rules[Rule] = Rules("torch")


def channels(node: Node) -> int:
    """The number of channels of the first operand."""
    c = node.inputs[0].type.shape[1]
    assert isinstance(c, int)  # checked by the op's infer
    return c


def symmetric(pad: Padding) -> Pair | None:
    """Rows and columns of padding, where it is known and the same on both sides."""
    return (pad[0], pad[1]) if not isinstance(pad, str) and pad[:2] == pad[2:] else None


def sides(pad: Padding) -> tuple[int, int, int, int]:
    """Padding in torch's order: left, right, top, bottom."""
    assert not isinstance(pad, str)
    top, left, bottom, right = pad
    return left, right, top, bottom


def dtype(node: Node) -> Optional:
    """The element type of the node's parameters."""
    return Optional(node.inputs[0].type.dtype, DType.F32)


@rules(Conv)
def _conv(node: Node) -> Written:
    op = node.op
    assert isinstance(op, Conv)
    sizes = {"in_channels": channels(node), "out_channels": op.channels, "kernel_size": pair(op.kernel)}
    options = {
        "stride": Optional(pair(op.stride), 1),
        "dilation": Optional(pair(op.dilation), 1),
        "groups": Optional(op.groups, 1),
        "bias": Optional(op.bias, True),
        "dtype": dtype(node),
    }
    if isinstance(op.pad, str):
        return module("SameConv2d", **sizes, **options, upper=Optional(op.pad == "same_upper", True))
    padding = symmetric(op.pad)
    if padding is None:
        return module("PaddedConv2d", **sizes, **options, pads=Optional(sides(op.pad), None))
    stride = options.pop("stride")
    return module("nn.Conv2d", **sizes, stride=stride, padding=Optional(pair(padding), 0), **options)


@rules(Deconv)
def _deconv(node: Node) -> Written:
    op = node.op
    assert isinstance(op, Deconv)
    padding = symmetric(op.pad)
    side = {"padding": Optional(pair(padding), 0)} if padding else {"pads": Optional(sides(op.pad), None)}
    return module(
        "nn.ConvTranspose2d" if padding else "CroppedConvTranspose2d",
        in_channels=channels(node),
        out_channels=op.channels,
        kernel_size=pair(op.kernel),
        stride=Optional(pair(op.stride), 1),
        **side,
        output_padding=Optional(pair(op.out_pad), 0),
        groups=Optional(op.groups, 1),
        bias=Optional(op.bias, True),
        dilation=Optional(pair(op.dilation), 1),
        dtype=dtype(node),
    )


@rules(Local)
def _local(node: Node) -> Written:
    op = node.op
    assert isinstance(op, Local)
    top, left, bottom, right = op.pads(node.inputs[0].type)
    return module(
        "LocalConv2d",
        in_channels=channels(node),
        out_channels=op.channels,
        size=tuple(node.type.shape[2:]),
        kernel_size=op.kernel,
        stride=Optional(op.stride, (1, 1)),
        pads=Optional((left, right, top, bottom), (0, 0, 0, 0)),
        bias=Optional(op.bias, True),
        dtype=dtype(node),
    )


@rules(Linear)
def _linear(node: Node) -> Written:
    op = node.op
    assert isinstance(op, Linear)
    bias = Optional(op.bias, True)
    return module("nn.Linear", in_features=channels(node), out_features=op.channels, bias=bias, dtype=dtype(node))


@rules(Rbf)
def _rbf(node: Node) -> Written:
    op = node.op
    assert isinstance(op, Rbf)
    return module("Rbf", in_features=channels(node), out_features=op.channels, dtype=dtype(node))


@rules(Scale)
def _scale(node: Node) -> Written:
    op = node.op
    assert isinstance(op, Scale)
    return module("Scale", num_channels=channels(node), bias=Optional(op.bias, True), dtype=dtype(node))


@rules(Prelu)
def _prelu(node: Node) -> Written:
    return module("nn.PReLU", num_parameters=channels(node), dtype=dtype(node))


@rules(BatchNorm)
def _bn(node: Node) -> Written:
    op = node.op
    assert isinstance(op, BatchNorm)
    return module(
        f"nn.BatchNorm{_spatial(node)}d",
        num_features=channels(node),
        eps=Optional(op.eps, 1e-5),
        momentum=Optional(op.momentum, 0.1),
        dtype=dtype(node),
    )


@rules(LayerNorm)
def _layer_norm(node: Node) -> Written:
    op = node.op
    assert isinstance(op, LayerNorm)
    eps = Optional(op.eps, 1e-5)
    if not op.affine:
        return Written(expr=f"F.layer_norm({{0}}, {{0}}.shape[{op.axis}:], eps={text(op.eps)})")
    return module("nn.LayerNorm", normalized_shape=tuple(node.type.shape[op.axis :]), eps=eps, dtype=dtype(node))


@rules(GroupNorm)
def _group_norm(node: Node) -> Written:
    op = node.op
    assert isinstance(op, GroupNorm)
    if not op.affine:
        return Written(expr=f"F.group_norm({{0}}, {op.groups}, eps={text(op.eps)})")
    return module(
        "nn.GroupNorm", num_groups=op.groups, num_channels=channels(node), eps=Optional(op.eps, 1e-5), dtype=dtype(node)
    )


@rules(InstanceNorm)
def _instance_norm(node: Node) -> Written:
    op = node.op
    assert isinstance(op, InstanceNorm)
    sizes = node.type.shape[2:]
    pixel = all(size == 1 or not isinstance(size, int) for size in sizes)
    if not op.affine and not pixel:
        return Written(expr=f"F.instance_norm({{0}}, eps={text(op.eps)})")
    return module(
        "PixelInstanceNorm" if pixel else f"nn.InstanceNorm{_spatial(node)}d",
        num_features=channels(node),
        eps=Optional(op.eps, 1e-5),
        affine=Optional(op.affine, False),
        dtype=dtype(node),
    )


@rules(Normalize)
def _normalize(node: Node) -> Written:
    op = node.op
    assert isinstance(op, Normalize)
    return module("Normalize", mean=op.mean, std=op.std)


@rules(Constant)
def _constant(node: Node) -> Written:
    op = node.op
    assert isinstance(op, Constant)
    if op.shape == ():
        kind = f", dtype={text(op.dtype)}" if op.dtype != DType.F32 else ""
        return Written(expr=f"torch.tensor({text(op.values[0])}{kind})")
    return module("Constant", values=op.values, shape=op.shape, dtype=Optional(op.dtype, DType.F32))


@rules(Dropout)
def _dropout(node: Node) -> Written:
    op = node.op
    assert isinstance(op, Dropout)
    return module("nn.Dropout", p=op.p)


def _spatial(node: Node) -> int:
    """The number of axes after the channels, at least 1: torch's norms are named by it."""
    return max(node.inputs[0].type.rank - 2, 1)
