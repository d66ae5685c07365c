"""Matrix products with weights on `cpu`, for each width of vectors, batches of any size and element types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cnnc import ops
from cnnc.diagnostics import CnncError
from cnnc.ir.bind import bind
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.types import DType, TensorType
from cnnc.target import numpy_dtype
from cnnc_tvm import CpuTarget
from numerics import assert_agree, assert_node_agrees, random_inputs, random_weights, single

CASES: list[tuple[int, int]] = [(10, 50), (64, 33), (300, 40), (129, 1), (3, 7)]
"""Outputs and features."""


@pytest.mark.parametrize("mcpu", ["x86-64", "x86-64-v3", "native"])
def test_agrees(mcpu: str) -> None:
    """All cases in one program, whose batch is known when it runs: all the sizes that are left after full tiles."""
    graphs = [single(ops.Linear(outputs), TensorType.parse(f"f32[N, {features}]")) for outputs, features in CASES]
    weights = [random_weights(graph) for graph in graphs]
    nodes: dict[str, Any] = {}
    for i, graph in enumerate(graphs):
        x = Input(f"x{i}", graph.inputs[0].type)
        nodes[f"y{i}"] = Node.make(ops.Linear(CASES[i][0]), x, name=f"n{i}")
    inputs = tuple(node.inputs[0] for node in nodes.values())
    named = {name.replace("node", f"n{i}"): array for i, own in enumerate(weights) for name, array in own.items()}
    program = CpuTarget().compile(Graph("Cases", inputs, nodes), named, mcpu=mcpu)
    for batch in (1, 2, 3, 5, 7, 8, 20):
        given = [random_inputs(graph, seed=i, N=batch) for i, graph in enumerate(graphs)]
        outputs = program(**{f"x{i}": arrays["x0"] for i, arrays in enumerate(given)})
        for i, (graph, arrays) in enumerate(zip(graphs, given, strict=True)):
            assert_node_agrees(bind(graph, {"N": batch}), weights[i], arrays, {"y": outputs[f"y{i}"]})


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_known_batch_and_epilogue(dtype: str) -> None:
    x = Input("x", TensorType.parse(f"{dtype}[11, 20]"))
    hidden = Node.make(ops.Silu(), Node.make(ops.Linear(37), x, name="first"), name="hidden")
    y = Node.make(ops.Linear(37, bias=False), hidden, name="second")
    graph = Graph("Layers", (x,), {"y": Node.make(ops.Relu(), Node.make(ops.Add(), y, hidden, name="sum"), name="y")})
    weights, inputs = random_weights(graph), random_inputs(graph)
    assert_agree(graph, weights, inputs, CpuTarget().compile(graph, weights)(**inputs))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_weights_may_be_stored_in_two_bytes(dtype: str) -> None:
    """The result is that of the rounded weights; activations and sums stay in f32."""
    graph = single(ops.Linear(40, bias=False), TensorType.parse("f32[N, 70]"))
    weights, inputs = random_weights(graph), random_inputs(graph, N=5)
    rounded = {name: x.astype(numpy_dtype(DType(dtype))).astype(np.float32) for name, x in weights.items()}
    program = CpuTarget().compile(graph, weights, linear=dtype)
    outputs = program(**inputs)
    assert_node_agrees(bind(graph, {"N": 5}), rounded, inputs, outputs)
    assert sum(x.nbytes for x in program.weights.values()) < sum(x.nbytes for x in weights.values())
    with pytest.raises(AssertionError):
        assert_node_agrees(bind(graph, {"N": 5}), weights, inputs, outputs)


def test_weights_that_two_bytes_cannot_hold_are_refused() -> None:
    graph = single(ops.Linear(3, bias=False), TensorType((1, 2)))
    weights = {name: np.full_like(x, 1e5) for name, x in random_weights(graph).items()}
    with pytest.raises(CnncError, match=r"E0902.*1e\+05 are too large"):
        CpuTarget().compile(graph, weights, linear="f16")
    with pytest.raises(CnncError, match="E0902"):
        CpuTarget().compile(graph, weights, linear="f8")
