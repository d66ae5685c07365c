"""Every op of the numpy target against PyTorch, in float64 and in float32, on random shapes and attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnc import ops
from cnnc.ir.dim import product
from cnnc.ir.op import Op, OpError
from cnnc.ir.types import TensorType
from cnnc_numpy.evaluator import evaluate, evaluate_nodes, steps
from numerics import Array, assert_node_agrees, random_inputs, random_weights, single

Torch = Callable[..., torch.Tensor]


def agrees(op: Op, shapes: list[tuple[int, ...]], reference: Torch, seed: int = 0) -> None:
    """The op in float64 is what PyTorch gives in float64; in float32 it is within the op's derived bound of that."""
    graph = single(op, *map(TensorType, shapes))
    weights, inputs = random_weights(graph, seed), random_inputs(graph, seed)
    wide = [torch.from_numpy(x.astype(np.float64)) for x in (*inputs.values(), *weights.values())]
    expected = reference(*wide).numpy()
    got = evaluate(graph, weights, inputs)["y"]
    assert got.dtype == np.float64
    assert got.shape == expected.shape == graph.nodes[0].type.shape
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)
    values = evaluate_nodes(graph, weights, inputs, dtype=None)
    assert_node_agrees(graph, weights, inputs, {"y": values["node"]})
    if not steps(graph)[0].call.view:  # the evaluator overwrites values where no view is known to be alive
        assert not any(np.shares_memory(values["node"], x) for x in inputs.values())


def fits(op: Op, *shapes: tuple[int, ...]) -> bool:
    try:
        return product(op.result(*map(TensorType, shapes)).shape) > 1
    except OpError:
        return False


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def fours(low: int, high: int) -> st.SearchStrategy[tuple[int, int, int, int]]:
    return st.tuples(*[st.integers(low, high)] * 4)


def drawn(make: Callable[..., Op], **attributes: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(attributes).map(lambda values: make(**values))


def pad_torch(x: torch.Tensor, pads: tuple[int, int, int, int], value: float = 0.0) -> torch.Tensor:
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value)


images = st.tuples(st.integers(1, 2), st.just(4), st.integers(3, 9), st.integers(3, 9))


@given(
    images,
    drawn(
        ops.Conv, channels=st.sampled_from([4, 8]), kernel=pairs(1, 3), stride=pairs(1, 3), pad=fours(0, 2),
        dilation=pairs(1, 2), groups=st.sampled_from([1, 2, 4]), bias=st.booleans(),
    ),
)  # fmt: skip
def test_conv(shape: tuple[int, ...], op: ops.Conv) -> None:
    if fits(op, shape):
        agrees(op, [shape], lambda x, w, b=None: F.conv2d(
            pad_torch(x, op.pad), w, b, op.stride, 0, op.dilation, op.groups))  # fmt: skip


