"""Convolution and pooling with any attributes on the target `onnx`: shapes and values agree with the reference."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cnnc
from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.attrs import AttrError
from cnnc.ir.dim import Sym
from cnnc.ir.op import Op, OpError
from cnnc.ir.types import TensorType
from cnnc_onnx import OnnxTarget
from numerics import assert_agree, assert_node_agrees, random_inputs, random_weights, single

N, H, W = map(Sym.of, "NHW")

small = st.integers(1, 3)
pairs = st.tuples(small, small)
words = st.sampled_from(["half", "same_upper", "same_lower", "valid"])
paddings = st.one_of(st.tuples(*[st.integers(0, 3)] * 4), st.integers(0, 2), words)
sizes = st.tuples(st.integers(3, 9), st.integers(3, 9))


def check(op: Op, channels: int, size: tuple[int, int], *, symbolic: bool, **options: str) -> None:
    """On an input of this size, its rows and columns static or symbolic."""
    h, w = size
    try:
        single(op, TensorType((2, channels, h, w)))  # refuses kernels that do not fit
        graph = single(op, TensorType((N, channels, H, W) if symbolic else (N, channels, h, w)))
    except OpError:
        assume(False)
    weights = random_weights(graph)
    inputs = random_inputs(graph, N=2, H=h, W=w)
    assert_node_agrees(graph, weights, inputs, OnnxTarget().compile(graph, weights, **options)(**inputs))


def made(cls: type[Op], **attributes: Any) -> Op:
    try:
        return cls(**attributes)
    except AttrError:
        assume(False)
        raise


@settings(max_examples=150)
@given(
    st.sampled_from([(4, 6, 1), (4, 6, 2), (4, 4, 4), (1, 3, 1)]), pairs, pairs, paddings, pairs, st.booleans(), sizes,
    st.booleans(),
)  # fmt: skip
def test_conv(
    channels: Any, kernel: Any, stride: Any, pad: Any, dilation: Any, bias: bool, size: Any, symbolic: bool
) -> None:
    c, out, groups = channels
    op = made(
        ops.Conv, channels=out, kernel=kernel, stride=stride, pad=pad, dilation=dilation, groups=groups, bias=bias
    )
    check(op, c, size, symbolic=symbolic)


@settings(max_examples=100)
@given(
    st.sampled_from([(4, 6, 1), (4, 6, 2), (4, 4, 4)]), pairs, pairs, st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(0, 2), st.integers(0, 2)), pairs, sizes, st.booleans(),
)  # fmt: skip
def test_deconv(
    channels: Any, kernel: Any, stride: Any, pad: Any, extra: Any, dilation: Any, size: Any, symbolic: bool
) -> None:
    c, out, groups = channels
    op = made(
        ops.Deconv, channels=out, kernel=kernel, stride=stride, pad=pad, out_pad=extra, dilation=dilation, groups=groups
    )
    if any(p >= s for p, s in zip(extra, stride, strict=True)):
        with pytest.raises(CnncError, match=r"E0601.*`out_pad` of its stride or more"):
            check(op, c, size, symbolic=symbolic)
    else:
        check(op, c, size, symbolic=symbolic)


@settings(max_examples=40)
@given(pairs, pairs, paddings, st.booleans(), sizes)
def test_local(kernel: Any, stride: Any, pad: Any, bias: bool, size: Any) -> None:
    check(made(ops.Local, channels=3, kernel=kernel, stride=stride, pad=pad, bias=bias), 2, size, symbolic=False)


@settings(max_examples=150)
@given(pairs, pairs, paddings, st.booleans(), pairs, sizes, st.booleans())
def test_maxpool(
    kernel: Any, stride: Any, pad: Any, ceil: bool, dilation: Any, size: Any, symbolic: bool
) -> None:
    op = made(ops.MaxPool, kernel=kernel, stride=stride, pad=pad, ceil=ceil, dilation=dilation)
    check(op, 2, size, symbolic=symbolic)


@settings(max_examples=150)
@given(pairs, pairs, paddings, st.booleans(), st.booleans(), sizes, st.booleans())
def test_avgpool(
    kernel: Any, stride: Any, pad: Any, ceil: bool, count_include_pad: bool, size: Any, symbolic: bool
) -> None:
    op = made(ops.AvgPool, kernel=kernel, stride=stride, pad=pad, ceil=ceil, count_include_pad=count_include_pad)
    check(op, 2, size, symbolic=symbolic)


@settings(max_examples=80)
@given(pairs, pairs, paddings, st.booleans(), sizes, st.booleans())
def test_l2pool(kernel: Any, stride: Any, pad: Any, ceil: bool, size: Any, symbolic: bool) -> None:
    check(made(ops.L2Pool, kernel=kernel, stride=stride, pad=pad, ceil=ceil), 2, size, symbolic=symbolic)


@settings(max_examples=60)
@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), sizes, st.booleans())
def test_adaptive_avgpool(grid: Any, size: Any, symbolic: bool) -> None:
    check(ops.AdaptiveAvgPool(grid), 2, size, symbolic=symbolic)


@pytest.mark.parametrize("opset", ["18", "21", "22"])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        pytest.param(1, 2, (4, 6), id="dropped in both directions"),
        pytest.param((1, 2), (2, 3), (4, 4), id="dropped in one, rounded up in the other"),
        pytest.param((1, 2), (2, 3), (5, 4), id="rounded up"),
    ],
)
@pytest.mark.parametrize("cls", [ops.MaxPool, ops.AvgPool, ops.L2Pool])
def test_windows_that_would_start_in_the_padding(
    cls: type[ops.MaxPool], kernel: Any, stride: Any, size: tuple[int, int], opset: str
) -> None:
    """Shape inference counts them in opsets before 22."""
    check(cls(kernel, stride, ceil=True), 2, size, symbolic=False, opset=opset)


def test_a_dilation_along_a_kernel_of_one_means_nothing() -> None:
    """ONNX Runtime's kernel for blocks of channels refuses it where it is to pad by itself."""
    graph = cnnc.load(
        "model M { input x: f32[N, 1, H, W]  output y\n"
        "  y = x -> conv(1, [1, 3], s=[1, 2], pad=same_upper, dilation=[2, 1]) -> relu }"
    )
    weights, inputs = random_weights(graph), random_inputs(graph, N=1, H=6, W=7)
    assert_agree(graph, weights, inputs, cnnc.compile(graph, "onnx", weights)(**inputs))
