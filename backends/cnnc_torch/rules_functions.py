"""How the ops without parameters are written: expressions, and modules for those that may stand in an nn.Sequential."""

from __future__ import annotations

from collections.abc import Callable

from cnnc import ops
from cnnc.ir.graph import Graph, Node
from cnnc.ir.op import Op
from cnnc.ir.types import DType
from cnnc.ops.pool import Pool
from cnnc_torch.rules_modules import Rule, rules, sides, symmetric
from cnnc_torch.written import Optional, Written, either, module, pair, text

_SAME: dict[type[Op], Written] = {
    ops.Relu: either("nn.ReLU", "F.relu"),
    ops.Sigmoid: either("nn.Sigmoid", "torch.sigmoid"),
    ops.Tanh: either("nn.Tanh", "torch.tanh"),
    ops.Step: Written(expr="step({0})"),
    ops.Selu: either("nn.SELU", "F.selu"),
    ops.Silu: either("nn.SiLU", "F.silu"),
    ops.HardSigmoid: either("nn.Hardsigmoid", "F.hardsigmoid"),
    ops.HardSwish: either("nn.Hardswish", "F.hardswish"),
    ops.Abs: Written(expr="torch.abs({0})"),
    ops.Exp: Written(expr="torch.exp({0})"),
    ops.Log: Written(expr="torch.log({0})"),
    ops.Sqrt: Written(expr="torch.sqrt({0})"),
    ops.Neg: Written(expr="-{0}"),
    ops.Sub: Written(expr="{0} - {1}"),
    ops.Div: Written(expr="{0} / {1}"),
    ops.MatMul: Written(expr="{0} @ {1}"),
    ops.Decode: Written(expr="decode({0}, {1})"),
    ops.ClipBoxes: Written(expr="clip_boxes({0}, {1})"),
    ops.GlobalAvgPool: either("nn.AdaptiveAvgPool2d", "F.adaptive_avg_pool2d", output_size=1),
    ops.GlobalMaxPool: either("nn.AdaptiveMaxPool2d", "F.adaptive_max_pool2d", output_size=1),
}
"""The ops without attributes, which are always written alike."""


def _always(written: Written) -> Rule:
    return lambda node: written


for _op, _written in _SAME.items():
    rules(_op)(_always(_written))


@rules(ops.LeakyRelu)
def _leaky_relu(node: Node) -> Written:
    assert isinstance(node.op, ops.LeakyRelu)
    return either("nn.LeakyReLU", "F.leaky_relu", negative_slope=node.op.slope)


@rules(ops.Elu)
def _elu(node: Node) -> Written:
    assert isinstance(node.op, ops.Elu)
    return either("nn.ELU", "F.elu", alpha=Optional(node.op.alpha, 1.0))


@rules(ops.Gelu)
def _gelu(node: Node) -> Written:
    assert isinstance(node.op, ops.Gelu)
    return either("nn.GELU", "F.gelu", approximate=Optional(node.op.approx, "none"))


@rules(ops.Clip)
def _clip(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Clip)
    if (op.low, op.high) == (0, 6):
        return either("nn.ReLU6", "F.relu6")
    return either("nn.Hardtanh", "torch.clamp", low=op.low, high=op.high)


@rules(ops.Softmax)
def _softmax(node: Node) -> Written:
    assert isinstance(node.op, ops.Softmax)
    return either("nn.Softmax", "F.softmax", dim=node.op.axis)


@rules(ops.LogSoftmax)
def _log_softmax(node: Node) -> Written:
    assert isinstance(node.op, ops.LogSoftmax)
    return either("nn.LogSoftmax", "F.log_softmax", dim=node.op.axis)


def _infix(operator: str) -> Callable[[Node], Written]:
    return lambda node: Written(expr=f" {operator} ".join(_operands(node)))


def _nested(function: str) -> Callable[[Node], Written]:
    def rule(node: Node) -> Written:
        expr, *rest = _operands(node)
        for operand in rest:
            expr = f"{function}({expr}, {operand})"
        return Written(expr=expr)

    return rule


rules(ops.Add)(_infix("+"))
rules(ops.Mul)(_infix("*"))
rules(ops.Maximum)(_nested("torch.maximum"))
rules(ops.Minimum)(_nested("torch.minimum"))


@rules(ops.MaxPool)
def _maxpool(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.MaxPool)
    padding = _half_at_most(op)
    if padding is None:
        pads = _pads(op)
        return Written(expr=f"max_pool({{0}}, {op.kernel}, {op.stride}, {pads}, {op.dilation}, {op.ceil})")
    return either(
        "nn.MaxPool2d",
        "F.max_pool2d",
        kernel_size=pair(op.kernel),
        stride=Optional(pair(op.stride), pair(op.kernel)),
        padding=Optional(pair(padding), 0),
        dilation=Optional(pair(op.dilation), 1),
        ceil_mode=Optional(op.ceil, False),
    )


