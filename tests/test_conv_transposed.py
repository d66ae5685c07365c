"""Transposed convolution by kernels of convolution, one for each place within the stride."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnnc
from cnnc import ops
from cnnc.ir.bind import bind
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.types import TensorType
from cnnc_tvm import CpuTarget
from cnnc_tvm.conv_transposed import phases
from numerics import assert_agree, assert_node_agrees, random_inputs, random_weights, single

CASES: list[tuple[ops.Deconv, str]] = [
    (ops.Deconv(24, 4, stride=2, pad=1), "f32[N, 20, 5, 6]"),
    (ops.Deconv(16, 3, stride=(3, 2), pad=(0, 1), out_pad=(2, 1)), "f32[N, 16, 4, 3]"),
    (ops.Deconv(16, 5, stride=2, pad=(4, 3, 4, 4)), "f32[N, 8, 6, 7]"),
    (ops.Deconv(8, 2, stride=2), "f32[N, 16, 3, 9]"),
    (ops.Deconv(32, 4), "f32[N, 16, 1, 1]"),
    (ops.Deconv(16, 3, pad=1), "f32[N, 3, 6, 7]"),
    (ops.Deconv(3, 4, stride=2, pad=1), "f32[N, 16, 9, 4]"),
    (ops.Deconv(1, 3, stride=1, pad=1, bias=False), "f32[N, 8, 5, 30]"),
]


@pytest.mark.parametrize("mcpu", ["x86-64", "x86-64-v3", "native"])
def test_agrees(mcpu: str) -> None:
    """All cases in one program, for few and for many images; the last two are stored plainly."""
    graphs = [single(op, TensorType.parse(type)) for op, type in CASES]
    weights = [random_weights(graph) for graph in graphs]
    nodes: dict[str, Any] = {}
    for i, (op, _) in enumerate(CASES):
        nodes[f"y{i}"] = Node.make(op, Input(f"x{i}", graphs[i].inputs[0].type), name=f"n{i}")
    inputs = tuple(node.inputs[0] for node in nodes.values())
    named = {name.replace("node", f"n{i}"): array for i, own in enumerate(weights) for name, array in own.items()}
    program = CpuTarget().compile(Graph("Cases", inputs, nodes), named, mcpu=mcpu)
    for batch in (1, 5):
        given = [random_inputs(graph, seed=i, N=batch) for i, graph in enumerate(graphs)]
        outputs = program(**{f"x{i}": arrays["x0"] for i, arrays in enumerate(given)})
        for i, (graph, arrays) in enumerate(zip(graphs, given, strict=True)):
            known = bind(graph, {"N": batch})
            assert_node_agrees(known, weights[i], arrays, {"y": outputs[f"y{i}"]}, winograd=True)


@pytest.mark.parametrize("channels", [16, 3])
def test_takes_in_what_follows(channels: int) -> None:
    """In blocks and plainly: a residual sum, and an epilogue so long that it is applied in a loop."""
    graph = cnnc.load(
        f"model M {{ input x: f32[2, 16, 5, 6]  input z: f32[2, {channels}, 10, 12]  output y\n"
        f"  up = x -> deconv({channels}, 4, s=2, pad=1)  y = add {{ up | z }} -> tanh }}"
    )
    weights, inputs = random_weights(graph), random_inputs(graph)
    program = cnnc.compile(graph, "cpu", weights)
    assert_agree(graph, weights, inputs, program(**inputs))


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_the_phases_compute_every_place_once(kernel: int, stride: int, data: st.DataObject) -> None:
    """And each product of the transposed convolution is one of theirs."""
    size, pad = data.draw(st.integers(1, 6), "size"), data.draw(st.integers(0, kernel - 1), "pad")
    op = ops.Deconv(1, (kernel, 1), stride=(stride, 1), pad=(pad, 0))
    out = (size - 1) * stride - 2 * pad + kernel
    found = phases(op, 1, 1, (size, 1), (max(out, 1), 1))
    if kernel < stride:
        assert not found
        return
    assert not phases(replace(op, kernel=(kernel, 10), stride=(stride, 10)), 1, 1, (size, 1), (max(out, 1), 10))
    if out < 1:
        return
    reached = set()
    for each in found:
        top = each.shape.pads[0]
        for q in range(each.shape.out[0]):
            i, _ = each.place(q, 0)
            assert 0 <= i < out
            reached |= {(i, None)}
            reached |= {(i, u, r) for p, r in enumerate(each.kernel[0]) if 0 <= (u := q - top + p) < size}
    stamped = {(i, u, r) for u in range(size) for r in range(kernel) if 0 <= (i := u * stride + r - pad) < out}
    assert reached == stamped | {(i, None) for i in range(out)}


@pytest.mark.parametrize("mcpu", ["x86-64", "x86-64-v3", "native"])
@pytest.mark.parametrize("size", ["16, 14, 14", "16, 28, 28", "16, H, W"])
def test_strides_that_are_powers_of_two_in_plain_loops(mcpu: str, size: str) -> None:
    """Few filters fill no vectors. LLVM makes wrong ones along the rows."""
    layers = [
        "deconv(1, 8, s=4, pad=2)", "deconv(1, 4, s=4)", "deconv(1, 16, s=8)", "deconv(2, 4, s=4)", "deconv(2, 6, s=2)",
        "deconv(16, 4, s=4, groups=16)", "deconv(1, [4, 3], s=[4, 1])", "deconv(1, [3, 4], s=[1, 4])",
    ]  # fmt: skip
    text = f"model M {{ input x: f32[N, {size}]  output {', '.join(f'y{i}' for i in range(len(layers)))}\n"
    graph = cnnc.load(text + "\n".join(f"  y{i} = x -> {layer}" for i, layer in enumerate(layers)) + " }")
    weights, inputs = random_weights(graph), random_inputs(graph, N=2, H=14, W=28)
    assert_agree(graph, weights, inputs, cnnc.compile(graph, "cpu", weights, mcpu=mcpu)(**inputs))


@pytest.mark.parametrize("mcpu", ["x86-64", "x86-64-v3", "native"])
def test_padding_on_the_right_alone(mcpu: str) -> None:
    """Windows of loops without a kernel read it: it is not in the image."""
    layers = [
        "conv(48, [1, 3], pad=[0, 0, 0, 2], groups=3)", "conv(48, [1, 2], pad=[0, 0, 0, 1], groups=3)",
        "conv(48, [1, 5], s=4, pad=same_upper, groups=3)",
    ]  # fmt: skip
    text = f"model M {{ input x: f32[N, 6, 13, 13]  output {', '.join(f'y{i}' for i in range(len(layers)))}\n"
    graph = cnnc.load(text + "\n".join(f"  y{i} = x -> {layer}" for i, layer in enumerate(layers)) + " }")
    weights, inputs = random_weights(graph), random_inputs(graph, N=2)
    assert_agree(graph, weights, inputs, cnnc.compile(graph, "cpu", weights, mcpu=mcpu)(**inputs))
