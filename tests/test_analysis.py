"""Counts against published figures; receptive fields against the paper and against gradients."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from cnnc import analysis, ops
from cnnc.ir import Builder, Graph, Input, Node, Op, Value, bind
from cnnc.ir.dim import parse_dim

VGG16 = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]


def alexnet() -> Graph:
    """Krizhevsky et al. 2012 in two groups, with the 227x227 crop that its sizes ask for."""
    net = Builder("AlexNet")
    x: Value = net.input("image", ("N", 3, 227, 227))
    for i, (op, pool) in enumerate([
        (ops.Conv(96, 11, stride=4), True), (ops.Conv(256, 5, pad=2, groups=2), True), (ops.Conv(384, 3, pad=1), False),
        (ops.Conv(384, 3, pad=1, groups=2), False), (ops.Conv(256, 3, pad=1, groups=2), True),
    ]):  # fmt: skip
        x = net.add(ops.Relu(), net.add(op, x, name=f"features.conv{i + 1}"), name=f"features.relu{i + 1}")
        if i < 2:
            x = net.add(ops.Lrn(5), x, name=f"features.lrn{i + 1}")
        if pool:
            x = net.add(ops.MaxPool(3, 2), x, name=f"features.pool{i + 1}")
    x = net.add(ops.Flatten(), x)
    for name, size in (("fc6", 4096), ("fc7", 4096), ("fc8", 1000)):
        x = net.add(ops.Linear(size), x, name=name)
    return net.graph(logits=x)


def vgg16(pools: list[int]) -> Graph:
    net = Builder("VGG16")
    x: Value = net.input("image", ("N", 3, 224, 224))
    for c in pools:
        x = net.add(ops.Relu(), net.add(ops.Conv(c, 3, pad=1), x)) if c else net.add(ops.MaxPool(2), x)
    return net.graph(features=x)


def resnet50() -> Graph:
    """With the stride on the first 1x1 convolution of a stage, as published (He et al. 2015)."""
    net = Builder("ResNet50")
    x: Value = net.input("image", ("N", 3, 224, 224))
    x = net.add(ops.MaxPool(3, 2, 1), net.add(ops.Conv(64, 7, stride=2, pad=3), x))
    for stage, depth in enumerate([3, 4, 6, 3]):
        for block in range(depth):
            s, c = 2 if stage and not block else 1, 64 * 2**stage
            y = net.add(ops.Conv(c, 1, stride=s), x)
            y = net.add(ops.BatchNorm(), net.add(ops.Conv(c, 3, pad=1), y))
            y = net.add(ops.Conv(4 * c, 1), y)
            x = net.add(ops.Add(), y, x if block else net.add(ops.Conv(4 * c, 1, stride=s), x))
    return net.graph(features=x)


def test_the_counts_of_alexnet():
    graph = alexnet()
    assert analysis.params(graph) == 60_965_224
    assert analysis.weight_bytes(graph) == 4 * 60_965_224
    assert analysis.units(graph) == 659_272 * parse_dim("N")  # "650,000 neurons"
    assert analysis.macs(bind(graph, {"N": 1})) == 724_406_816


def test_running_statistics_are_not_parameters_but_have_bytes():
    net = Builder("BN")
    graph = net.graph(y=net.add(ops.BatchNorm(), net.input("x", (1, 8, 4, 4))))
    assert analysis.params(graph) == 16
    assert analysis.table(graph)[0].params == 16
    assert analysis.weight_bytes(graph) == 4 * 32


def test_shared_parameters_count_once_and_work_twice():
    net = Builder("Siamese")
    left, right = net.input("left", (1, 4)), net.input("right", (1, 4))
    first = net.add(ops.Linear(3), left, name="first")
    second = Node(first.op, (right,), first.params, "second")
    graph = net.graph(a=first, b=second)
    assert (analysis.params(graph), analysis.macs(graph), analysis.units(graph)) == (15, 24, 6)
    assert [(row.name, row.params) for row in analysis.table(graph)] == [("first", 15), ("second", 0)]


def test_activation_and_peak_bytes():
    net = Builder("Residual")
    x = net.input("x", ("N", 8))
    a = net.add(ops.Relu(), x)
    b = net.add(ops.Linear(32, bias=False), a)
    c = net.add(ops.Linear(8, bias=False), b)
    graph = net.graph(y=net.add(ops.Add(), a, c))
    n = parse_dim("N")
    assert analysis.activation_bytes(graph) == (8 + 32 + 8 + 8) * 4 * n
    assert analysis.peak_bytes(graph) == (8 + 32 + 8) * 4 * n  # a, b and c; x is dropped, the sum is not made yet
    assert analysis.peak_bytes(net.graph(y=c, a=a, b=b, x=x)) == (8 + 8 + 32 + 8) * 4 * n  # outputs stay
    assert analysis.peak_bytes(net.graph(y=x)) == 32 * n


def test_a_value_read_twice_is_dropped_once():
    net = Builder("Twice")
    x = net.input("x", (1, 8))
    graph = net.graph(y=net.add(ops.Relu(), net.add(ops.Mul(), x, x)))
    assert analysis.peak_bytes(graph) == 64


def test_the_peak_of_unknown_sizes_is_known_where_one_sum_is_the_largest():
    net = Builder("Unknown")
    x = net.input("x", ("N", 1, "H", 8))
    assert analysis.peak_bytes(net.graph(y=net.add(ops.Relu(), x))) == 64 * parse_dim("N*H")
    pooled = net.add(ops.MaxPool((2, 1)), x)
    tiled = net.add(ops.Concat(), pooled, pooled, pooled)
    late = net.add(ops.Relu(), net.add(ops.Concat(), tiled, tiled))
    graph = net.graph(y=late)
    assert analysis.peak_bytes(graph) is None  # half of H counts six times, or twelve
    assert analysis.peak_bytes(bind(graph, {"N": 1, "H": 10})) == 2 * 6 * 5 * 32


@pytest.mark.parametrize(
    ("graph", "size", "stride"),
    [(vgg16(VGG16), 212, 32), (alexnet(), 195, 32), (resnet50(), 483, 32)],
    ids=lambda x: x.name if isinstance(x, Graph) else None,
)
def test_receptive_fields_as_published(graph, size, stride):
    """Araujo, Norris & Sim 2019, table of common architectures (alexnet_v2, vgg_16, resnet_v1_50)."""
    last = [f for f in analysis.receptive_fields(graph).values() if f is not None][-1]
    assert (last.size, last.stride) == ((size, size), (stride, stride))
    assert str(last) == f"{size}x{size}"


def seen(network: nn.Module, size: int) -> tuple[int, int]:
    """The most rows and columns of the image that one value near the middle of the result depends on."""
    x = torch.zeros(1, 1, size, size, requires_grad=True)
    y = network(x)
    best = [0, 0]
    for row in range(y.shape[2] // 2 - 2, y.shape[2] // 2 + 2):
        x.grad = None
        y[0, 0, row, row].backward(retain_graph=True)
        assert x.grad is not None
        at = x.grad[0, 0].nonzero()
        best = [max(b, int(at[:, i].max() - at[:, i].min()) + 1) for i, b in enumerate(best)]
    return best[0], best[1]


def ones(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    return layer


LAYERS: list[list[tuple[Op, nn.Module]]] = [
    [
        (ops.Conv(1, (3, 5), dilation=(2, 1)), nn.Conv2d(1, 1, (3, 5), dilation=(2, 1))),
        (ops.AvgPool(2), nn.AvgPool2d(2)),
    ],
    [(ops.Conv(1, 3, stride=2), nn.Conv2d(1, 1, 3, 2)), (ops.Deconv(1, 3, stride=2), nn.ConvTranspose2d(1, 1, 3, 2))],
    [(ops.Conv(1, 4, stride=2), nn.Conv2d(1, 1, 4, 2)), (ops.Deconv(1, 4, stride=3), nn.ConvTranspose2d(1, 1, 4, 3))],
    [
        (ops.AvgPool(4), nn.AvgPool2d(4)), (ops.Upsample(2), nn.Upsample(scale_factor=2)),
        (ops.Conv(1, 3), nn.Conv2d(1, 1, 3)),
    ],
    [
        (ops.Upsample(2, "bilinear"), nn.Upsample(scale_factor=2, mode="bilinear")),
        (ops.Conv(1, 3), nn.Conv2d(1, 1, 3)),
    ],
    [(ops.L2Pool(3, 2), nn.AvgPool2d(3, 2)), (ops.Conv(1, 3), nn.Conv2d(1, 1, 3))],
]  # fmt: skip


@pytest.mark.parametrize("layers", LAYERS, ids=lambda layers: "-".join(op.name for op, _ in layers))
def test_receptive_fields_are_what_gradients_reach(layers):
    net = Builder("Field")
    x: Value = net.input("x", (1, 1, 48, 48))
    for op, _ in layers:
        x = net.add(op, x)
    field = analysis.receptive_fields(net.graph(y=x))[x]
    assert field is not None
    assert field.size == seen(nn.Sequential(*(ones(layer) for _, layer in layers)), 48)


POINTWISE = [
    ops.Relu(), ops.BatchNorm(), ops.Scale(), ops.Lrn(5), ops.Softmax(), ops.Normalize([0.5], [0.5]), ops.Dropout(),
    ops.Cast("f32"), ops.ChannelShuffle(2), ops.Pad(1), ops.Slice(0, 2), ops.Take([1]),
]  # fmt: skip


@pytest.mark.parametrize("op", POINTWISE, ids=str)
def test_ops_that_look_at_one_place(op):
    net = Builder("Point")
    stem = net.add(ops.Conv(4, 3, stride=2), net.input("x", ("N", 1, 32, 32)))
    y = net.add(op, stem)
    field = analysis.receptive_fields(net.graph(y=y))[y]
    assert field == analysis.Field((3, 3), (Fraction(2), Fraction(2)))


NOWHERE = [
    ops.GlobalAvgPool(), ops.Flatten(), ops.Softmax(2), ops.Slice(0, 2, axis=2), ops.ReduceMean([1]),
    ops.Transpose((0, 1, 3, 2)), ops.GroupNorm(2),
]  # fmt: skip


@pytest.mark.parametrize("op", NOWHERE, ids=str)
def test_values_without_a_field(op):
    net = Builder("Nowhere")
    y = net.add(op, net.input("x", ("N", 4, 8, 8)))
    assert analysis.receptive_fields(net.graph(y=y))[y] is None


def test_fields_where_values_meet():
    net = Builder("Meet")
    x, table = net.input("x", ("N", 4, 9, 9)), net.input("table", (9, 9))
    wide, narrow, half = net.add(ops.Conv(4, 5, pad=2), x), net.add(ops.Conv(4, 1), x), net.add(ops.MaxPool(2), x)
    double = net.add(ops.PixelShuffle(2), x)
    merged = {
        "widest": net.add(ops.Add(), narrow, wide),
        "concat": net.add(ops.Concat(), wide, narrow),
        "constant": net.add(ops.Mul(), wide, net.add(ops.Constant([2.0]))),
        "table": net.add(ops.Mul(), wide, table),
        "global": net.add(ops.Mul(), wide, net.add(ops.GlobalAvgPool(), wide)),
        "unpool": net.add(ops.Unpool(2), half, net.add(ops.Crop((0, 0)), x, x)),
        "local": net.add(ops.Local(2, 3, stride=2), x),
        "within": net.add(ops.Lrn(3, within=True), x),
        "double": double,
        "constants": net.add(ops.Relu(), net.add(ops.Constant([1.0]), name="one")),
    }
    fields = analysis.receptive_fields(net.graph(**merged))
    sizes = {name: field.size if (field := fields[value]) else None for name, value in merged.items()}
    assert sizes == {
        "widest": (5, 5), "concat": (5, 5), "constant": (5, 5), "table": None, "global": None, "unpool": None,
        "local": (3, 3), "within": (3, 3), "double": (1, 1), "constants": None,
    }  # fmt: skip
    finer = fields[double]
    assert finer is not None
    assert finer.stride == (Fraction(1, 2), Fraction(1, 2))


def test_the_table_nests_by_name():
    graph = alexnet()
    rows = analysis.table(graph)
    assert [row.name for row in rows] == ["features", "flatten1", "fc6", "fc7", "fc8"]
    features = rows[0]
    assert [row.name for row in features.rows][:4] == ["conv1", "relu1", "lrn1", "pool1"]
    conv1 = features.rows[0]
    assert (conv1.op, str(conv1.type), conv1.params) == ("conv(96, 11, s=4)", "f32[N, 96, 55, 55]", 34_944)
    assert str(conv1.field) == "11x11"
    assert features.op == ""
    assert features.type == features.rows[-1].type
    assert features.params == sum(row.params for row in features.rows)
    assert sum(row.params for row in rows) == analysis.params(graph)
    for count in ("macs", "bytes"):
        total = {"macs": analysis.macs, "bytes": analysis.activation_bytes}[count](bind(graph, {"N": 1}))
        assert sum(getattr(row, count) for row in analysis.table(bind(graph, {"N": 1}))) == total


def test_a_node_may_be_named_like_a_block():
    x = Input("x", Builder("T").input("x", (1, 4)).type)
    inner = Node.make(ops.Linear(3), x, name="head.fc")
    outer = Node.make(ops.Linear(2), inner, name="head")
    (row,) = analysis.table(Graph("Names", (x,), {"y": outer}))
    assert (row.op, row.params, row.macs) == ("linear(2)", 15 + 8, 12 + 6)
    assert [inner.name for inner in row.rows] == ["fc"]
