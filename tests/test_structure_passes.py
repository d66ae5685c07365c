"""Passes that change the structure of a graph: what each makes, what it leaves and why, and that values stay."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest

import cnnc
from cnnc.ir.graph import Graph
from cnnc.passes import LEVELS, PASSES, Network, Pipeline, choose
from cnnc_numpy.evaluator import evaluate
from numerics import Array, random_inputs, random_weights

ROUNDING = 1e-14
"""In float64, where sums are ordered anew."""
NO_END = "the windows of `c` may leave out the end of the map, where this pool is padded"
READ_TWICE = "the result of `c` is read elsewhere too"
ELSEWHERE = "`c`, whose channels they are, is read elsewhere too"


def model(body: str, size: str = "4, 8, 8", dtype: str = "f32") -> Graph:
    return cnnc.load(f"model M {{ input x: {dtype}[2, {size}] output y {body} }}")


def run(name: str, graph: Graph, weights: Mapping[str, Array] | None = None) -> tuple[Graph, set[str]]:
    """The graph after a pass, and its reasons for what it left; the values must be what they were.

    Those of a pass that keeps every bit are compared in float32, on inputs that hold NaN and both infinities, too.
    """
    weights, inputs = weights or random_weights(graph), random_inputs(graph)
    result = Pipeline((PASSES[name],)).run(Network(graph, weights))
    after = result.network
    expected, got = evaluate(graph, weights, inputs), evaluate(after.graph, after.weights, inputs)
    assert {key: x.type for key, x in after.graph.outputs.items()} == {key: x.type for key, x in graph.outputs.items()}
    for key, x in expected.items():
        assert np.unique(x).size > 1
        assert np.abs(got[key] - x).max() <= ROUNDING * np.abs(x).max()
    if PASSES[name].exact:
        rng = np.random.default_rng(1)
        for x in inputs.values():
            x[rng.random(x.shape) < 0.05] = rng.choice(np.array([np.nan, np.inf, -np.inf, 0], x.dtype))
            x[:, 0] = -np.abs(x[:, 0])
        before = evaluate(graph, weights, inputs, None)
        for key, x in evaluate(after.graph, after.weights, inputs, None).items():
            np.testing.assert_array_equal(x, before[key])
    assert {node.origin for node in after.graph.nodes} <= {node.origin for node in graph.nodes}
    return after.graph, {note.reason for note in result.notes if not note.applied}


def ops_of(graph: Graph) -> list[str]:
    return [str(node.op) for node in graph.nodes]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("maxpool(2) -> maxpool(2)", "maxpool(4)"),
        ("maxpool(2, s=1) -> maxpool(2, s=1)", "maxpool(3, s=1)"),
        ("maxpool(3, s=1, pad=1) -> maxpool(2)", "maxpool(4, s=2, pad=[1, 1, 1, 1])"),
        ("maxpool(3, s=1, pad=1) -> maxpool(2, pad=1)", "maxpool(4, s=2, pad=2)"),
        ("maxpool(2, s=1) -> maxpool(2, s=2, pad=[1, 0, 0, 1])", "maxpool(3, s=2, pad=[1, 0, 0, 1])"),
        ("maxpool([2, 1]) -> maxpool([1, 2])", "maxpool(2)"),
        ("maxpool(2, ceil=true) -> maxpool(2)", "maxpool(4)"),
        ("maxpool(3, s=2, pad=[1, 0, 0, 1]) -> maxpool(2, s=3, pad=1)", "maxpool(5, s=6, pad=[3, 2, 2, 3])"),
        ("maxpool(2) -> maxpool(2) -> maxpool(2)", "maxpool(8)"),
    ],
)
def test_pools_merge(body: str, left: str) -> None:
    wanted = model(f"y = x -> {left}")
    after, reasons = run("merge_pools", model(f"y = x -> {body}"))
    assert ops_of(after) == ops_of(wanted)
    assert not reasons


@pytest.mark.parametrize(
    ("body", "size", "reason"),
    [
        ("c: maxpool(2) -> maxpool(2, pad=1)", "7, 7", NO_END),
        ("c: maxpool(2) -> maxpool(2, pad=[0, 0, 1, 0])", "7, 8", NO_END),
        ("c: maxpool(2) -> maxpool(2, pad=[0, 0, 0, 1])", "8, 7", NO_END),
        ("c: maxpool(1, s=2) -> maxpool(2)", "8, 8", "the windows of `c` leave gaps"),
        ("c: maxpool([1, 3], s=[2, 1]) -> maxpool(2)", "8, 8", "the windows of `c` leave gaps"),
        ("c: maxpool([3, 1], s=[1, 2]) -> maxpool(2)", "8, 8", "the windows of `c` leave gaps"),
        ("c: maxpool(2, ceil=true) -> maxpool(2)", "7, 7", "`ceil` gives `c` windows that reach past the map"),
        ("c: maxpool(2) -> d: maxpool(2, ceil=true)", "6, 6", "`ceil` gives `d` windows that reach past the map"),
        ("maxpool(2) -> d: maxpool(2, s=1, dilation=2)", "8, 8", "the windows of `d` are dilated"),
        ("maxpool(5, s=1, pad=2) -> maxpool(5, s=1, pad=2)", "8, 8", "one pool of 9x9 windows costs more than both"),
        ("c: maxpool(2) -> add { maxpool(2, s=1, pad=[1, 1, 0, 0]) | id }", "8, 8", READ_TWICE),
    ],
)
def test_pools_that_stay(body: str, size: str, reason: str) -> None:
    before = model(f"y = x -> {body}", f"4, {size}")
    after, reasons = run("merge_pools", before)
    assert ops_of(after) == ops_of(before)
    assert len(reasons) == 1
    assert reasons.pop().startswith(reason)


@pytest.mark.parametrize(
    ("body", "size", "left"),
    [
        ("maxpool([2, 3], s=[1, 3]) -> maxpool(2, pad=[0, 1, 1, 0])", "8, 9",
         "maxpool([3, 6], s=[2, 6], pad=[0, 3, 1, 0])"),
        ("maxpool(2) -> maxpool(2, pad=[1, 1, 0, 0])", "15, 15", "maxpool(4, pad=[2, 2, 0, 0])"),
        ("maxpool(2) -> maxpool(2, pad=[0, 0, 1, 0])", "8, 7", "maxpool(4, pad=[0, 0, 2, 0])"),
        ("maxpool(2) -> maxpool(2, pad=[0, 0, 0, 1])", "7, 8", "maxpool(4, pad=[0, 0, 0, 2])"),
        ("maxpool([4, 1], s=[3, 1], pad=[1, 0, 1, 0]) -> maxpool([2, 1], s=[2, 1], pad=[1, 0, 1, 0])", "8, 6",
         "maxpool([7, 1], s=[6, 1], pad=[4, 0, 4, 0])"),
        ("maxpool([1, 4], s=[1, 3], pad=[0, 1, 0, 1]) -> maxpool([1, 2], s=[1, 2], pad=[0, 1, 0, 1])", "6, 8",
         "maxpool([1, 7], s=[1, 6], pad=[0, 4, 0, 4])"),
        ("maxpool(2, s=1) -> maxpool(2, s=1)", "11, 10", "maxpool(3, s=1)"),  # costs the same
    ],
)  # fmt: skip
def test_pools_merge_by_rows_and_columns(body: str, size: str, left: str) -> None:
    after, reasons = run("merge_pools", model(f"y = x -> {body}", f"4, {size}"))
    assert ops_of(after) == ops_of(model(f"y = x -> {left}", f"4, {size}"))
    assert not reasons


def test_pools_of_symbolic_size_merge() -> None:
    before = cnnc.load("model M { input x: f32[N, 2, H, W] output y  y = x -> maxpool(2) -> maxpool(2) }")
    after = Pipeline((PASSES["merge_pools"],)).run(Network(before, {})).network.graph
    assert ops_of(after) == ["maxpool(4)"]
    assert after.outputs["y"].type == before.outputs["y"].type


@pytest.mark.parametrize("body", ["maxpool(3, s=2, pad=same_upper) -> maxpool(2)",
                                  "maxpool(2) -> maxpool(3, s=2, pad=same_upper)"])  # fmt: skip
def test_pools_padded_by_symbolic_sizes_stay(body: str) -> None:
    before = cnnc.load(f"model M {{ input x: f32[N, 2, H, W] output y  y = x -> {body} }}")
    result = Pipeline((PASSES["merge_pools"],)).run(Network(before, {}))
    assert [note.reason for note in result.notes] == ["the padding depends on the size of the input"]


@pytest.mark.parametrize("body", ["relu -> maxpool(2)", "maxpool(2) -> relu", "maxpool(2) -> avgpool(2)"])
def test_what_is_not_two_pools_stays(body: str) -> None:
    before = model(f"y = x -> {body}")
    after, reasons = run("merge_pools", before)
    assert ops_of(after) == ops_of(before)
    assert not reasons


@pytest.mark.parametrize(
    "step", ["relu", "clip(0, 6)", "clip(-1, 9)", "hard_sigmoid", "leaky_relu(0.2)", "leaky_relu(3)", "prelu"]
)
@pytest.mark.parametrize(
    "pool", ["maxpool(2)", "maxpool(3, s=2, pad=1)", "maxpool(3, s=2, ceil=true)", "maxpool(2, dilation=2)", "gmp"]
)
def test_what_rises_moves_after_a_pool(step: str, pool: str) -> None:
    before = model(f"y = x -> c: {step} -> p: {pool}")
    after, reasons = run("reorder_pool", before, {"c.weight": np.array([0.1, 0.5, 1, 2], np.float32)})
    assert [node.name for node in after.nodes] == ["p", "c"]
    assert not reasons


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("c: relu -> maxpool(3, s=1, pad=1)", "the pool leaves as many places for `relu` as there are"),
        ("c: relu -> concat { maxpool(2) | maxpool(2) }", READ_TWICE),
        ("c: leaky_relu(0) -> maxpool(2)", "the slope of `c` is not positive"),
        ("c: leaky_relu(-1) -> maxpool(2)", "the slope of `c` is not positive"),
        ("c: prelu -> maxpool(2)", "a slope of `c` is not positive"),
        ("c: relu -> maxpool(2, pad=4, dilation=7, s=9)", "a dilated window can lie in the padding alone"),
    ],
)
def test_what_rises_stays(body: str, reason: str) -> None:
    before = model(f"y = x -> {body}", "4, 6, 6")
    after, reasons = run("reorder_pool", before, {"c.weight": np.array([0, 1, 2, 3], np.float32)})
    assert ops_of(after) == ops_of(before)
    assert reasons == {reason}


@pytest.mark.parametrize("body", ["l: conv(4, 3)", "l: conv(4, 3) -> bn", "l: conv(4, 3) -> bn -> tanh"])
def test_what_rises_stays_with_the_layer_before_it(body: str) -> None:
    before = model(f"y = x -> {body} -> relu -> maxpool(2)")
    after, reasons = run("reorder_pool", before)
    assert ops_of(after) == ops_of(before)
    assert reasons == {"`relu` costs nothing as the epilogue of `l`"}


def test_what_rises_leaves_what_it_cannot_be_one_with() -> None:
    for body in (
        "tanh -> c: relu -> p: maxpool(2)", "conv(4, 3) -> concat { c: relu -> p: maxpool(2) | maxpool(2) }",
        "conv(4, 3) -> concat { bn -> c: relu -> p: maxpool(2) | maxpool(2) }",
    ):  # fmt: skip
        after, reasons = run("reorder_pool", model(f"y = x -> {body}"))
        names = [node.name for node in after.nodes]
        assert names.index("p") < names.index("c")
        assert not reasons


@pytest.mark.parametrize("steps", ["abs", "neg", "step", "exp -> sqrt", "tanh", "sigmoid", "exp", "silu"])
def test_what_does_not_rise_or_only_about_stays(steps: str) -> None:
    before = model(f"y = x -> {steps} -> maxpool(2)")
    after, _ = run("reorder_pool", before)
    assert ops_of(after) == ops_of(before)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("avgpool(8)", ["gap"]), ("avgpool([8, 8], s=3, ceil=true)", ["gap"]), ("adaptive_avgpool(1)", ["gap"]),
        ("reduce_mean([2, 3], keep=true)", ["gap"]), ("reduce_mean([2, 3])", ["reduce_mean([2, 3])"]),
        ("adaptive_avgpool(8) -> tanh", ["tanh"]), ("gap -> gap", ["gap"]), ("avgpool(7)", ["avgpool(7)"]),
        ("avgpool(8, pad=1)", ["avgpool(8, pad=1)"]), ("adaptive_avgpool(2)", ["adaptive_avgpool(2)"]),
    ],
)  # fmt: skip
def test_averages_of_whole_maps(body: str, left: list[str]) -> None:
    after, _ = run("commute_pool", model(f"y = x -> {body}"))
    assert [op.replace("[1, 1, 1, 1]", "1") for op in ops_of(after)] == left


@pytest.mark.parametrize(
    "pool", [
        "avgpool(2)", "avgpool(3, s=2, ceil=true)", "avgpool(3, s=2, pad=1, count_include_pad=false)", "gap",
        "adaptive_avgpool(3)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("conv", ["conv(6, 1)", "conv(2, 1, bias=false)", "conv(8, 1, groups=2)"])
def test_averages_move_before_convolutions(pool: str, conv: str) -> None:
    after, reasons = run("commute_pool", model(f"y = x -> c: {conv} -> p: {pool}"))
    assert [node.name for node in after.nodes] == ["p", "c"]
    assert not reasons


def test_an_average_that_counts_padding_moves_before_a_convolution_without_bias() -> None:
    """Its windows at the border average zeros, which have no bias: a naive version would add all of it there."""
    pool = "avgpool(3, s=2, pad=1)"
    after, _ = run("commute_pool", model(f"y = x -> c: conv(6, 1, bias=false) -> p: {pool}"))
    assert [node.name for node in after.nodes] == ["p", "c"]
    before = model(f"y = x -> c: conv(6, 1) -> p: {pool}")
    after, reasons = run("commute_pool", before)
    assert ops_of(after) == ops_of(before)
    assert reasons == {"the average counts padding, which has no bias of `c`"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("c: conv(6, 1) -> concat { avgpool(2) | avgpool(2) }", READ_TWICE),
        ("c: conv(1, 1) -> avgpool(2, s=1)", "averaging the maps before `c` costs more than those after it"),
        ("c: conv(2, 1) -> avgpool(3, s=1)", "averaging the maps before `c` costs more than those after it"),
        ("c: conv(4, 1) -> avgpool(1)", "averaging the maps before `c` costs more than those after it"),
        ("c: conv(6, 3, pad=1) -> avgpool(2)", ""), ("c: conv(6, 1, s=2) -> avgpool(2)", ""),
        ("c: conv(6, 1, pad=1) -> avgpool(2)", ""), ("c: conv(6, 1) -> maxpool(2)", ""),
    ],
)  # fmt: skip
def test_averages_that_stay(body: str, reason: str) -> None:
    before = model(f"y = x -> {body}")
    after, reasons = run("commute_pool", before)
    assert ops_of(after) == ops_of(before)
    assert reasons == ({reason} if reason else set())


@pytest.mark.parametrize("conv", ["conv(1, 1)", "conv(2, 1, bias=false)"])
@pytest.mark.parametrize("pool", ["avgpool(3, s=1)", "avgpool(3, s=1, pad=1, count_include_pad=false)"])
def test_averages_of_many_maps_move_after_convolutions_with_few(conv: str, pool: str) -> None:
    after, reasons = run("commute_pool", model(f"y = x -> p: {pool} -> c: {conv} -> maxpool(2)", "8, 7, 7"))
    assert [node.name for node in after.nodes][:2] == ["c", "p"]
    assert reasons == {"averaging the maps before `c` costs more than those after it"}  # it is not moved back


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("p: avgpool(3, s=1) -> concat { conv(1, 1) | conv(1, 1) }", "the result of `p` is read elsewhere too"),
        ("avgpool(3, s=1, pad=1) -> c: conv(1, 1)", "the average counts padding, which has no bias of `c`"),
        ("avgpool(3, s=1) -> c: conv(1, 1) -> r: relu", "`r` would no longer be the epilogue of `c`"),
        ("avgpool(3, s=1) -> conv(6, 1)", ""), ("avgpool(2) -> conv(1, 1)", ""), ("gap -> conv(1, 1)", ""),
    ],
)  # fmt: skip
def test_averages_that_stay_before_convolutions(body: str, reason: str) -> None:
    before = model(f"y = x -> {body}")
    after, reasons = run("commute_pool", before)
    assert ops_of(after) == ops_of(before)
    assert reasons == ({reason} if reason else set())


def test_averages_over_two_of_three_axes_stay() -> None:
    before = model("y = add { x -> reduce_mean([2, 3], keep=true) | constant(1) }", "4, 5, 6, 7")
    assert ops_of(run("commute_pool", before)[0]) == ops_of(before)


def test_a_densenet_transition_averages_first() -> None:
    before = model("y = x -> bn -> relu -> conv(2, 1, bias=false) -> avgpool(2)")
    after, _ = run("commute_pool", before)
    assert ops_of(after) == ["bn", "relu", "avgpool(2)", "conv(2, 1, bias=false)"]


def test_low_precision_averages_stay() -> None:
    before = model("y = x -> c: conv(6, 1) -> avgpool(2)", dtype="f16")
    result = Pipeline((PASSES["commute_pool"],)).run(Network(before, random_weights(before)))
    assert result.network.graph is not None
    assert [note.reason for note in result.notes] == ["the averages would be rounded to f16 before `c` sums them"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("conv(5, 8)", ["flatten", "linear(5)", "reshape(5, 1, 1)"]),
        ("conv(5, 8, bias=false) -> flatten", ["flatten", "linear(5, bias=false)"]),
        ("conv(5, 8) -> relu -> conv(3, 1) -> flatten", ["flatten", "linear(5)", "relu", "linear(3)"]),
        ("conv(5, 8) -> scale -> flatten", ["flatten", "linear(5)", "scale"]),
        ("mul { constant(2) | id } -> conv(5, 8) -> flatten",
         ["constant([2])", "mul", "flatten", "linear(5)"]),
        ("conv(5, 8) -> bn -> prelu -> flatten", ["flatten", "linear(5)", "bn", "prelu"]),
        ("gap -> conv(2, 1, s=2) -> conv(4, 1) -> softmax",
         ["gap", "flatten", "linear(2)", "linear(4)", "reshape(4, 1, 1)", "softmax"]),
        ("conv(5, 7)", ["conv(5, 7)"]), ("conv(5, 8, s=8, pad=1)", ["conv(5, 8, s=8, pad=1)"]),
        ("gap -> conv(4, 3, pad=1)", ["gap", "conv(4, 3, pad=1)"]),
    ],
)  # fmt: skip
def test_convolutions_of_one_window(body: str, left: list[str]) -> None:
    after, reasons = run("pointwise_linear", model(f"y = x -> {body}"))
    assert [op.replace("pad=[1, 1, 1, 1]", "pad=1") for op in ops_of(after)] == left
    assert not reasons


def test_a_gate_is_made_of_linear_layers() -> None:
    before = model("y = mul { x -> gap -> conv(2, 1) -> relu -> conv(4, 1) -> sigmoid | x }")
    after, _ = run("pointwise_linear", before)
    left = ["gap", "flatten", "linear(2)", "relu", "linear(4)", "sigmoid", "reshape(4, 1, 1)", "mul"]
    assert ops_of(after) == left


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = x -> gap -> conv(4, 1, groups=2)", "a linear layer has no groups"),
        ("shared s = conv(4, 1)  y = x -> gap -> c: s -> d: s", "the weights of `d` are shared"),
    ],
)
def test_convolutions_of_one_window_that_stay(body: str, reason: str) -> None:
    before = model(body)
    after, reasons = run("pointwise_linear", before)
    assert ops_of(after) == ops_of(before)
    assert reason in reasons


def test_a_reshape_that_is_read_twice_stays_where_it_is() -> None:
    before = model("z = x -> gap -> conv(4, 1)  y = add { z -> relu | z }")
    after, _ = run("pointwise_linear", before)
    assert ops_of(after) == ["gap", "flatten", "linear(4)", "reshape(4, 1, 1)", "relu", "add"]
    before = model("z = x -> gap -> flatten  y = add { z -> relu | z }")
    assert ops_of(run("fully_convolutional", before)[0]) == ops_of(before)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("flatten -> linear(5)", ["conv(5, 8)", "flatten"]),
        ("flatten -> linear(5, bias=false) -> relu -> dropout(0.5) -> linear(3)",
         ["conv(5, 8, bias=false)", "relu", "dropout", "conv(3, 1)", "flatten"]),
        ("flatten -> linear(5) -> bn -> linear(3) -> softmax",
         ["conv(5, 8)", "bn", "conv(3, 1)", "flatten", "softmax"]),
        ('flatten -> linear(5, init="orthogonal") -> scale -> linear(3)',
         ['conv(5, 8, init="orthogonal")', "scale", "conv(3, 1)", "flatten"]),
        ("flatten -> relu -> linear(5)", ["flatten", "relu", "linear(5)"]),
        ("gap -> relu -> tanh", ["gap", "relu", "tanh"]),
    ],
)  # fmt: skip
def test_fully_convolutional(body: str, left: list[str]) -> None:
    after, reasons = run("fully_convolutional", model(f"y = x -> {body}"))
    assert ops_of(after) == left
    assert not reasons


def test_linear_layers_of_maps_that_are_not_square_and_of_vectors() -> None:
    after, _ = run("fully_convolutional", model("y = x -> f: flatten -> c: linear(5) -> r: relu", "3, 4, 6"))
    assert [(node.name, str(node.op)) for node in after.nodes] == [
        ("c", "conv(5, [4, 6])"), ("r", "relu"), ("c.flatten", "flatten"),
    ]  # fmt: skip
    before = cnnc.load("model M { input x: f32[2, 4] output y  y = x -> linear(3) }")
    after, reasons = run("fully_convolutional", before)
    assert ops_of(after) == ops_of(before)
    assert not reasons


def test_fully_convolutional_refuses() -> None:
    flat = "model M { input x: f32[2, 4, 3] output y  y = x -> f: flatten -> linear(5) }"
    assert run("fully_convolutional", cnnc.load(flat))[1] == {"`f` flattens no maps, but f32[2, 4, 3]"}
    before = model("shared s = linear(4)  y = x -> gap -> f: flatten -> c: s -> d: s")
    after, reasons = run("fully_convolutional", before)
    assert ops_of(after) == ops_of(before)
    assert reasons == {"the weights of `c` are shared"}


def test_fully_convolutional_runs_by_name_and_has_the_last_word() -> None:
    assert not any("fully_convolutional" in names for names in LEVELS.values())
    graph = model("y = x -> conv(6, 3) -> relu -> flatten -> linear(5) -> relu -> linear(3)")
    chosen = [PASSES[name] for name in choose(2, "fully_convolutional,-fuse_epilogue")]
    after = Pipeline(tuple(chosen)).run(Network(graph, random_weights(graph))).network.graph
    assert [node.op.name for node in after.nodes] == ["conv", "relu", "conv", "relu", "conv", "flatten"]


def test_a_fully_convolutional_network_takes_a_larger_image() -> None:
    """At each place of it, the result is that of the network on the part of the image there."""
    graph = model("y = x -> conv(6, 3) -> relu -> flatten -> linear(5)")
    weights = random_weights(graph)
    after = Pipeline((PASSES["fully_convolutional"],)).run(Network(graph, weights)).network
    maps = after.graph.nodes[-1].inputs[0]
    large = cnnc.load("model M { input x: f32[2, 4, 9, 8] output y  y = x -> conv(6, 3) -> relu -> conv(5, 6) }")
    assert [node.op.name for node in large.nodes] == [x.op.name for x in after.graph.with_outputs({"y": maps}).nodes]
    arrays = dict(zip(large.params, after.weights.values(), strict=True))
    inputs = random_inputs(large)
    whole = evaluate(large, arrays, inputs)["y"]
    for row in (0, 1):
        part = evaluate(graph, weights, {"x": np.ascontiguousarray(inputs["x"][:, :, row : row + 8])})["y"]
        np.testing.assert_allclose(whole[:, :, row, 0], part, rtol=0, atol=ROUNDING * 10)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("slice(2, 5)", ["conv(3, 3)"]),
        ("slice(1, 9, step=3)", ["conv(3, 3)"]),
        ("take([6, 2, 6])", ["conv(2, 3)", "take([1, 0, 1])"]),
        ("take([6, 2])", ["conv(2, 3)", "take([1, 0])"]),
        ("take([2, 6])", ["conv(2, 3)"]),
        ("take([2, 2])", ["conv(1, 3)", "take([0, 0])"]),
        ("conv(2, 3) -> conv(2, 3, groups=2) -> slice(0, 1)", ["conv(9, 3)", "conv(1, 3)", "conv(1, 3)"]),
        ("concat { slice(0, 1) | slice(1, 4) }", ["conv(4, 3)", "slice(0, 1)", "slice(1, 4)", "concat"]),
        ("concat { slice(0, 4, step=2) | slice(0, 4) }",
         ["conv(4, 3)", "slice(0, 3, step=2)", "slice(0, 4)", "concat"]),
        ("concat { slice(0, 2) | slice(1, 4) }", ["conv(4, 3)", "slice(0, 2)", "slice(1, 4)", "concat"]),
        ("concat { slice(2, 9, step=2) | slice(4, 6) }",
         ["conv(5, 3)", "take([0, 1, 3, 4])", "slice(1, 3)", "concat"]),
        ("bn -> prelu -> maxpool(2) -> scale -> slice(-3, 9)",
         ["conv(3, 3)", "bn", "prelu", "maxpool(2)", "scale"]),
        ("conv(9, 3, groups=9) -> relu -> slice(4, 9)", ["conv(5, 3)", "conv(5, 3, groups=5)", "relu"]),
        ("tanh -> concat { slice(0, 4) | slice(4, 9) }",
         ["conv(9, 3)", "tanh", "slice(0, 4)", "slice(4, 9)", "concat"]),
        ("slice(0, 3, axis=2)", ["conv(9, 3)", "slice(0, 3, axis=2)"]),
        ("flatten -> slice(0, 3)", ["conv(9, 3)", "flatten", "slice(0, 3)"]),
        ("softmax -> slice(0, 3)", ["conv(9, 3)", "softmax", "slice(0, 3)"]),
    ],
)  # fmt: skip
def test_dead_channels(body: str, left: list[str]) -> None:
    after, reasons = run("dead_channels", model(f"y = x -> c: conv(9, 3) -> {body}"))
    assert ops_of(after) == left
    assert not reasons


def test_dead_features() -> None:
    after, _ = run("dead_channels", model("y = x -> flatten -> linear(9) -> relu -> slice(5, 8)"))
    assert ops_of(after) == ["flatten", "linear(3)", "relu"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = x -> c: conv(9, 3) -> concat { relu -> slice(0, 3) | slice(0, 3) }", ELSEWHERE),
        ("z = x -> conv(8, 3) -> c: relu  y = concat { z -> slice(0, 3) | z -> tanh -> slice(2, 5) }", ELSEWHERE),
        ("z = x -> c: conv(8, 3)  y = concat { z -> relu -> slice(0, 3) | z }", ELSEWHERE),
        ("y = x -> c: conv(8, 3, groups=2) -> slice(0, 3)", "the 2 groups of `c` would have different sizes"),
        ("shared s = conv(4, 3, pad=1)  y = x -> c: s -> d: s -> slice(0, 3)", "the weights of `d` are shared"),
        ("y = x -> relu -> slice(0, 3)", ""),
        ("y = add { x | constant(1) }", ""),
    ],
)  # fmt: skip
def test_channels_that_stay(body: str, reason: str) -> None:
    before = model(body)
    after, reasons = run("dead_channels", before)
    assert ops_of(after) == ops_of(before)
    assert reasons == ({reason} if reason else set())


def test_channels_of_an_output_stay() -> None:
    before = cnnc.load("model M { input x: f32[2, 4, 8, 8] output y, z  z = x -> conv(9, 3)  y = z -> slice(0, 3) }")
    assert ops_of(run("dead_channels", before)[0]) == ops_of(before)


def test_slices_that_become_equal_leave_further_channels_alone() -> None:
    """After the first, c has 4 channels, read by both: what a reader of one of them cuts off is not dead."""
    before = model("c = x -> conv(8, 3)  y = concat { c -> slice(0, 4) -> relu -> slice(0, 1) | c -> slice(0, 4) }")
    after, _ = run("dead_channels", before)
    assert ops_of(after)[0] == "conv(4, 3)"


def zeroed(graph: Graph, **columns: list[int]) -> dict[str, Array]:
    """Random weights with these input channels of layers at zero."""
    weights = random_weights(graph)
    for layer, channels in columns.items():
        weights[f"{layer}.weight"][:, channels] = 0
    return weights


@pytest.mark.parametrize(
    ("body", "zero", "left"),
    [
        ("conv(6, 3) -> bn -> relu -> d: conv(5, 3)", [0, 4], ["conv(4, 3)", "bn", "relu", "conv(5, 3)"]),
        ("conv(6, 3) -> conv(6, 3, groups=6) -> d: conv(5, 1)", [5],
         ["conv(5, 3)", "conv(5, 3, groups=5)", "conv(5, 1)"]),
        ("conv(6, 3) -> gap -> flatten -> linear(6) -> relu -> d: linear(3)", [1, 2, 3],
         ["conv(6, 3)", "gap", "flatten", "linear(3)", "relu", "linear(3)"]),
        ("conv(6, 3) -> maxpool(2) -> d: deconv(5, 3)", [], ["conv(6, 3)", "maxpool(2)", "deconv(5, 3)"]),
        ("concat { x | x } -> d: conv(5, 3)", [1], ["concat", "conv(5, 3)"]),
    ],
)  # fmt: skip
def test_zero_channels(body: str, zero: list[int], left: list[str]) -> None:
    before = model(f"y = {'' if body.startswith('concat') else 'x -> '}{body}")
    after, reasons = run("zero_channels", before, zeroed(before, d=zero))
    assert ops_of(after) == left
    assert not reasons


def test_a_channel_is_zero_for_every_reader() -> None:
    body = "c = x -> conv(6, 3) -> relu  y = concat { c -> d: conv(5, 1) | c -> e: conv(4, 1) | c -> slice(0, 2) }"
    before = model(body)
    after, _ = run("zero_channels", before, zeroed(before, d=[1, 2, 3, 5], e=[2, 3, 4, 5]))
    assert ops_of(after)[0] == "conv(3, 3)"
    output = cnnc.load(f"model M {{ input x: f32[2, 4, 8, 8] output y, c {body} }}")
    assert ops_of(run("zero_channels", output, zeroed(output, d=[5], e=[5]))[0]) == ops_of(output)


@pytest.mark.parametrize(("groups", "left"), [(1, ["conv(4, 3)", "deconv(4, 3)"]), (2, None)])
def test_transposed_convolutions_count_their_channels_along_the_first_axis(groups: int, left: list[str] | None) -> None:
    before = model(f"y = x -> conv(6, 3) -> d: deconv(4, 3, groups={groups})")
    weights = random_weights(before)
    weights["d.weight"][[1, 2]] = 0
    after, _ = run("zero_channels", before, weights)
    assert ops_of(after) == (left or ops_of(before))


def test_channels_of_shared_readers_stay() -> None:
    before = model("shared d = conv(6, 1)  y = x -> conv(6, 3) -> d -> tanh -> d")
    assert ops_of(run("zero_channels", before, zeroed(before, d=[1]))[0]) == ops_of(before)


def test_a_layer_of_zeros_keeps_a_channel() -> None:
    before = model("y = x -> conv(6, 3) -> d: conv(5, 1)")
    after, _ = run("zero_channels", before, zeroed(before, d=list(range(6))) | {"d.bias": np.arange(5, dtype="f4")})
    assert ops_of(after) == ["conv(1, 3)", "conv(5, 1)"]


def test_zero_channels_assumes_finite_values() -> None:
    assert "zero_channels" in LEVELS[3]
    assert "zero_channels" not in LEVELS[2]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("concat { a: conv(3, 1) -> relu | b: conv(5, 1) -> relu | maxpool(3, s=1, pad=1) }",
         {"a.merged": "conv(8, 1)", "a.merged.relu": "relu", "1": "slice(0, 3)", "3": "slice(3, 8)"}),
        ("concat { a: conv(1, 1) -> r: relu | b: conv(5, 1) }",
         {"a.merged": "conv(6, 1)", "a": "slice(0, 1)", "r": "relu"}),
        ("concat { a: conv(5, 1) -> concat { relu | tanh } | b: conv(3, 1) }",
         {"a.merged": "conv(8, 1)", "a": "slice(0, 5)", "b": "slice(5, 8)"}),
        ("concat { a: conv(3, 1) -> prelu -> r: relu | b: conv(5, 1) -> prelu -> relu }",
         {"a.merged": "conv(8, 1)", "a.merged.prelu": "prelu", "a.merged.relu": "relu"}),
        ("concat { a: conv(3, 1) -> bn -> r: relu -> conv(2, 1) | conv(5, 1) -> bn -> relu -> conv(4, 1) }",
         {"a.merged": "conv(8, 1)", "a.merged.bn": "bn", "a.merged.relu": "relu", "r": "slice(0, 3)"}),
        ('concat { a: conv(3, 3, s=2, pad=1, init="orthogonal") | b: conv(5, 3, s=2, pad=1) }',
         {"a.merged": 'conv(8, 3, s=2, pad=1, init="orthogonal")'}),
        ("flatten -> concat { a: linear(1) | b: linear(2) | tanh -> linear(4) }",
         {"a.merged": "linear(3)", "a": "slice(0, 1)"}),
        ("concat { a: conv(3, 1) | b: conv(3, 3, pad=1) | conv(4, 1, bias=false) }",
         {"a": "conv(3, 1)", "b": "conv(3, 3, pad=1)"}),
        ("concat { a: conv(4, 1) | b: conv(4, 1) | c: conv(2, 3, pad=1) | d: conv(3, 3, pad=1) }",
         {"a.merged": "conv(8, 1)", "c.merged": "conv(5, 3, pad=1)"}),
        ("mul { constant(2) | id } -> concat { a: conv(3, 1) | b: conv(5, 1) }", {"a.merged": "conv(8, 1)"}),
        ("concat { a: conv(2, 8) | b: conv(3, 8) }", {"a.merged": "conv(5, 8)"}),  # as many weights as elements
    ],
)  # fmt: skip
def test_siblings(body: str, left: dict[str, str]) -> None:
    after, reasons = run("merge_siblings", model(f"y = x -> {body}"))
    found = {node.name: str(node.op).replace("[1, 1, 1, 1]", "1") for node in after.nodes}
    assert found | left == found
    assert not reasons


def test_siblings_with_the_same_ops_after_them_are_merged_by_themselves() -> None:
    body = "concat { a: conv(2, 1) -> relu | b: conv(4, 1) | c: conv(1, 1) -> relu | conv(3, 1) }"
    after, reasons = run("merge_siblings", model(f"y = x -> {body}"))
    assert {str(node.op) for node in after.nodes if node.name.endswith(".merged")} == {"conv(3, 1)", "conv(7, 1)"}
    assert not reasons


def test_siblings_joined_in_their_order_are_one_layer() -> None:
    after, _ = run("merge_siblings", model("y = x -> concat { conv(3, 1) -> relu | conv(5, 1) -> relu }"))
    assert ops_of(after) == ["conv(8, 1)", "relu"]


def test_a_layer_that_a_concat_became_is_not_taken_for_what_is_read_after_one_of_its_operands() -> None:
    before = cnnc.load(
        "model M { input x: f32[2, 4, 8, 8]  output y, z\n"
        "  a = x -> conv(4, 1)  b = x -> conv(4, 1)  y = concat { a | b }\n"
        "  z = a -> concat { conv(2, 1) | conv(3, 1) } }"
    )
    after, _ = run("merge_siblings", before)
    assert ops_of(after) == ["conv(8, 1)", "slice(0, 4)", "conv(5, 1)"]


def test_the_activation_of_siblings_stands_where_the_first_did() -> None:
    before = model("y = x -> concat { a: conv(3, 1) -> r: relu | conv(5, 1) -> relu }")
    after, _ = run("merge_siblings", before)
    origins = [{node.name: node.origin for node in graph.nodes} for graph in (before, after)]
    assert (origins[1]["a.merged"], origins[1]["a.merged.relu"]) == (origins[0]["a"], origins[0]["r"])


def test_siblings_among_the_outputs_keep_their_names() -> None:
    before = cnnc.load(
        "model M { input x: f32[2, 4, 8, 8] output y, z  y = x -> conv(3, 1)  z = x -> conv(5, 1) }"
    )
    after, _ = run("merge_siblings", before)
    assert list(after.outputs) == ["y", "z"]
    assert ops_of(after) == ["conv(8, 1)", "slice(0, 3)", "slice(3, 8)"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = x -> concat { conv(4, 3, groups=2) | conv(8, 3, groups=2) }",
         "the groups of siblings would have to be interleaved"),
        ("shared s = conv(4, 1)  y = x -> concat { conv(4, 1) | c: s | tanh -> s }", "the weights of `c` are shared"),
        ("y = x -> concat { conv(3, 1) -> relu | conv(5, 1) -> tanh }", "other ops follow the layers beside it"),
        ("y = x -> concat { conv(90, 8) | conv(99, 8) }",
         "`x` is smaller than the weights of each layer that reads it"),
    ],
)  # fmt: skip
def test_siblings_that_stay_apart(body: str, reason: str) -> None:
    before = model(body)
    after, reasons = run("merge_siblings", before)
    assert ops_of(after) == ops_of(before)
    assert reasons == {reason}


@pytest.mark.parametrize("count", [50, 500])
def test_a_value_is_looked_at_once_whatever_its_readers(count: int) -> None:
    """Each of many readers of one value costs the same: what a pass looks up grows with their number alone."""
    arms = " | ".join(f"conv(2, 1, dilation={1 + i}) -> relu" for i in range(count))
    graph = model(f"y = x -> concat {{ {arms} }}", "4, 2, 2")
    lookups = 0

    class Users(dict):  # type: ignore[type-arg]
        def __getitem__(self, key: object) -> object:
            nonlocal lookups
            found = super().__getitem__(key)
            lookups += len(found)
            return found

    object.__setattr__(graph, "users", Users(graph.users))
    for name in ("merge_siblings", "dead_channels", "zero_channels"):
        Pipeline((PASSES[name],)).run(Network(graph, random_weights(graph)))
    assert lookups <= 12 * count


def test_slices_of_siblings_are_read_where_they_lie() -> None:
    """On `cpu`, convolutions and pools of the arms of an inception module read the merged layer's result itself."""
    graph = model("y = x -> concat { conv(16, 1) -> conv(8, 3, pad=1) | conv(24, 1) -> conv(9, 1) | conv(8, 1) -> gmp"
                  " -> upsample(8) }", "12, 8, 8")  # fmt: skip
    weights, inputs = random_weights(graph), random_inputs(graph)
    merged = cnnc.optimise(graph, weights=weights, level=2).network
    assert sum(node.op.name == "slice" for node in merged.graph.nodes) == 3
    program = cnnc.compile(graph, "cpu", weights)
    expected = evaluate(graph, weights, inputs)["y"]
    assert np.abs(program(**inputs)["y"] - expected).max() < 1e-5 * np.abs(expected).max()
    functions = [step.function for step in program.plan.steps]  # type: ignore[attr-defined]
    assert not [name for name in functions if re.fullmatch(r"slice_\d+", name)]