@rules(ops.AvgPool)
def _avgpool(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.AvgPool)
    padding = _half_at_most(op)
    if padding is None:
        pads = _pads(op)
        return Written(expr=f"avg_pool({{0}}, {op.kernel}, {op.stride}, {pads}, {op.ceil}, {op.count_include_pad})")
    return either(
        "nn.AvgPool2d",
        "F.avg_pool2d",
        kernel_size=pair(op.kernel),
        stride=Optional(pair(op.stride), pair(op.kernel)),
        padding=Optional(pair(padding), 0),
        ceil_mode=Optional(op.ceil, False),
        count_include_pad=Optional(op.count_include_pad, True),
    )


@rules(ops.L2Pool)
def _l2pool(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.L2Pool)
    return Written(expr=f"l2_pool({{0}}, {op.kernel}, {op.stride}, {_pads(op)}, {op.ceil})")


@rules(ops.AdaptiveAvgPool)
def _adaptive_avgpool(node: Node) -> Written:
    assert isinstance(node.op, ops.AdaptiveAvgPool)
    return either("nn.AdaptiveAvgPool2d", "F.adaptive_avg_pool2d", output_size=pair(node.op.size))


@rules(ops.Unpool)
def _unpool(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Unpool)
    return Written(expr=f"unpool({{0}}, {{1}}, {op.kernel}, {op.stride})")


@rules(ops.Lrn)
def _lrn(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Lrn)
    if op.within:
        sizes = ", ".join(map(text, (op.size, op.alpha, op.beta, op.k)))
        return Written(expr=f"lrn_within({{0}}, {sizes})")
    written = either(
        "nn.LocalResponseNorm",
        "F.local_response_norm",
        size=op.size,
        alpha=Optional(op.alpha, 1e-4),
        beta=Optional(op.beta, 0.75),
        k=Optional(op.k, 1.0),
    )
    if node.type.dtype == DType.F32:
        return written
    assert written.expr is not None  # torch has no kernel for f16 and bf16 on the CPU
    return Written(expr=f"{written.expr.replace('{0}', '{0}.float()')}.to({text(node.type.dtype)})")


@rules(ops.Concat)
def _concat(node: Node) -> Written:
    assert isinstance(node.op, ops.Concat)
    return Written(expr=f"torch.cat([{', '.join(_operands(node))}], {node.op.axis})")


@rules(ops.Slice)
def _slice(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Slice)
    step = f":{op.step}" if op.step != 1 else ""
    return Written(expr=f"{{0}}[{':, ' * op.axis}{op.start or ''}:{op.stop}{step}]")


@rules(ops.Take)
def _take(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Take)
    first, last = op.indices[0], op.indices[-1]
    run = op.indices == tuple(range(first, last + 1))
    stop = "" if last + 1 == node.inputs[0].type.shape[op.axis] else last + 1
    index = f"{first or ''}:{stop}" if run else text(list(op.indices))
    return Written(expr=f"{{0}}[{':, ' * op.axis}{index}]")


@rules(ops.Pad)
def _pad(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Pad)
    value = f", value={text(op.value)}" if op.value else ""
    padded = module("nn.ConstantPad2d", padding=sides(op.pads), value=op.value)
    return Written(padded.module, f"F.pad({{0}}, {sides(op.pads)}{value})")


@rules(ops.Flatten)
def _flatten(node: Node) -> Written:
    assert isinstance(node.op, ops.Flatten)
    axis = node.op.axis
    flatten = module("nn.Flatten", start_dim=Optional(axis, 1))
    return Written(flatten.module, f"torch.flatten({{0}}, {axis})")


@rules(ops.Reshape)
def _reshape(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Reshape)
    if node.inputs[0].type.rank == 2:
        unflatten = module("nn.Unflatten", dim=1, unflattened_size=op.dims)
        return Written(unflatten.module, f"{{0}}.unflatten(1, {op.dims})")
    return Written(expr=f"{{0}}.reshape({{0}}.shape[0], {', '.join(map(text, op.dims))})")


@rules(ops.Transpose)
def _transpose(node: Node) -> Written:
    assert isinstance(node.op, ops.Transpose)
    return Written(expr=f"{{0}}.permute({', '.join(map(text, node.op.axes))})")


@rules(ops.Cast)
def _cast(node: Node) -> Written:
    assert isinstance(node.op, ops.Cast)
    return Written(expr=f"{{0}}.to({text(node.op.dtype)})")


@rules(ops.ChannelShuffle)
def _shuffle(node: Node) -> Written:
    assert isinstance(node.op, ops.ChannelShuffle)
    return either("nn.ChannelShuffle", "F.channel_shuffle", groups=node.op.groups)


