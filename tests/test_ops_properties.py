"""Shapes of random ops on random sizes: as PyTorch and NumPy have them, and alike bound before or after inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional as fn

from cnnc import ops
from cnnc.ir.dim import Sym
from cnnc.ir.op import Op, OpError
from cnnc.ir.types import TensorType

N, H, W = Sym.of("N"), Sym.of("H"), Sym.of("W")
SYMBOLIC = TensorType((N, 4, H, W))

sizes = st.integers(1, 40)
pairs = st.tuples(st.integers(1, 5), st.integers(1, 5))
small = st.tuples(st.integers(0, 4), st.integers(0, 4))


def torch_shape(function, *args, **kwargs) -> tuple[int, ...] | None:
    """The shape PyTorch computes, None where it refuses or the result is empty."""
    try:
        shape = tuple(function(*args, **kwargs).shape)
    except RuntimeError:
        return None
    return None if 0 in shape else shape


def our_shape(op: Op, *operands: TensorType) -> tuple[int, ...] | None:
    """The shape cnnc computes, None where it refuses; symbolic operands must agree with concrete ones."""
    try:
        return op.result(*operands).shape
    except OpError:
        return None


def check_bound(op: Op, x: TensorType) -> None:
    """Inferring on [N, 4, H, W] and binding gives what inferring on x gives, wherever that is a tensor at all."""
    expected = our_shape(op, x)
    if expected is not None:
        n, _, h, w = x.shape
        assert op.result(SYMBOLIC).bind({"N": n, "H": h, "W": w}).shape == expected


@given(sizes, sizes, pairs, pairs, small, pairs, st.sampled_from([1, 2, 4]))
def test_conv(h, w, kernel, stride, pad, dilation, groups):
    op = ops.Conv(8, kernel, stride, pad, dilation, groups)
    x = TensorType((2, 4, h, w))
    weight = torch.empty(8, 4 // groups, *kernel, device="meta")
    there = torch_shape(fn.conv2d, torch.empty(x.shape, device="meta"), weight, None, stride, pad, dilation, groups)
    assert our_shape(op, x) == there
    check_bound(op, x)


@given(sizes, sizes, pairs, pairs, small, pairs, small)
def test_deconv(h, w, kernel, stride, pad, dilation, out_pad):
    assume(all(p < max(s, d) for p, s, d in zip(out_pad, stride, dilation, strict=True)))
    op = ops.Deconv(8, kernel, stride, pad, out_pad, dilation)
    x = TensorType((2, 4, h, w))
    weight = torch.empty(4, 8, *kernel, device="meta")
    image = torch.empty(x.shape, device="meta")
    assert our_shape(op, x) == torch_shape(fn.conv_transpose2d, image, weight, None, stride, pad, out_pad, 1, dilation)
    check_bound(op, x)


@given(sizes, sizes, pairs, pairs, st.data(), pairs, st.booleans())
def test_maxpool(h, w, kernel, stride, data, dilation, ceil):
    pad = data.draw(st.tuples(*(st.integers(0, k // 2) for k in kernel)))  # PyTorch takes no more
    op = ops.MaxPool(kernel, stride, pad, ceil, dilation)
    x = TensorType((2, 4, h, w))
    image = torch.empty(x.shape, device="meta")
    there = torch_shape(fn.max_pool2d, image, kernel, stride, pad, dilation, ceil)
    if there is None or all(size + 2 * p >= s for size, p, s in zip((h, w), pad, op.span, strict=True)):
        assert our_shape(op, x) == there
    else:  # with ceil PyTorch accepts a kernel larger than the padded image; cnnc does not
        assert ceil
        assert our_shape(op, x) is None
    check_bound(op, x)


@given(sizes, sizes, pairs, pairs, st.data(), st.booleans())
def test_avgpool(h, w, kernel, stride, data, ceil):
    pad = data.draw(st.tuples(*(st.integers(0, k // 2) for k in kernel)))
    assume(h + 2 * pad[0] >= kernel[0] and w + 2 * pad[1] >= kernel[1])
    x = TensorType((2, 4, h, w))
    there = torch_shape(fn.avg_pool2d, torch.empty(x.shape, device="meta"), kernel, stride, pad, ceil)
    for op in (ops.AvgPool(kernel, stride, pad, ceil), ops.L2Pool(kernel, stride, pad, ceil)):
        assert our_shape(op, x) == there
        check_bound(op, x)


@given(sizes, sizes, pairs, pairs, pairs, st.sampled_from(["same_upper", "same_lower"]))
def test_same_padding_gives_a_window_for_every_stride(h, w, kernel, stride, dilation, mode):
    op = ops.Conv(8, kernel, stride, mode, dilation)
    x = TensorType((2, 4, h, w))
    out = op.result(x).shape[2:]
    assert out == (-(-h // stride[0]), -(-w // stride[1]))
    top, left, bottom, right = op.pads(x)
    more, less = ((bottom, right), (top, left)) if mode == "same_upper" else ((top, left), (bottom, right))
    assert all(b - a in (0, 1) for a, b in zip(less, more, strict=True))
    explicit = ops.Conv(8, kernel, stride, (top, left, bottom, right), dilation)
    assert explicit.result(x).shape[2:] == out
    for size, first, last, s, k, count in zip((h, w), (top, left), (bottom, right), stride, op.span, out, strict=True):
        assert first + last == max((count - 1) * s + k - size, 0)
    check_bound(op, x)
    symbolic = TensorType(op.pads(SYMBOLIC)).bind({"H": h, "W": w})
    assert symbolic.shape == (top, left, bottom, right)


@given(sizes, sizes, st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])), pairs)
def test_half_padding_keeps_the_size_at_stride_one(h, w, kernel, dilation):
    x = TensorType((2, 4, h, w))
    assert ops.Conv(4, kernel, pad="half", dilation=dilation).result(x) == x
    assert ops.AvgPool(kernel, 1, "half").result(x) == x


@given(st.integers(1, 12), st.integers(-15, 15), st.integers(-15, 15), st.integers(1, 4))
def test_slice(size, start, stop, step):
    assume(start < stop or (start < 0) != (stop < 0))
    expected = np.empty(size)[start:stop:step].size
    out = our_shape(ops.Slice(start, stop, step), TensorType((2, size)))
    assert out == ((2, expected) if expected else None)
    if expected and start >= 0 and stop >= 0:
        assert ops.Slice(start, stop, step).result(TensorType((2, N))).bind({"N": size}).shape == (2, expected)


dims = st.sampled_from([1, 1, 2, 3])


@given(st.lists(st.lists(dims, max_size=4).map(tuple), min_size=1, max_size=4))
def test_broadcasting(shapes):
    try:
        expected = np.broadcast_shapes(*shapes)
    except ValueError:
        expected = None
    assert our_shape(ops.Add(), *map(TensorType, shapes)) == expected


@given(st.lists(dims, max_size=3), st.lists(dims, max_size=3), dims, dims, dims, dims)
def test_matmul(left, right, i, k, m, j):
    a, b = (*left, i, k), (*right, m, j)
    try:
        expected = np.matmul(np.zeros(a), np.zeros(b)).shape
    except ValueError:
        expected = None
    assert our_shape(ops.MatMul(), TensorType(a), TensorType(b)) == expected


@given(st.lists(st.tuples(dims, dims, dims), min_size=1, max_size=3), st.integers(0, 2))
def test_concat(shapes, axis):
    try:
        expected = np.concatenate([np.empty(x) for x in shapes], axis).shape
    except ValueError:
        expected = None
    assert our_shape(ops.Concat(axis), *map(TensorType, shapes)) == expected


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.lists(st.sampled_from([-1, 1, 2, 3, 4, 6]), min_size=1, max_size=3),
)
def test_reshape(shape, to):
    assume(to.count(-1) < 2)
    try:
        expected = np.empty((2, *shape)).reshape(2, *to).shape
    except ValueError:
        expected = None
    assert our_shape(ops.Reshape(to), TensorType((2, *shape))) == expected
    if expected is not None:
        assert ops.Reshape(to).result(TensorType((N, *shape))).shape == (N, *expected[1:])


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.sets(st.integers(0, 3), min_size=1), st.booleans())
def test_reductions(shape, axes, keep):
    assume(max(axes) < len(shape))
    expected = np.zeros(shape).sum(tuple(axes), keepdims=keep).shape
    assert our_shape(ops.ReduceSum(list(axes), keep), TensorType(tuple(shape))) == expected


@given(st.permutations(range(4)))
def test_transpose(axes):
    assert our_shape(ops.Transpose(axes), TensorType((2, 3, 4, 5))) == np.empty((2, 3, 4, 5)).transpose(axes).shape


layers = st.one_of(
    st.builds(ops.Conv, st.just(4), pairs, pairs, small, pairs),
    st.builds(ops.Conv, st.just(4), pairs, pairs, st.sampled_from(["same_upper", "same_lower"])),
    st.builds(lambda k, s, ceil: ops.MaxPool(k, s, [x // 2 for x in k], ceil), pairs, pairs, st.booleans()),
    st.builds(ops.AvgPool, pairs, pairs, st.just("same_lower")),
    st.builds(ops.Deconv, st.just(4), pairs, pairs),
    st.builds(ops.Upsample, st.integers(1, 3)),
    st.builds(ops.Pad, small),
)


@given(st.lists(layers, min_size=1, max_size=6), st.integers(20, 200), st.integers(20, 200))
def test_a_chain_bound_before_or_after(chain, h, w):
    concrete, symbolic = TensorType((3, 4, h, w)), SYMBOLIC
    for op in chain:
        try:
            concrete = op.result(concrete)
        except OpError:
            assume(False)
        symbolic = op.result(symbolic)
    assert symbolic.bind({"N": 3, "H": h, "W": w}) == concrete
    assert TensorType.parse(str(symbolic)) == symbolic


@pytest.mark.parametrize("ceil", [False, True])
def test_windows_have_plain_sizes(ceil):
    """What ResNets, VGGs and GoogLeNet do to a symbolic size stays readable, and powers of two divide out."""
    x = TensorType((N, 3, H, 32 * W))
    for op in [ops.Conv(64, 7, 2, 3), ops.MaxPool(3, 2, 1, ceil), *[ops.Conv(64, 3, 2, 1)] * 3]:
        x = op.result(x)
    assert str(x) == ("f32[N, 64, (H + 1)//32 + 1, W + 1]" if ceil else "f32[N, 64, (H + 31)//32, W]")
