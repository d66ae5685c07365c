"""Fused nodes: what becomes part of a layer, what does not and why, and that nothing changes."""

from __future__ import annotations

import numpy as np
import pytest

import cnnc
from cnnc import ops
from cnnc.driver import optimise
from cnnc.ir.attrs import AttrError
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.json import from_json, to_json
from cnnc.ir.op import OpError
from cnnc.ir.text import from_text, to_text
from cnnc.ir.types import TensorType
from cnnc.ops.fused import Fused, parts_of, unfused
from cnnc_numpy.evaluator import evaluate
from cnnc_tvm.runtime import TvmProgram
from numerics import assert_agree, random_inputs, random_weights

PASS = "fuse_epilogue"


def load(body: str, dtype: str = "f32") -> Graph:
    return cnnc.load(f"model M {{\n  input x: {dtype}[N, 4, 6, 6]\n  output y\n  {body}\n}}")


def fused(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph after the pass, and the reasons for what it left, by node."""
    result = optimise(graph, level=0, passes=PASS)
    return result.network.graph, {note.node: note.reason for note in result.notes if not note.applied}


RESIDUAL = "x -> a: conv(4, 3, pad=1) -> relu -> b: conv(4, 3, pad=1)\n  y = add { b | x } -> prelu"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (RESIDUAL, ["fused(conv(4, 3, pad=1), relu)", "fused(conv(4, 3, pad=1), add, prelu)"]),
        ("y = add { x | x -> conv(4, 1) } -> relu", ["fused(conv(4, 1), add, relu)"]),
        ("y = add { x -> conv(4, 1) | x -> conv(4, 1) }", ["conv(4, 1)", "fused(conv(4, 1), add)"]),
        ("y = x -> deconv(3, 2, s=2) -> prelu -> sigmoid", ["fused(deconv(3, 2, s=2), prelu, sigmoid)"]),
        ("y = x -> flatten -> linear(5) -> bn -> relu", ["flatten", "fused(linear(5), bn, relu)"]),
        ("g = x -> gap\n  y = mul { x -> conv(4, 1) | g }", ["gap", "fused(conv(4, 1), mul)"]),
        ("y = x -> local(3, 3) -> clip(0, 6)", ["fused(local(3, 3), clip(0, 6))"]),
        # Left alone: no layer before, an axis in play, three operands of which the order of summing matters.
        ("y = x -> relu -> tanh", ["relu", "tanh"]),
        ("y = x -> conv(4, 1) -> softmax", ["conv(4, 1)", "softmax"]),
        ("y = add { x -> conv(4, 1) | x | x -> relu }", ["conv(4, 1)", "relu", "add"]),
    ],
)  # fmt: skip
def test_what_is_fused(body: str, expected: list[str]) -> None:
    graph, refused = fused(load(body))
    assert sorted(str(node.op) for node in graph.nodes) == sorted(expected)
    assert not refused


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("x -> a: conv(4, 1) -> r: relu\n  y = concat { a | r }", "the result of `a` is read elsewhere too"),
        ("g = x -> gap -> a: conv(4, 1)\n  y = mul { x | g }", "`mul` gives f32[N, 4, 6, 6], not f32[N, 4, 1, 1]"),
        ("y = x -> a: conv(4, 1) -> (tanh -> sigmoid) * 4 -> r: relu", "`a` has 8 ops after it in one node already"),
    ],
)  # fmt: skip
def test_refusals(body: str, reason: str) -> None:
    _, refused = fused(load(body))
    assert next(iter(refused.values())).startswith(reason)


def test_an_epilogue_is_as_long_as_it_may_be() -> None:
    graph, refused = fused(load("y = x -> a: conv(4, 1) -> (tanh -> sigmoid) * 4 -> r: relu"))
    assert [len(parts_of(node.op)) for node in graph.nodes] == [9, 1]
    assert list(refused) == ["r"]


def test_of_two_layers_the_reason_is_that_of_the_second() -> None:
    _, refused = fused(load("x -> a: conv(4, 1)  x -> b: conv(4, 1)  y = add { s: add { a | b } | a | b }"))
    assert refused == {"s.0": "the result of `b` is read elsewhere too"}


def test_an_output_is_not_fused_away() -> None:
    graph = load("x -> a: conv(4, 1) -> r: relu\n  y = r")
    graph = graph.with_outputs({"y": graph.outputs["y"], "raw": graph.nodes[0]})
    after, refused = fused(graph)
    assert [node.op.name for node in after.nodes] == ["conv", "relu"]
    assert "a" in refused["r"]


@pytest.mark.parametrize("target", ["numpy", "onnx", "cpu"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_targets_agree_bit_for_bit_with_the_parts(target: str, dtype: str) -> None:
    graph = load(RESIDUAL, dtype)
    weights, inputs = random_weights(graph), random_inputs(graph, N=2)
    plain, together = (
        cnnc.compile(graph, target, weights, optimise=0, passes=passes)(**inputs)["y"] for passes in ("", PASS)
    )
    np.testing.assert_array_equal(plain, together)
    assert_agree(graph, weights, inputs, {"y": together})


def test_a_fused_node_is_one_function() -> None:
    program = cnnc.compile(load(RESIDUAL), "cpu", 0)
    assert isinstance(program, TvmProgram)
    layers = [step.nodes[-1] for step in program.plan.steps if "conv" in step.function]
    assert layers == ["a", "b"]


def test_texts_read_back_and_parts_come_apart() -> None:
    graph = load(RESIDUAL)
    after, _ = fused(graph)
    assert to_text(from_text(to_text(after))) == to_text(from_json(to_json(after))) == to_text(after)
    apart = unfused(after)
    assert [node.op for node in apart.nodes] == [node.op for node in graph.nodes]
    weights, inputs = random_weights(graph), random_inputs(graph, N=2)
    for each in (after, apart):
        np.testing.assert_array_equal(evaluate(each, weights, inputs)["y"], evaluate(graph, weights, inputs)["y"])


def test_parts_are_named_after_their_node_and_the_last_is_it() -> None:
    after, _ = fused(load(f"{RESIDUAL} -> s: softmax"))
    apart = unfused(after)
    assert [node.name for node in apart.nodes] == ["a+0", "a", "b+0", "b+1", "b", "s"]
    origins = {node.name: node.origin for node in after.nodes}
    assert all(node.origin == origins[node.name.partition("+")[0]] for node in apart.nodes)


def test_a_fused_op_refuses_what_its_parts_do() -> None:
    x = Input("x", TensorType((1, 4, 6, 6)))
    small = Input("small", TensorType((1, 4, 3, 3)))
    op = Fused((ops.Conv(4, 1), ops.Add()))
    assert Node.make(op, x, x, name="y").macs == ops.Conv(4, 1).macs(x.type, x.type)
    for operands in ((x,), (x, x, x)):
        with pytest.raises(OpError, match="takes 2 operands"):
            Node.make(op, *operands, name="y")
    with pytest.raises(OpError, match="different"):
        Node.make(op, x, small, name="y")
    with pytest.raises(OpError, match="does not keep"):
        Node.make(Fused((ops.Conv(4, 1), ops.GlobalAvgPool())), x, name="y")
    with pytest.raises(AttrError):
        Fused((3,))  # type: ignore[arg-type]


def test_the_language_does_not_have_it() -> None:
    with pytest.raises(cnnc.CnncError, match="E0201"):
        load("y = x -> fused(relu)")