@rules(ops.PixelShuffle)
def _pixel_shuffle(node: Node) -> Written:
    assert isinstance(node.op, ops.PixelShuffle)
    return either("nn.PixelShuffle", "F.pixel_shuffle", upscale_factor=node.op.scale)


@rules(ops.Upsample)
def _upsample(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Upsample)
    return either(
        "nn.Upsample",
        "F.interpolate",
        scale_factor=Optional(pair(op.scale), None),
        mode=Optional(op.mode, "nearest"),
        align_corners=Optional(op.align_corners, False),
    )


@rules(ops.Resize)
def _resize(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Resize)
    size = "{1}.shape[2:]" if op.size is None else text(pair(op.size))
    mode = f", mode={text(op.mode)}" if op.mode != "nearest" else ""
    corners = ", align_corners=True" if op.align_corners else ""
    return Written(expr=f"F.interpolate({{0}}, size={size}{mode}{corners})")


@rules(ops.Crop)
def _crop(node: Node) -> Written:
    assert isinstance(node.op, ops.Crop)
    return Written(expr=f"crop({{0}}, {{1}}, {node.op.offset})")


def _reduce(method: str) -> Callable[[Node], Written]:
    def rule(node: Node) -> Written:
        op = node.op
        assert isinstance(op, ops.ReduceMean | ops.ReduceSum | ops.ReduceMax | ops.ReduceMin)
        keep = ", keepdim=True" if op.keep else ""
        return Written(expr=f"{{0}}.{method}({text(op.axes)}{keep})")

    return rule


rules(ops.ReduceMean)(_reduce("mean"))
rules(ops.ReduceSum)(_reduce("sum"))
rules(ops.ReduceMax)(_reduce("amax"))
rules(ops.ReduceMin)(_reduce("amin"))


@rules(ops.RoiPool)
def _roi_pool(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.RoiPool)
    return Written(expr=f"roi_pool({{0}}, {{1}}, {op.size}, {text(op.scale)})")


@rules(ops.RoiAlign)
def _roi_align(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.RoiAlign)
    aligned = ", aligned=True" if op.aligned else ""
    return Written(expr=f"roi_align({{0}}, {{1}}, {op.size}, {text(op.scale)}, {op.samples}{aligned})")


@rules(ops.RoiAlignPyramid)
def _roi_align_pyramid(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.RoiAlignPyramid)
    rois, *levels = _operands(node)
    sizes = f"{op.size}, {text(op.scales)}, {op.samples}"
    return Written(expr=f"roi_align_pyramid({rois}, [{', '.join(levels)}], {sizes})")


@rules(ops.Anchors)
def _anchors(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Anchors)
    return Written(expr=f"anchors({{0}}, {text(list(op.corners))}, {op.stride})")


@rules(ops.Nms)
def _nms(node: Node) -> Written:
    op = node.op
    assert isinstance(op, ops.Nms)
    return Written(expr=f"nms({{0}}, {{1}}, {op.pre}, {op.keep}, {text(op.iou)})")


@rules(ops.Top)
def _top(node: Node) -> Written:
    assert isinstance(node.op, ops.Top)
    return Written(expr=f"top([{', '.join(_operands(node))}], {node.op.k})")


def inline_numbers(written: dict[Node, Written], graph: Graph) -> None:
    """Write f32 constants of one number that are only added, subtracted, multiplied or divided by as the number."""
    arithmetic = ops.Add | ops.Sub | ops.Mul | ops.Div
    for node in graph.nodes:
        op = node.op
        if isinstance(op, ops.Constant) and op.shape == () and op.dtype == DType.F32:
            users = graph.users[node]
            tensors = [any(not isinstance(x, Node) or x.type.rank for x in user.inputs) for user in users]
            if node not in graph.outputs.values() and all(isinstance(x.op, arithmetic) for x in users) and all(tensors):
                written[node] = Written(expr=text(op.values[0]))


def _operands(node: Node) -> list[str]:
    return [f"{{{i}}}" for i in range(len(node.inputs))]


def _half_at_most(op: Pool) -> tuple[int, int] | None:
    """The padding, where torch's pools can do it: the same on both sides and at most half the kernel."""
    padding = symmetric(op.pad)
    return padding if padding and all(2 * p <= k for p, k in zip(padding, op.kernel, strict=True)) else None


def _pads(op: Pool) -> str:
    """The padding as a list left, right, top, bottom; computed from x where it depends on its size."""
    if isinstance(op.pad, str):
        return f"same_pads({{0}}, {op.span}, {op.stride}, {op.pad == 'same_upper'})"
    return text(list(sides(op.pad)))