@given(images, st.sampled_from(["same_upper", "same_lower"]), pairs(1, 4), pairs(1, 3))
def test_same_padding_gives_as_many_windows_as_strides_fit(
    shape: tuple[int, ...], pad: str, kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    op = ops.Conv(3, kernel, stride, pad)
    pads = op.pads(TensorType(shape))
    assert op.result(TensorType(shape)).shape[2:] == tuple(-(-n // s) for n, s in zip(shape[2:], stride, strict=True))
    agrees(op, [shape], lambda x, w, b: F.conv2d(pad_torch(x, pads), w, b, stride))


@st.composite
def deconvs(draw: st.DrawFn) -> ops.Deconv:
    stride, dilation = draw(pairs(1, 3)), draw(pairs(1, 2))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    groups, pad = draw(st.sampled_from([1, 2, 4])), draw(pairs(0, 2))
    return ops.Deconv(draw(st.sampled_from([4, 8])), draw(pairs(1, 3)), stride, pad, extra, dilation, groups,
                      draw(st.booleans()))  # fmt: skip


@given(images, deconvs())
def test_deconv(shape: tuple[int, ...], op: ops.Deconv) -> None:
    if fits(op, shape):
        agrees(op, [shape], lambda x, w, b=None: F.conv_transpose2d(
            x, w, b, op.stride, op.pads[:2], op.out_pad, op.groups, op.dilation))  # fmt: skip


@given(images, fours(0, 1), pairs(1, 2))
def test_deconv_cuts_each_side_by_its_own_padding(
    shape: tuple[int, ...], pad: tuple[int, int, int, int], stride: tuple[int, int]
) -> None:
    top, left, bottom, right = pad
    op = ops.Deconv(3, 3, stride, pad)

    def reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = F.conv_transpose2d(x, w, b, stride)
        return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]

    agrees(op, [shape], reference)


@given(images, drawn(ops.Local, channels=st.just(3), kernel=pairs(1, 3), stride=pairs(1, 2), pad=fours(0, 1),
                     bias=st.booleans()))  # fmt: skip
def test_local(shape: tuple[int, ...], op: ops.Local) -> None:
    def reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        o, h, width = w.shape[:3]
        windows = F.unfold(pad_torch(x, op.pad), op.kernel, stride=op.stride).reshape(len(x), -1, h, width)
        y = torch.einsum("nkij,oijk->noij", windows, w.reshape(o, h, width, -1))
        return y if b is None else y + b

    if fits(op, shape):
        agrees(op, [shape], reference)


POOL = {"kernel": pairs(1, 4), "stride": pairs(1, 3), "pad": pairs(0, 2), "ceil": st.booleans()}
"""PyTorch refuses padding above half the kernel; `test_padded_pools` has the rest and the asymmetric forms."""


def torch_pools(op: ops.MaxPool | ops.AvgPool) -> bool:
    return all(p <= k // 2 for p, k in zip(op.pad, op.kernel, strict=False))


def pools(cls: type[Op], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def make(**values: Any) -> Op:
        values["pad"] = tuple(min(p, k // 2) for p, k in zip(values["pad"], values["kernel"], strict=True))
        return cls(**values)

    return drawn(make, **POOL, **more)


@given(images, pools(ops.MaxPool, dilation=pairs(1, 2)))
def test_max_pool(shape: tuple[int, ...], op: ops.MaxPool) -> None:
    if fits(op, shape):
        agrees(op, [shape], lambda x: F.max_pool2d(x, op.kernel, op.stride, op.pad[:2], op.dilation, op.ceil))


@given(images, pools(ops.AvgPool, count_include_pad=st.booleans()))
def test_avg_pool(shape: tuple[int, ...], op: ops.AvgPool) -> None:
    if fits(op, shape):
        agrees(op, [shape], lambda x: F.avg_pool2d(
            x, op.kernel, op.stride, op.pad[:2], op.ceil, op.count_include_pad))  # fmt: skip


def slow_pool(op: ops.MaxPool | ops.AvgPool | ops.L2Pool, x: Array) -> Array:
    """Each window by itself, as the docstrings of the ops say."""
    top, left, bottom, right = op.pads(TensorType(x.shape))
    _, _, rows, cols = (int(dim) for dim in op.result(TensorType(x.shape)).shape)
    y = np.zeros((*x.shape[:2], rows, cols))
    for i in range(rows):
        for j in range(cols):
            r, c = i * op.stride[0] - top, j * op.stride[1] - left
            window = x[:, :, max(r, 0) : max(r + op.kernel[0], 0), max(c, 0) : max(c + op.kernel[1], 0)]
            if isinstance(op, ops.MaxPool):
                y[:, :, i, j] = window.max((2, 3))
            elif isinstance(op, ops.L2Pool):
                y[:, :, i, j] = np.sqrt((window**2).sum((2, 3)))
            else:
                height = min(r + op.kernel[0], x.shape[2] + bottom) - r
                width = min(c + op.kernel[1], x.shape[3] + right) - c
                count = height * width if op.count_include_pad else window.shape[2] * window.shape[3]
                y[:, :, i, j] = window.sum((2, 3)) / count
    return y


@given(images, st.sampled_from([ops.MaxPool, ops.AvgPool, ops.L2Pool]), pairs(2, 4), pairs(1, 3), fours(0, 1),
       st.booleans())  # fmt: skip
def test_pools_with_padding_of_any_form(
    shape: tuple[int, ...], cls: Any, kernel: tuple[int, int], stride: tuple[int, int], pad: Any, ceil: bool
) -> None:
    variants = [{"count_include_pad": False}, {}] if cls is ops.AvgPool else [{}]
    for more in variants:
        op = cls(kernel, stride, pad, ceil, **more)
        if fits(op, shape):
            agrees(op, [shape], lambda x, op=op: torch.from_numpy(slow_pool(op, x.numpy())))


@given(images, pairs(1, 7))
def test_pools_of_whole_maps(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    agrees(ops.AdaptiveAvgPool(size), [shape], lambda x: F.adaptive_avg_pool2d(x, size))
    agrees(ops.GlobalAvgPool(), [shape], lambda x: x.mean((2, 3), keepdim=True))
    agrees(ops.GlobalMaxPool(), [shape], lambda x: x.amax((2, 3), keepdim=True))


@given(images, pairs(1, 3), pairs(0, 1))
def test_unpool(shape: tuple[int, ...], kernel: tuple[int, int], extra: tuple[int, int]) -> None:
    stride = (kernel[0] + extra[0], kernel[1] + extra[1])
    pooled = ops.MaxPool(kernel, stride).result(TensorType(shape)).shape

    def reference(x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        _, place = F.max_pool2d(source, kernel, stride, return_indices=True)
        return F.max_unpool2d(x, place, kernel, stride, output_size=source.shape)

    agrees(ops.Unpool(kernel, stride), [pooled, shape], reference)


def test_unpool_adds_where_windows_share_their_maximum_and_takes_the_first_of_equals() -> None:
    graph = single(ops.Unpool((1, 2), (1, 1)), TensorType((1, 1, 1, 3)), TensorType((1, 1, 1, 4)))
    inputs = {"x0": np.array([[[[1.0, 2.0, 4.0]]]]), "x1": np.array([[[[0.0, 3.0, 1.0, 1.0]]]])}
    assert evaluate(graph, {}, inputs)["y"].tolist() == [[[[0, 3, 4, 0]]]]


UNARY: list[tuple[Op, Torch]] = [
    (ops.Relu(), F.relu),
    (ops.LeakyRelu(0.2), lambda x: F.leaky_relu(x, 0.2)),
    (ops.Prelu(), F.prelu),
    (ops.Sigmoid(), torch.sigmoid),
    (ops.Tanh(), torch.tanh),
    (ops.Step(), lambda x: (x >= 0).double()),
    (ops.Elu(0.7), lambda x: F.elu(x, 0.7)),
    (ops.Selu(), F.selu),
    (ops.Gelu(), F.gelu),
    (ops.Gelu("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    (ops.Silu(), F.silu),
    (ops.HardSigmoid(), F.hardsigmoid),
    (ops.HardSwish(), F.hardswish),
    (ops.Clip(-0.5, 1.25), lambda x: x.clamp(-0.5, 1.25)),
    (ops.Softmax(), lambda x: x.softmax(1)),
    (ops.Softmax(3), lambda x: x.softmax(3)),
    (ops.LogSoftmax(2), lambda x: x.log_softmax(2)),
    (ops.Abs(), torch.abs),
    (ops.Exp(), torch.exp),
    (ops.Neg(), torch.neg),
    (ops.Dropout(0.9), lambda x: x),
    (ops.Scale(), lambda x, w, b: x * w[:, None, None] + b[:, None, None]),
    (ops.Scale(bias=False), lambda x, w: x * w[:, None, None]),
    (ops.BatchNorm(1e-3), lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, eps=1e-3)),
    (ops.Lrn(3, alpha=0.5, beta=0.6, k=1.5), lambda x: F.local_response_norm(x, 3, 0.5, 0.6, 1.5)),
    (ops.Lrn(4, alpha=0.5), lambda x: F.local_response_norm(x, 4, 0.5, 0.75, 1)),
    (ops.LayerNorm(), lambda x, w, b: F.layer_norm(x, x.shape[1:], w, b)),
    (ops.LayerNorm(3, affine=False), lambda x: F.layer_norm(x, x.shape[3:])),
    (ops.GroupNorm(2), lambda x, w, b: F.group_norm(x, 2, w, b)),
    (ops.GroupNorm(2, affine=False), lambda x: F.group_norm(x, 2)),
    (ops.InstanceNorm(1e-3), lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=1e-3)),
    (ops.InstanceNorm(affine=False), F.instance_norm),
    (ops.Normalize([0.1, 0.2, 0.3, 0.4], [2.0]), lambda x: (x - torch.arange(1, 5).view(4, 1, 1).double() / 10) / 2),
    (ops.Slice(1, -1), lambda x: x[:, 1:-1]),
    (ops.Slice(-4, 100, 2, axis=2), lambda x: x[:, :, max(x.shape[2] - 4, 0) :: 2]),
    (ops.Take([3, 0, 3]), lambda x: x[:, [3, 0, 3]]),
    (ops.Pad([1, 0, 2, 3], value=7.5), lambda x: pad_torch(x, (1, 0, 2, 3), 7.5)),
    (ops.Flatten(), lambda x: x.flatten(1)),
    (ops.Flatten(2), lambda x: x.flatten(2)),
    (ops.Reshape([2, -1]), lambda x: x.reshape(len(x), 2, -1)),
    (ops.Transpose([0, 3, 1, 2]), lambda x: x.permute(0, 3, 1, 2)),
    (ops.Cast("f32"), lambda x: x),
    (ops.ChannelShuffle(2), lambda x: F.channel_shuffle(x, 2)),
    (ops.PixelShuffle(2), lambda x: F.pixel_shuffle(x, 2)),
    (ops.ReduceMean([1, 3]), lambda x: x.mean((1, 3))),
    (ops.ReduceSum([2], keep=True), lambda x: x.sum(2, keepdim=True)),
    (ops.ReduceMax([2, 3]), lambda x: x.amax((2, 3))),
    (ops.ReduceMin([1], keep=True), lambda x: x.amin(1, keepdim=True)),
    (ops.Upsample([2, 3]), lambda x: F.interpolate(x, scale_factor=(2, 3))),
    (ops.Upsample(2, "bilinear"), lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
]  # fmt: skip


@pytest.mark.parametrize(("op", "reference"), UNARY, ids=[str(op) for op, _ in UNARY])
@settings(max_examples=10)
@given(shape=images, seed=st.integers(0, 99))
def test_unary(op: Op, reference: Torch, shape: tuple[int, ...], seed: int) -> None:
    agrees(op, [shape], reference, seed)


@settings(max_examples=30)
@given(images)
def test_log_and_sqrt(shape: tuple[int, ...]) -> None:
    for op, reference in ((ops.Log(), torch.log), (ops.Sqrt(), torch.sqrt)):
        agrees(op, [shape], reference)  # half of the values are negative: NaN


@given(images, pairs(1, 12), st.sampled_from(["nearest", "bilinear"]), st.booleans(), st.booleans())
def test_resize(shape: tuple[int, ...], size: tuple[int, int], mode: str, corners: bool, like: bool) -> None:
    corners &= mode == "bilinear"
    options = {"mode": mode, "align_corners": corners} if mode == "bilinear" else {"mode": mode}
    operands = [shape, (1, 1, *size)] if like else [shape]
    op = ops.Resize(None if like else size, mode, corners)
    agrees(op, operands, lambda x, *_: F.interpolate(x, size, **options))


@given(images, pairs(0, 2), st.data())
def test_crop(shape: tuple[int, ...], offset: tuple[int, int], data: st.DataObject) -> None:
    h, w = (data.draw(st.integers(1, size - o)) for size, o in zip(shape[2:], offset, strict=True))
    top, left = offset
    agrees(ops.Crop(offset), [shape, (1, 1, h, w)], lambda x, _: x[:, :, top : top + h, left : left + w])


def lrn_within(x: torch.Tensor) -> torch.Tensor:
    squares = F.avg_pool2d(F.pad(x * x, (1, 1, 1, 1)), 3, 1, divisor_override=1)
    return x / (2 + 0.5 / 9 * squares) ** 0.75


@given(images)
def test_lrn_within_a_channel(shape: tuple[int, ...]) -> None:
    agrees(ops.Lrn(3, alpha=0.5, k=2.0, within=True), [shape], lrn_within)


SEVERAL: list[tuple[Op, Torch]] = [
    (ops.Add(), lambda x, y, z: x + y + z),
    (ops.Mul(), lambda x, y, z: x * y * z),
    (ops.Maximum(), lambda x, y, z: torch.maximum(torch.maximum(x, y), z)),
    (ops.Minimum(), lambda x, y, z: torch.minimum(torch.minimum(x, y), z)),
]


@pytest.mark.parametrize(("op", "reference"), SEVERAL, ids=[str(op) for op, _ in SEVERAL])
@settings(max_examples=10)
@given(images)
def test_several_operands_broadcast(op: Op, reference: Torch, shape: tuple[int, ...]) -> None:
    n, c, _, w = shape
    agrees(op, [shape, (1, c, 1, w), (n, 1, 1, 1)], reference)


@given(images)
def test_two_operands(shape: tuple[int, ...]) -> None:
    n, c, h, w = shape
    agrees(ops.Sub(), [shape, (c, 1, 1)], torch.sub)
    agrees(ops.Div(), [shape, shape], torch.div)
    agrees(ops.Add(), [(1, 1, h, 1), shape], torch.add)
    agrees(ops.Add(), [shape], lambda x: x)
    agrees(ops.MatMul(), [shape, (n, 1, w, 5)], torch.matmul)
    agrees(ops.Concat(), [shape, (n, 2, h, w), shape], lambda *xs: torch.cat(xs, 1))
    agrees(ops.Concat(3), [shape, (n, c, h, 1)], lambda *xs: torch.cat(xs, 3))


@given(st.integers(1, 4), st.integers(1, 40), st.integers(2, 9))
def test_linear_layers(n: int, features: int, channels: int) -> None:
    agrees(ops.Linear(channels), [(n, features)], F.linear)
    agrees(ops.Linear(channels, bias=False), [(n, features)], F.linear)
    agrees(ops.Rbf(channels), [(n, features)], lambda x, w: torch.cdist(x, w) ** 2)


def test_constant() -> None:
    graph = single(ops.Constant([1, 2, 3, 4.1, 5, 6], [2, 3]))
    expected = np.array([[1, 2, 3], [4.1, 5, 6]], np.float32)
    np.testing.assert_array_equal(evaluate(graph, {}, {}, dtype=None)["y"], expected)
    np.testing.assert_array_equal(evaluate(graph, {}, {})["y"], expected.astype(np.float64))
    assert evaluate(single(ops.Constant([3])), {}, {})["y"].shape == ()


def slow_roi_pool(x: Array, rois: Array, size: tuple[int, int], scale: float) -> Array:
    """Place by place: the maximum of the places whose row and column belong to the cell."""
    y = np.zeros((*rois.shape[:2], x.shape[1], *size))
    for n, r in np.ndindex(rois.shape[:2]):
        left, top, right, bottom = (int(np.sign(v) * np.floor(np.abs(v) + 0.5)) for v in rois[n, r, :4] * scale)
        h, w = max(bottom - top + 1, 1), max(right - left + 1, 1)
        for i, j in np.ndindex(size):
            rows = range(top + int(np.floor(i * h / size[0])), top + int(np.ceil((i + 1) * h / size[0])))
            cols = range(left + int(np.floor(j * w / size[1])), left + int(np.ceil((j + 1) * w / size[1])))
            places = [(p, q) for p in rows for q in cols if 0 <= p < x.shape[2] and 0 <= q < x.shape[3]]
            if places:
                y[n, r, :, i, j] = np.max([x[n, :, p, q] for p, q in places], axis=0)
    return y.reshape(-1, *y.shape[2:])


def slow_roi_align(
    x: Array, rois: Array, size: tuple[int, int], scale: float, samples: int, aligned: bool
) -> Array:
    """Point by point, with the four neighbours of each."""
    height, width = x.shape[2:]

    def read(image: Array, row: float, col: float) -> Array:
        if row < -1 or row > height or col < -1 or col > width:
            return np.zeros(len(image))
        row, col = min(max(row, 0), height - 1), min(max(col, 0), width - 1)
        p, q = int(row), int(col)
        p2, q2 = min(p + 1, height - 1), min(q + 1, width - 1)
        a, b = row - p, col - q
        upper = image[:, p, q] * (1 - b) + image[:, p, q2] * b
        lower = image[:, p2, q] * (1 - b) + image[:, p2, q2] * b
        return upper * (1 - a) + lower * a

    y = np.zeros((*rois.shape[:2], x.shape[1], *size))
    for n, r in np.ndindex(rois.shape[:2]):
        left, top, right, bottom = rois[n, r, :4] * scale - (0.5 if aligned else 0)
        h, w = (bottom - top, right - left) if aligned else (max(bottom - top, 1), max(right - left, 1))
        for i, j, p, q in np.ndindex(*size, samples, samples):
            row = top + (i + (p + 0.5) / samples) * h / size[0]
            col = left + (j + (q + 0.5) / samples) * w / size[1]
            y[n, r, :, i, j] += read(x[n], row, col) / samples**2
    return y.reshape(-1, *y.shape[2:])


def corners(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y + h, 0.5]


regions = st.lists(
    st.builds(corners, *[st.floats(-4, 20, width=16)] * 2, *[st.floats(-1, 24, width=16)] * 2), min_size=3, max_size=3
)


@settings(max_examples=60)
@given(st.tuples(regions, regions), pairs(1, 4), st.sampled_from([0.5, 1.0]), st.integers(1, 3), st.booleans())
def test_regions_that_may_reach_out_of_the_image(
    boxes: tuple[list[list[float]], ...], size: tuple[int, int], scale: float, samples: int, aligned: bool
) -> None:
    shape, rois = (2, 3, 9, 11), np.array(boxes, np.float32)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wide = x.astype(np.float64), rois.astype(np.float64)
    for op, expected in (
        (ops.RoiPool(size, scale), slow_roi_pool(*wide, size, scale)),
        (ops.RoiAlign(size, scale, samples, aligned), slow_roi_align(*wide, size, scale, samples, aligned)),
    ):
        graph = single(op, TensorType(shape), TensorType(rois.shape))
        inputs = {"x0": x, "x1": rois}
        np.testing.assert_allclose(evaluate(graph, {}, inputs)["y"], expected, rtol=1e-11, atol=1e-11)
        if np.unique(expected).size > 1:
            assert_node_agrees(graph, {}, inputs, evaluate(graph, {}, inputs, dtype=None))
