"""Fused nodes of 16 bits that round once: which do, and what they compute."""

from __future__ import annotations

import numpy as np
import pytest

import cnnc
from cnnc import ops
from cnnc.driver import optimise
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.json import from_json, to_json
from cnnc.ir.text import from_text, to_text
from cnnc.ir.types import DType, TensorType
from cnnc.ops.fused import Fused
from cnnc.target import numpy_dtype, reference
from cnnc_tvm.runtime import TvmProgram
from cuda_emulator import runnable
from numerics import Array, assert_agree, random_inputs, random_weights

PASSES = "fuse_epilogue,round_once"


def load(body: str, dtype: str, *inputs: str) -> Graph:
    declared = "\n  ".join(f"input {name}: {dtype}[N, 16, 5, 5]" for name in inputs)
    return cnnc.load(f"model M {{\n  {declared}\n  output y\n  {body}\n}}")


def ops_of(graph: Graph) -> list[str]:
    return [str(node.op) for node in graph.nodes]


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_fused_nodes_round_once(dtype: str) -> None:
    graph = load("y = x -> conv(16, 1) -> bn -> relu -> avgpool(2) -> conv(4, 1) -> softmax", dtype, "x")
    after = optimise(graph, level=2).network.graph
    assert ops_of(after) == ["fused(conv(16, 1), bn, relu, wide=true)", "avgpool(2)", "conv(4, 1)", "softmax"]
    assert optimise(after, level=2).network.graph is after
    assert to_text(from_text(to_text(after))) == to_text(from_json(to_json(after))) == to_text(after)


def test_those_of_f32_stay() -> None:
    graph = optimise(load("y = x -> conv(16, 1) -> relu", "f32", "x"), level=0, passes="fuse_epilogue").network.graph
    assert optimise(graph, level=0, passes="round_once").network.graph is graph


def test_at_the_first_level_every_part_rounds() -> None:
    graph = load("y = x -> conv(16, 1) -> relu", "bf16", "x")
    assert ops_of(optimise(graph, level=1).network.graph) == ["fused(conv(16, 1), relu)"]


def test_nothing_more_is_fused_into_them() -> None:
    """It takes a result that is rounded."""
    x = Input("x", TensorType((1, 16, 5, 5), DType.BF16))
    layer = Node.make(Fused((ops.Conv(16, 1), ops.Relu()), wide=True), x, name="a")
    result = optimise(Graph("M", (x,), {"y": Node.make(ops.Exp(), layer, name="e")}), level=0, passes="fuse_epilogue")
    assert ops_of(result.network.graph) == ["fused(conv(16, 1), relu, wide=true)", "exp"]
    assert [note.reason for note in result.notes] == ["`a` would not round its result, which `exp` takes rounded"]


def multiplied(graph: Graph, *factors: float) -> dict[str, Array]:
    """Weights of convolutions that multiply each channel by a number, one after the other."""
    kernels = zip(graph.params.items(), factors, strict=True)
    return {
        name: (np.eye(16) * factor).reshape(16, 16, 1, 1).astype(numpy_dtype(param.type.dtype))
        for (name, param), factor in kernels
    }


def full(dtype: str, number: float) -> Array:
    return np.full((2, 16, 5, 5), number).astype(numpy_dtype(DType(dtype)))


def results(target: str, graph: Graph, weights: dict[str, Array], passes: str, **inputs: Array) -> list[float]:
    """The different numbers of the result."""
    program = cnnc.compile(graph, target, weights, optimise=0, passes=passes)
    assert isinstance(program, TvmProgram)
    y = (runnable(program) if target == "cuda" else program)(**inputs)["y"]
    return np.unique(y.astype(np.float64)).tolist()


# bf16 has every second integer from 2^8 on, f16 from 2^11: of two that are as near it takes the multiple of 4.


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("dtype", "factors", "z", "once", "each"),
    [("bf16", (7, 37), 3, 262, 264), ("f16", (3, 683), 1, 2050, 2048)],
)
def test_what_lies_between_is_not_rounded(
    dtype: str, factors: tuple[float, float], z: float, once: float, each: float, target: str
) -> None:
    graph = load("y = add { x -> conv(16, 1, bias=false) | z } -> relu", dtype, "x", "z")
    weights = multiplied(graph, factors[0])
    inputs = {"x": full(dtype, factors[1]), "z": full(dtype, z)}
    assert results(target, graph, weights, PASSES, **inputs) == [once]
    rounding = [results(target, graph, weights, passes, **inputs) for passes in ("fuse_epilogue", "")]
    assert rounding == [[each], [each]]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("last", ["relu", "abs", "clip(0, 4096)", "dropout"])
@pytest.mark.parametrize(
    ("dtype", "factors", "z", "left"), [("bf16", (7, 37), -256, 4), ("f16", (3, 683), -2046, 2)]
)
def test_the_result_is_rounded(
    dtype: str, factors: tuple[float, float], z: float, left: float, last: str, target: str
) -> None:
    """By what leaves numbers of its type as they are, too. A second layer shows what the first stored."""
    body = f"x -> conv(16, 1, bias=false) -> {last} -> c: conv(16, 1, bias=false)\n  y = add {{ c | z }}"
    graph = load(body, dtype, "x", "z")
    weights = multiplied(graph, factors[0], 1)
    inputs = {"x": full(dtype, factors[1]), "z": full(dtype, z)}
    assert results(target, graph, weights, PASSES, **inputs) == [left]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize(
    "body",
    [
        "y = x -> conv(3, 1) -> bn -> relu",
        "y = x -> flatten -> linear(5) -> bn -> relu",
        "y = x -> conv(16, 3) -> bn -> bn(eps=0.5) -> sigmoid",
        "y = x -> deconv(16, 3, s=2) -> prelu -> tanh",
        "y = x -> conv(16, 1) -> (gelu) * 7",
    ],
)
def test_layers_agree(body: str, dtype: str, target: str) -> None:
    graph = load(body, dtype, "x")
    weights, inputs = random_weights(graph), random_inputs(graph, N=2)
    after = optimise(graph, weights, level=0, passes=PASSES).network.graph
    assert any("wide=true" in op for op in ops_of(after))
    program = cnnc.compile(after, target, weights, optimise=0)
    assert isinstance(program, TvmProgram)
    assert_agree(graph, weights, inputs, (runnable(program) if target == "cuda" else program)(**inputs))


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_it_is_nearer_to_the_exact_value(dtype: str) -> None:
    graph = load("y = add { x -> conv(16, 3, pad=1) -> bn | x } -> tanh -> elu", dtype, "x")
    weights, inputs = random_weights(graph), random_inputs(graph, N=2)
    exact = reference(graph, weights, inputs)["y"]
    errors = [
        np.abs(cnnc.compile(graph, "cpu", weights, optimise=0, passes=passes)(**inputs)["y"] - exact).mean()
        for passes in (PASSES, "fuse_epilogue")
    ]
    assert errors[0] < 0.8 * errors[1]
