"""Pooling and local response normalisation of images in blocks of channels, for each width of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cnnc import ops
from cnnc.ir.bind import bind
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.types import TensorType
from cnnc_tvm import CpuTarget
from numerics import assert_agree, assert_node_agrees, random_inputs, random_weights, single

CASES: list[tuple[Any, str]] = [
    (ops.MaxPool(3, stride=2), "f32[N, 40, 9, 11]"),
    (ops.MaxPool(3, stride=2, pad=1, ceil=True), "f32[N, 20, 10, 21]"),
    (ops.MaxPool((2, 3), stride=1, pad=(1, 0, 0, 2), dilation=(2, 1)), "f32[N, 17, 7, 9]"),
    (ops.MaxPool(3, stride=1, pad=1), "f32[N, 16, 7, 7]"),
    (ops.MaxPool(2, stride=3), "f32[N, 16, 11, 11]"),
    (ops.AvgPool(3, stride=2, pad=1), "f32[N, 40, 9, 11]"),
    (ops.AvgPool(2, ceil=True, count_include_pad=True), "f32[N, 19, 7, 9]"),
    (ops.L2Pool(3, stride=2, pad=1), "f32[N, 24, 9, 10]"),
    (ops.GlobalAvgPool(), "f32[N, 40, 7, 9]"),
    (ops.GlobalMaxPool(), "f32[N, 19, 5, 21]"),
    (ops.ReduceMean((2, 3)), "f32[N, 32, 7, 7]"),
    (ops.ReduceMin((3, 2), keep=True), "f32[N, 21, 3, 4]"),
    (ops.Lrn(5, alpha=0.5, k=2.0), "f32[N, 96, 5, 27]"),
    (ops.Lrn(4, alpha=0.5, beta=0.5), "f32[N, 21, 3, 4]"),
    (ops.Lrn(19, alpha=0.5, beta=0.3), "f32[N, 40, 3, 4]"),
    (ops.Lrn(3, alpha=0.5, within=True, beta=1.0), "f32[N, 24, 6, 7]"),
]


@pytest.mark.parametrize(
    ("mcpu", "cases", "dtype"),
    [
        ("x86-64", CASES[::3], "f32"), ("x86-64-v3", CASES[1::2], "f32"), ("native", CASES, "f32"),
        ("native", CASES, "bf16"), ("native", CASES, "f16"),
    ],
)  # fmt: skip
def test_agrees(mcpu: str, cases: list[tuple[Any, str]], dtype: str) -> None:
    """All cases in one program, whose batch is known when it runs."""
    inputs = [Input(f"x{i}", TensorType.parse(type.replace("f32", dtype))) for i, (_, type) in enumerate(cases)]
    nodes = {f"y{i}": Node.make(op, x, name=f"n{i}") for i, ((op, _), x) in enumerate(zip(cases, inputs, strict=True))}
    program = CpuTarget().compile(Graph("Cases", tuple(inputs), nodes), {}, mcpu=mcpu)
    for batch in (1, 3):
        alone = [bind(single(op, x.type), {"N": batch}) for (op, _), x in zip(cases, inputs, strict=True)]
        given = [random_inputs(graph, seed=i) for i, graph in enumerate(alone)]
        outputs = program(**{f"x{i}": arrays["x0"] for i, arrays in enumerate(given)})
        for i, (graph, arrays) in enumerate(zip(alone, given, strict=True)):
            assert_node_agrees(graph, {}, arrays, {"y": outputs[f"y{i}"]})


def test_keeps_nan_and_infinity() -> None:
    x = Input("x", TensorType.parse("f32[2, 20, 8, 9]"))
    found = [Node.make(op, x, name=op.name) for op in (ops.MaxPool(3, stride=2, pad=1), ops.GlobalMaxPool())]
    image = random_inputs(single(ops.Relu(), x.type))["x0"].copy()
    flat = image.reshape(-1)
    flat[::37], flat[5::41], flat[7::43] = np.nan, np.inf, -np.inf
    program = CpuTarget().compile(Graph("Nan", (x,), {node.op.name: node for node in found}), {})
    for name, y in program(x=image).items():
        op = next(node.op for node in found if node.op.name == name)
        assert_node_agrees(single(op, x.type), {}, {"x0": image}, {"y": y})


def test_takes_in_what_follows() -> None:
    """A pooling of a slice of stored blocks, and its epilogue, with channels in the last block that are not its own."""
    x = single(ops.Relu(), TensorType.parse("f32[N, 48, 6, 6]")).outputs["y"]
    assert isinstance(x, Node)
    part = Node.make(ops.Slice(1, 32, 46), x, name="part")
    pooled = Node.make(ops.AvgPool(3, stride=1, pad=1), part, name="pooled")
    y = Node.make(ops.Lrn(3, alpha=2.0), Node.make(ops.Add(), pooled, part, name="sum"), name="lrn")
    graph = Graph("Parts", x.inputs, {"y": Node.make(ops.Sigmoid(), y, name="y")})  # type: ignore[arg-type]
    program = CpuTarget().compile(graph, {})
    sized = bind(graph, {"N": 2})
    inputs = random_inputs(sized)
    assert_agree(sized, random_weights(sized), inputs, program(**inputs))
