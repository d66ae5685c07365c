"""Folding into weights and constants: what folds, what does not and why, and that values stay within the bound.

The bound of a place is (c + 4)*u*S' for each layer, c = min(K + 2, 16) for sums of K terms, where S' is the network on
absolute values, with what is subtracted made negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnc
from cnnc import ops
from cnnc.diagnostics import error
from cnnc.driver import optimise
from cnnc.ir import structurally_equal
from cnnc.ir.attrs import Padding
from cnnc.ir.bind import bind
from cnnc.ir.graph import Graph, Input, Node, Param, Value
from cnnc.ir.op import Op
from cnnc.ir.types import DType, TensorType
from cnnc.passes import Network
from cnnc_numpy.evaluator import evaluate
from numerics import Array, Weights, assert_agree, assert_close, random_inputs, random_weights

U = 2.0**-24
"""Half the distance between neighbouring float32 numbers around 1."""
FOLDS = "fold_batch_norm,fold_normalize,fold_into_next,fold_scale"
CONSTANTS = "constant_neutral,constant_folding"


def load(body: str, size: str = "4, 8, 8", head: str = "", dtype: str = "f32") -> Graph:
    return cnnc.load(f"{head}\nmodel M {{ input x: {dtype}[2, {size}] output y {body} }}", "M")


def run(graph: Graph, passes: str, weights: Weights | None = None) -> tuple[Network, dict[str, str]]:
    """The network after these passes alone, and the reasons they gave for what they left, by node."""
    given = random_weights(graph) if weights is None else weights
    result = optimise(graph, given, level=0, passes=passes)
    made = [x for name, x in result.network.weights.items() if x is not given.get(name)]
    assert all(np.isfinite(x.astype(np.float32)).all() for x in made)  # a pass refuses what is not
    assert {node.origin for node in result.network.graph.nodes} <= {node.origin for node in graph.nodes}
    return result.network, {note.node: note.reason for note in result.notes if not note.applied}


def ops_of(network: Network) -> list[str]:
    return [node.op.name for node in network.graph.nodes]


def assert_folded(graph: Graph, network: Network, weights: Weights | None = None) -> None:
    """What the network computes in f32 is within the bound of the float64 reference, at every place."""
    weights, inputs = random_weights(graph) if weights is None else weights, random_inputs(graph)
    expected, got = evaluate(graph, weights, inputs), evaluate(network.graph, network.weights, inputs, None)
    bounds = magnitude(graph, weights, inputs)
    layers = [node for node in graph.nodes if "weight" in node.params or isinstance(node.op, ops.Normalize)]
    terms = sum(min(prod(known(node.params["weight"])[1:]) + 2, 16) + 4 if node.params else 9 for node in layers)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert np.unique(value).size > 1
        assert_close(got[name], value, DType.F32, terms * U * bounds[name], name)


def known(param: Param) -> tuple[int, ...]:
    return tuple(dim for dim in param.type.shape if isinstance(dim, int))


def magnitude(graph: Graph, weights: Weights, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """S' of each output."""
    means = {node.params["running_mean"].name for node in graph.nodes if "running_mean" in node.params}
    sizes = {name: -np.abs(x) if name in means else np.abs(x) for name, x in weights.items()}

    def positive(node: Node, xs: tuple[Value, ...]) -> Node:
        op: Op = node.op
        match op:
            case ops.Normalize(mean=mean):
                op = replace(op, mean=tuple(-abs(m) for m in mean))
            case ops.Constant(values=values):
                op = replace(op, values=tuple(map(abs, values)))
            case ops.Sub():
                op = ops.Add()
        return Node(op, xs, node.params, node.name)

    return evaluate(graph.rebuild(positive), sizes, {name: np.abs(x) for name, x in inputs.items()})


LAYERS = (
    "conv(6, 3, pad=1, bias=false)", "conv(6, 3)", "conv(6, 3, groups=2, s=2)", "deconv(6, 3, s=2)",
    "deconv(6, 2, s=2, groups=2, bias=false)", "flatten -> linear(6)", "flatten -> linear(6, bias=false)",
)  # fmt: skip
CHANNELS = "c = constant([0.5, -2, 3, 0.1, 1, 7], shape=[6{ones}])"
AFFINES = (
    "bn(eps=1e-3)", "scale", "scale(bias=false)", "mul { id | c }", "add { c | id }", "sub { id | c }",
    "sub { c | id }", "div { id | c }", "bn -> scale -> mul { c | id } -> bn",
)  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("affine", AFFINES)
def test_an_affine_folds_into_the_layer_before_it(layer: str, affine: str) -> None:
    constant = CHANNELS.format(ones="" if "linear" in layer else ", 1, 1")
    before = load(f"{constant} y = x -> {layer} -> {affine} -> relu")
    after, reasons = run(before, "fold_batch_norm")
    assert ops_of(after) == [*(["flatten"] if "linear" in layer else []), layer.split("(")[0].split()[-1], "relu"]
    assert not reasons
    assert_folded(before, after)


@pytest.mark.parametrize("affine", ["mul { id | constant(3) }", "mul { id | constant([3], shape=[1, 1, 1, 1]) }"])
def test_a_factor_alone_needs_no_bias(affine: str) -> None:
    before = load(f"y = x -> conv(6, 3, bias=false) -> {affine}")
    after, _ = run(before, "fold_batch_norm")
    assert [str(node.op) for node in after.graph.nodes] == ["conv(6, 3, bias=false)"]
    assert_folded(before, after)


@pytest.mark.parametrize(
    ("body", "head", "reasons"),
    [
        ("z = x -> c: conv(4, 3)  y = add { z -> n: bn | z }", "", {"n": "the result of `c` is read elsewhere too"}),
        ("shared c = conv(4, 3, pad=1)  y = x -> c -> n: bn -> c", "", {"n": "the weights of `0` are shared"}),
        ("k = constant(2) z = x -> c: conv(4, 3)  y = mul { z -> n: mul { id | k } | z }", "",
            {"n.0": "the result of `c` is read elsewhere too"}),
        ("k = constant(0) y = x -> c: conv(4, 3) -> n: div { id | k }", "",
            {"n.0": "the new weights of `c` would not be finite"}),
        ("k = constant(9e18) y = x -> c: conv(4, 3) -> mul { id | k } -> mul { id | k } -> n: mul { id | k }", "",
            {"n.0": "the new weights of `c` would not be finite"}),
        ("k = constant(1e-37) y = x -> c: conv(4, 3) -> n: mul { id | k }", "",
            {"n.0": "the new weights of `c` would be too small for f32"}),
    ],
)  # fmt: skip
def test_fold_batch_norm_refuses(body: str, head: str, reasons: dict[str, str]) -> None:
    before = load(body, head=head)
    after, found = run(before, "fold_batch_norm")
    assert found == reasons
    if "finite" not in str(reasons):
        assert_folded(before, after)


@pytest.mark.parametrize(
    "body",
    [
        # [4] lies along the width, [4, 1, 1] makes four channels of one, and so does the other operand.
        "c = constant([1, 2, 3, 4, 5, 6], shape=[6])  y = x -> conv(6, 3) -> mul { id | c }",
        "c = constant([1, 2, 3, 4], shape=[4, 1, 1])  y = x -> conv(1, 3) -> mul { id | c }",
        "c = constant([1, 2, 3, 4], shape=[4, 1, 1])  y = x -> conv(1, 3) -> add { c | id }",
        "c = constant([1, 2], shape=[2, 1, 1, 1])  y = x -> conv(4, 3) -> mul { id | c }",
        "y = x -> conv(4, 3) -> div { constant(2) | id }",
        "z = x -> conv(4, 3)  y = add { z | z }",
        "y = x -> conv(4, 3) -> add { id | constant(1) | constant(2) }",
        "y = concat { x -> conv(2, 3) | x -> conv(2, 3) } -> bn",
        "y = x -> conv(4, 3) -> relu -> bn",
        "y = add { x -> conv(4, 3, pad=1) | x }",
    ],
)
def test_what_is_no_affine_per_channel_of_a_layer_stays(body: str) -> None:
    before = load(body)
    after, reasons = run(before, "fold_batch_norm")
    assert ops_of(after) == [node.op.name for node in before.nodes]
    assert not reasons


def test_a_layer_that_is_an_output_is_not_changed() -> None:
    before = cnnc.load("model M { input x: f32[2, 4, 8, 8] output y, z z = x -> conv(4, 3) y = z -> bn }")
    after, reasons = run(before, FOLDS)
    assert list(reasons.values()) == ["the result of `0` is read elsewhere too"]
    assert_folded(before, after)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("conv(4, 3) -> bn", 1), ("bn -> conv(4, 3)", 2), ("normalize(0.5, 0.25) -> conv(4, 3)", 1),
        ("relu -> scale -> scale", 1), ("relu -> bn", 1),
    ],
)  # fmt: skip
def test_low_precision_is_left_alone(body: str, count: int, dtype: str) -> None:
    before = load(f"y = x -> {body}", dtype=dtype)
    after, reasons = run(before, FOLDS)
    assert ops_of(after) == [node.op.name for node in before.nodes]
    assert len(reasons) == count
    assert all(f"rounded to {dtype} again" in reason for reason in reasons.values())


def test_a_shared_batch_norm_folds_into_layers_of_their_own() -> None:
    before = load("shared n = bn  y = x -> conv(4, 3) -> n -> relu -> conv(4, 3) -> n")
    after, _ = run(before, "fold_batch_norm")
    assert ops_of(after) == ["conv", "relu", "conv"]
    assert_folded(before, after)


def test_the_batch_and_the_map_may_be_symbolic() -> None:
    body = "x -> normalize(1, 2) -> conv(4, 3) -> bn -> mul { id | constant(3) }"
    before = cnnc.load(f"model M {{ input x: f32[N, 3, H, W] output y y = {body} }}")
    after, _ = run(before, FOLDS)
    assert ops_of(after) == ["conv"]
    bound = bind(before, {"N": 2, "H": 9, "W": 7})
    assert_folded(bound, run(bound, FOLDS)[0])


@pytest.mark.parametrize(
    "body",
    [
        "relu -> bn -> conv(6, 3)", "bn -> conv(6, 3, bias=false)", "scale -> conv(6, 3, s=2, groups=2)",
        "scale(bias=false) -> conv(6, 3, pad=1)", "scale(bias=false) -> deconv(6, 3, s=2, groups=2, pad=1)",
        "scale(bias=false) -> conv(6, 3, s=3, pad=same_upper)", "gap -> flatten -> bn -> linear(6)",
        "flatten -> scale -> linear(6, bias=false)", "mul { id | constant(0.3) } -> conv(6, 3, pad=1, dilation=2)",
        "div { id | constant([1, 2, 3, 7], shape=[4, 1, 1]) } -> deconv(6, 3)", "bn -> conv(6, 2, s=2, pad=same_upper)",
        "scale -> scale -> mul { id | constant(3) } -> conv(6, 3)",
    ],
)  # fmt: skip
def test_an_affine_folds_into_the_layer_after_it(body: str) -> None:
    before = load(f"y = x -> {body} -> relu")
    after, reasons = run(before, "fold_into_next")
    assert not reasons
    assert not {"bn", "scale", "mul", "div"} & set(ops_of(after))
    assert_folded(before, after)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("n: bn -> c: conv(4, 3, pad=1)", "`c` pads the result of `n` with zeros, which have no offset"),
        ("n: bn -> c: conv(4, 3, pad=[0, 0, 0, 1])", "`c` pads the result of `n` with zeros, which have no offset"),
        ("n: bn -> c: conv(4, 3, s=2, pad=same_lower)", "`c` pads the result of `n` with zeros, which have no offset"),
        ("n: scale -> c: deconv(4, 3, s=2)", "the offset of `n` reaches some places of `c` more often than others"),
        ("n: add { id | k } -> c: conv(4, 3)", "`n.0` may cancel digits exactly, which sums of `c` would not"),
        ("n: sub { id | k } -> c: conv(4, 3)", "`n.0` may cancel digits exactly, which sums of `c` would not"),
        ("mul { id | k } -> mul { id | k } -> n: mul { id | k } -> c: conv(4, 3)",
            "the new weights of `c` would not be finite"),
    ],
)  # fmt: skip
def test_fold_into_next_refuses(body: str, reason: str) -> None:
    before = load(f"k = constant(9e18) y = x -> {body}")
    after, reasons = run(before, "fold_into_next")
    assert reasons == {"c": reason}
    assert set(ops_of(after)) - {"constant", "conv", "deconv"}


def test_fold_into_next_leaves_what_others_need() -> None:
    read_again = "z = x -> n: bn y = add { z -> conv(4, 3) | z -> conv(4, 3) }", "z = x -> n: bn y = z -> conv(4, 3)"
    for body, outputs in zip(read_again, ("y", "y, z"), strict=True):
        before = cnnc.load(f"model M {{ input x: f32[2, 4, 8, 8] output {outputs} {body} }}")
        assert set(run(before, "fold_into_next")[1].values()) == {"the result of `n` is read elsewhere too"}
    shared = load("shared c = conv(4, 3)  y = add { x -> scale -> c | x -> scale -> c }")
    reasons = run(shared, "fold_into_next")[1]
    assert reasons == {"1": "the weights of `1` are shared", "3": "the weights of `3` are shared"}


def test_nothing_folds_past_an_activation() -> None:
    before = load("y = x -> bn -> relu -> conv(4, 3)")
    after, reasons = run(before, "fold_into_next")
    assert ops_of(after) == ["bn", "relu", "conv"]
    assert not reasons


@pytest.mark.parametrize("layer", ["conv(6, 3, pad=1)", "deconv(6, 3, s=2)"])
def test_an_offset_before_a_border_must_not_become_a_bias(layer: str) -> None:
    """What `fold_into_next` refuses would be wrong: at the border, and between the stamps."""
    before = load(f"y = x -> n: scale -> c: {layer}")
    weights = random_weights(before)
    weight, scale, shift = (weights[name].astype(np.float64) for name in ("c.weight", "n.weight", "n.bias"))
    inputs_first = "deconv" in layer
    along = scale.reshape((-1, 1, 1, 1) if inputs_first else (1, -1, 1, 1))
    axis = "coij,c->o" if inputs_first else "ocij,c->o"
    naive = {"c.weight": weight * along, "c.bias": weights["c.bias"] + np.einsum(axis, weight, shift)}
    without = load(f"y = x -> c: {layer}")
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_folded(before, Network(without, {name: x.astype(np.float32) for name, x in naive.items()}))


def test_what_is_subtracted_first_cancels_exactly() -> None:
    """x - 1000 for x near 1000 has all its digits; sums of W*x less 1000*W have few of them."""
    before = load("y = x -> n: sub { id | constant(1000) } -> c: conv(6, 3)")
    weights, inputs = random_weights(before), {"x": random_inputs(before)["x"] + np.float32(1000)}
    naive = {**weights, "c.bias": weights["c.bias"] - 1000 * weights["c.weight"].sum((1, 2, 3), np.float64)}
    folded = {name: x.astype(np.float32) for name, x in naive.items()}
    outputs = evaluate(load("y = x -> c: conv(6, 3)"), folded, inputs, None)
    with pytest.raises(AssertionError):
        assert_agree(before, weights, inputs, outputs)
    after, _ = run(before, FOLDS)
    assert_agree(before, weights, inputs, evaluate(after.graph, after.weights, inputs, None))


MEAN = "normalize([0.485, 0.456, 0.406, 0.5], [0.229, 0.224, 0.225, 0.5])"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"{MEAN} -> conv(6, 3)", ["conv(6, 3)"]),
        (f"{MEAN} -> conv(6, 3, bias=false)", ["conv(6, 3)"]),
        (f"{MEAN} -> conv(6, 3, groups=2, dilation=2)", ["conv(6, 3, dilation=2, groups=2)"]),
        (f"gap -> flatten -> {MEAN} -> linear(6)", ["gap", "flatten", "linear(6)"]),
        ("normalize(0, [1, 2, 3, 4]) -> conv(6, 3, pad=1, bias=false)", ["conv(6, 3, pad=1, bias=false)"]),
        ("normalize(0, [1, 2, 3, 4]) -> conv(6, 3, pad=1)", ["conv(6, 3, pad=1)"]),
        ("normalize(0.125, 0.3081) -> conv(6, 5, pad=[0, 1, 2, 0])",
            ["pad([0, 1, 2, 0], value=0.125)", "conv(6, 5)"]),
        ("normalize(0.125, 0.3081) -> conv(6, 5, pad=[0, 1, 2, 0], bias=false)",
            ["pad([0, 1, 2, 0], value=0.125)", "conv(6, 5)"]),
        ("normalize(0.5, [1, 2, 3, 4]) -> conv(6, 3, s=3, pad=same_upper)",
            ["pad([0, 0, 1, 1], value=0.5)", "conv(6, 3, s=3)"]),
        ("normalize(0.5, 0.5) -> conv(6, 2, s=2, pad=same_upper)", ["conv(6, 2, s=2, pad=same_upper)"]),
        (f"{MEAN} -> conv(6, 3, pad=1, bias=false)", ["constant", "sub", "conv(6, 3, pad=1, bias=false)"]),
        (f"{MEAN} -> conv(6, 3, s=3, pad=same_lower)", ["constant", "sub", "conv(6, 3, s=3, pad=same_lower)"]),
    ],
)  # fmt: skip
def test_normalize_folds_into_the_first_layer(body: str, left: list[str]) -> None:
    before = load(f"y = x -> {body}")
    after, reasons = run(before, "fold_normalize")
    assert not reasons
    found = [node.op for node in after.graph.nodes]
    assert [x.name if isinstance(x, ops.Constant) else str(x) for x in found] == left
    assert_folded(before, after)


def test_normalize_of_one_mean_and_a_border_of_unknown_size() -> None:
    body = "x -> normalize(1, 2) -> conv(4, 3, s=2, pad=same_upper)"
    before = cnnc.load(f"model M {{ input x: f32[N, 3, H, W] output y y = {body} }}")
    after, _ = run(before, "fold_normalize")
    assert ops_of(after) == ["constant", "sub", "conv"]
    assert after.graph.nodes[0].inputs == ()


def test_normalize_of_one_channel() -> None:
    before = load("y = x -> normalize(0.125, 0.3081) -> conv(6, 3, pad=1)", size="1, 8, 8")
    after, _ = run(before, "fold_normalize")
    assert ops_of(after) == ["pad", "conv"]
    assert_folded(before, after)


@pytest.mark.parametrize("normalize", [MEAN, "normalize(0.5, 0.25)"])
def test_folding_normalize_as_if_without_padding_is_wrong_at_the_border(normalize: str) -> None:
    before = load(f"y = x -> {normalize} -> c: conv(6, 3, pad=1)")
    inner, _ = run(load(f"y = x -> {normalize} -> c: conv(6, 3)"), "fold_normalize")
    naive = Network(load("y = x -> c: conv(6, 3, pad=1)"), inner.weights)
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_folded(before, naive)
    inputs = random_inputs(before)
    right = evaluate(before, random_weights(before), inputs)["y"]
    wrong = evaluate(naive.graph, naive.weights, inputs)["y"]
    inside = (..., slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(wrong[inside], right[inside], atol=1e-5)
    border = np.ones(right.shape, bool)
    border[inside] = False
    assert np.abs(wrong - right)[border].min() > 1e-4


def test_an_image_of_the_mean_alone_gives_the_bias() -> None:
    """sum V*mean is computed with V as it is rounded, and vanishes to the last digit, at the border too."""
    before = load("y = x -> normalize(1000, 3) -> c: conv(6, 5, pad=2)")
    weights = random_weights(before)
    weights["c.weight"] -= weights["c.weight"].mean((1, 2, 3), keepdims=True)  # so that the new bias is as small
    after, _ = run(before, "fold_normalize", weights)
    got = evaluate(after.graph, after.weights, {"x": np.full((2, 4, 8, 8), 1000, np.float32)})["y"]
    assert np.abs(got - weights["c.bias"].reshape(-1, 1, 1)).max() <= U * np.abs(weights["c.bias"]).max()


@pytest.mark.parametrize(
    ("body", "head", "reason"),
    [
        ("z = x -> n: normalize(1, 2)  y = add { z -> conv(4, 3) | z -> conv(4, 3) }", "",
            "the result of `n` is read elsewhere too"),
        ("shared c = conv(4, 3)  y = add { x -> normalize(1, 2) -> c | x -> normalize(1, 3) -> c }", "",
            "the weights of `1` are shared"),
        ("y = x -> normalize(1, 1e-39) -> c: conv(4, 3, pad=1)", "", "the new weights of `c` would not be finite"),
    ],
)  # fmt: skip
def test_fold_normalize_refuses(body: str, head: str, reason: str) -> None:
    before = load(body, head=head)
    after, reasons = run(before, "fold_normalize")
    assert reason in reasons.values()
    assert "normalize" in ops_of(after)


def test_an_input_that_is_read_elsewhere_too_may_be_normalised_by_the_weights() -> None:
    arms = "x -> normalize(1, 2) -> conv(4, 3, pad=1) | x -> normalize(2, 3) -> conv(4, 3, pad=1)"
    before = load(f"y = add {{ {arms} | x }}")
    after, reasons = run(before, "fold_normalize")
    assert not reasons
    assert sorted(ops_of(after)) == ["add", "conv", "conv", "pad", "pad"]
    assert_folded(before, after)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("bn", ["scale"]), ("bn -> bn", ["scale"]), ("scale(bias=false) -> scale(bias=false)", ["scale(bias=false)"]),
        ("scale -> bn -> scale -> mul { id | constant(2) }", ["scale"]),
        ("mul { id | constant(2) } -> bn", ["scale"]), ("div { id | constant(3) } -> scale", ["scale"]),
        ("bn -> add { id | constant([1, 2, 3, 4], shape=[4, 1, 1]) }", ["scale"]),
        ("relu -> bn -> relu -> scale", ["relu", "scale", "relu", "scale"]),
        ("concat { id | id } -> bn", ["concat", "scale"]),
        ("sub { id | constant(2) } -> bn", ["constant([2])", "sub", "scale"]),
        ("add { id | constant(2) } -> bn", ["constant([2])", "add", "scale"]),
        ("scale", ["scale"]),
    ],
)  # fmt: skip
def test_fold_scale(body: str, left: list[str]) -> None:
    before = load(f"y = x -> {body}")
    after, reasons = run(before, "fold_scale")
    assert not reasons
    assert [str(node.op) for node in after.graph.nodes] == left
    assert_folded(before, after)


def test_one_axis_has_no_channels() -> None:
    before = load("y = x -> reduce_mean([1, 2, 3]) -> mul { id | constant(2) }")
    assert ops_of(run(before, FOLDS)[0]) == ["reduce_mean", "constant", "mul"]


def test_constants_alone_are_no_scale() -> None:
    before = load("y = x -> mul { id | constant(2) } -> add { id | constant(3) }")
    after, reasons = run(before, "fold_scale")
    assert ops_of(after) == [node.op.name for node in before.nodes]
    assert not reasons


def test_fold_scale_of_a_value_that_is_read_elsewhere_too() -> None:
    before = load("z = x -> bn  y = add { mul { z | constant(2) } | z }")
    after, _ = run(before, "fold_scale")
    assert sorted(ops_of(after)) == ["add", "constant", "mul", "scale"]
    assert_folded(before, after)


def test_a_shared_batch_norm_stays() -> None:
    before = load("shared n = bn  y = x -> n -> relu -> n")
    after, reasons = run(before, "fold_scale")
    assert ops_of(after) == ["bn", "relu", "bn"]
    assert set(reasons.values()) == {"the parameters of `0` are shared", "the parameters of `2` are shared"}


def test_a_shared_batch_norm_joins_a_scale_of_its_own() -> None:
    before = load("shared n = bn  y = x -> n -> scale -> relu -> scale -> n")
    after, _ = run(before, "fold_scale")
    assert ops_of(after) == ["scale", "relu", "scale"]
    assert_folded(before, after)


def test_statistics_that_are_no_numbers_stay_where_they_are() -> None:
    before = load("y = x -> conv(4, 3) -> n: bn")
    weights = {**random_weights(before), "n.running_var": np.array([1, -1, 1, 1], np.float32)}
    after, reasons = run(before, FOLDS, weights)
    assert ops_of(after) == ["conv", "bn"]
    assert all("would not be finite" in reason for reason in reasons.values())


def test_what_is_scaled_down_and_up_again_is_not_lost() -> None:
    """Not even where the factors would be folded one by one."""
    before = load(
        "a = constant(1e-25) b = constant(1e-20)"
        "y = x -> conv(4, 3, bias=false) -> mul { id | a } -> mul { id | b } -> relu -> mul { id | constant(1e15) }"
    )
    weights = random_weights(before)
    after = optimise(before, weights, level=3).network
    inputs = {name: x * np.float32(1e30) for name, x in random_inputs(before).items()}
    expected = evaluate(before, weights, inputs)["y"]
    got = cnnc.compile(after.graph, "numpy", after.weights, optimise=0)(**inputs)["y"]
    assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()


def test_weights_that_have_decayed_to_nothing_keep_no_others_apart() -> None:
    before = load("y = x -> conv(6, 3, bias=false) -> bn")
    weights = random_weights(before)
    weights["0.weight"][1] = 1e-40
    weights["0.weight"][:, 2] = 3e-38
    weights["1.weight"][3] = 0
    after, reasons = run(before, "fold_batch_norm", weights)
    assert ops_of(after) == ["conv"]
    assert not reasons


def test_a_bias_that_would_be_infinite_stays_where_it_is() -> None:
    before = load("y = x -> c: conv(4, 3) -> n: mul { id | constant(2) }")
    weights = {**random_weights(before), "c.bias": np.full(4, 3e38, np.float32)}
    after, reasons = run(before, "fold_batch_norm", weights)
    assert ops_of(after) == ["conv", "constant", "mul"]
    assert list(reasons.values()) == ["the new weights of `c` would not be finite"]


@pytest.mark.parametrize("body", ["conv(4, 3, bias=false) -> bn", "bn -> conv(4, 3, pad=1, bias=false)", "bn"])
def test_what_becomes_of_a_graph_does_not_depend_on_the_weights(body: str) -> None:
    """A new batch norm has a mean and a bias of 0, which other weights are not."""
    graph = load(f"y = x -> {body}")
    fresh = optimise(graph, 0, level=0, passes=FOLDS).network
    assert structurally_equal(fresh.graph, run(graph, FOLDS)[0].graph)


@st.composite
def chains(draw: st.DrawFn) -> Graph:
    """A layer of any attributes between affines of any kind."""
    x = Input("x", TensorType((2, 4, 7, 6)))
    value = draw(affines(x, "first"))
    groups = draw(st.sampled_from([1, 2, 4]))
    kernel, stride, dilation = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(3))
    given = {"groups": groups, "stride": stride, "bias": draw(st.booleans())}
    pads: list[Padding] = [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0), "same_upper"]
    pad = draw(st.sampled_from(pads))
    if draw(st.booleans()):
        layer: Op = ops.Conv(8, kernel, pad="same_upper" if dilation != (1, 1) else pad, dilation=dilation, **given)
    else:
        layer = ops.Deconv(8, kernel, **given)
    return Graph("Chain", (x,), {"y": draw(affines(Node.make(layer, value, name="layer"), "last"))})


@st.composite
def affines(draw: st.DrawFn, x: Value, name: str) -> Value:
    """x after none to two affines per channel."""
    channels = x.type.shape[1]
    assert isinstance(channels, int)
    normalize = ops.Normalize((0.5,), (0.25,)), ops.Normalize(tuple(range(channels)), (2,))
    for i in range(draw(st.integers(0, 2))):
        op = draw(
            st.sampled_from([ops.BatchNorm(), ops.Scale(), ops.Scale(bias=False), ops.Mul(), ops.Div(), *normalize])
        )
        operands = [x]
        if isinstance(op, ops.Mul | ops.Div):
            shape = draw(st.sampled_from([(), (channels, 1, 1), (1, channels, 1, 1)]))
            numbers = draw(st.lists(st.sampled_from([0.5, -3, 0.1, 7]), min_size=prod(shape), max_size=prod(shape)))
            operands.append(Node.make(ops.Constant(tuple(numbers), shape), name=f"{name}{i}.number"))
        x = Node.make(op, *operands, name=f"{name}{i}")
    return x


@settings(max_examples=150)
@given(chains())
def test_chains_stay_within_the_bound(graph: Graph) -> None:
    after, _ = run(graph, FOLDS)
    assert_folded(graph, after)
    assert "bn" not in ops_of(after)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("mul { id | constant(1) }", ["tanh"]), ("mul { id | constant(1) | relu }", ["tanh", "relu", "mul"]),
        ("add { id | mul { constant(1) | constant(1) } }", ["tanh", "constant", "constant", "mul", "add"]),
        ("div { id | constant([1, 1, 1, 1], shape=[4, 1, 1]) }", ["tanh"]), ("sub { id | constant(0) }", ["tanh"]),
        ("add { id | constant(0) }", ["tanh", "constant", "add"]),
        ("sub { constant(0) | id }", ["constant", "tanh", "sub"]),
        ("div { constant(1) | id }", ["constant", "tanh", "div"]),
        ("mul { id | constant([1, 2, 1, 1], shape=[4, 1, 1]) }", ["constant", "mul", "tanh"]),
        ("gap -> mul { id | constant([1, 1], shape=[1, 2]) }", ["constant", "gap", "mul", "tanh"]),
    ],
)  # fmt: skip
def test_constant_neutral(body: str, left: list[str]) -> None:
    before = load(f"y = x -> tanh -> {body}")
    after, _ = run(before, "constant_neutral")
    assert sorted(ops_of(after)) == sorted(left)
    inputs = {"x": np.where(random_inputs(before)["x"] > 0, 0.0, -0.0).astype(np.float32)}
    expected, got = evaluate(before, {}, inputs, None)["y"], evaluate(after.graph, {}, inputs, None)["y"]
    assert expected.tobytes() == got.tobytes()  # zeros with their signs


def test_an_input_times_one_is_the_input() -> None:
    after, _ = run(load("y = mul { x | constant(1) }"), "constant_neutral")
    assert after.graph.outputs["y"] is after.graph.inputs[0]


def test_subtracting_negative_zero_is_not_neutral() -> None:
    x = Input("x", TensorType((2, 3)))
    zero = Node.make(ops.Constant((-0.0,)), name="zero")
    graph = Graph("Zero", (x,), {"y": Node.make(ops.Sub(), x, zero, name="y")})
    assert ops_of(run(graph, "constant_neutral")[0]) == ["constant", "sub"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = constant([1, 4], shape=[2]) y = x -> add { id | a -> sqrt -> slice(1, 2, axis=0) }", ["constant", "add"]),
        ("a = constant(3) y = x -> add { id | add { a | a -> neg -> exp } }", ["constant", "add"]),
        ("a = constant([1, 2, 3, 4], shape=[1, 4, 1, 1]) y = x -> add { id | a -> conv(4, 1) }", ["constant", "add"]),
        ("y = x -> mul { id | constant(0.5) } -> mul { constant(3) | id }", ["constant", "mul"]),
        ("a = constant([1, 2, 4, 8], shape=[4, 1, 1]) b = constant([3, 5, 3, 5, 3, 5, 3, 5], shape=[8])"
            "y = x -> mul { id | a } -> mul { id | b }", ["constant", "mul"]),
        ("y = x -> mul { id | constant(2) } -> mul { id | relu }", ["constant", "mul", "relu", "mul"]),
        ("z = x -> relu  y = mul { mul { x | z } | z }", ["relu", "mul", "mul"]),
        ("z = x -> relu  y = mul { z | mul { x | z } }", ["relu", "mul", "mul"]),
    ],
)  # fmt: skip
def test_constant_folding(body: str, left: list[str]) -> None:
    before = load(body)
    after, reasons = run(before, "constant_folding")
    assert not reasons
    assert ops_of(after) == left
    inputs = random_inputs(before)
    assert_agree(before, random_weights(before), inputs, evaluate(after.graph, after.weights, inputs, None))


def test_a_constant_network_is_its_value() -> None:
    before = load("y = constant([1, 2, 3], shape=[3]) -> exp -> cast(f16)")
    after, _ = run(before, "constant_folding")
    assert ops_of(after) == ["constant"]
    assert after.graph.outputs["y"].type == before.outputs["y"].type
    assert after.graph.outputs["y"].name == before.outputs["y"].name
    got = evaluate(after.graph, {}, random_inputs(before), None)["y"]
    np.testing.assert_array_equal(got, np.exp([1, 2, 3]).astype(np.float32).astype(np.float16))


def test_constants_that_become_equal_are_shared() -> None:
    before = load("y = x -> add { id | constant(4) -> sqrt } -> mul { id | constant(16) -> sqrt -> sqrt }")
    after, _ = run(before, f"{CONSTANTS},share_common")
    assert ops_of(after) == ["constant", "add", "mul"]


UNWRITABLE = "there are no constants of Inf, NaN or -0"


@pytest.mark.parametrize(
    ("body", "node", "reason"),
    [
        ("a = constant(0) y = x -> add { id | a -> n: log }", "n", UNWRITABLE),
        ("a = constant(0) y = x -> add { id | a -> n: neg }", "n", UNWRITABLE),
        ("a = constant(9e18) y = x -> add { id | n: mul { a | a | a } }", "n.0", UNWRITABLE),
        ("a = constant(1, shape=[1, 1, 1, 1]) y = x -> add { id | crop(0) { a -> n: upsample(33) | x } }", "n",
            "the constant would have 1,089 numbers, more than 1,024"),
        ("a = constant(0.1) y = x -> mul { id | a } -> n: mul { id | a }", "n.0",
            "the product of the factors would be rounded to f32"),
        ("a = constant(2) z = x -> m: mul { id | a } y = add { z -> n: mul { id | a } | z }", "n.0",
            "the result of `m.0` is read elsewhere too"),
    ],
)  # fmt: skip
def test_constant_folding_refuses(body: str, node: str, reason: str) -> None:
    before = load(body)
    after, reasons = run(before, "constant_folding")
    assert reasons == {node: reason}
    assert ops_of(after) == [each.op.name for each in before.nodes]


def test_what_the_reference_lacks_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: object) -> None:
        raise error("E0601", "the target `numpy` has no `sqrt`")

    monkeypatch.setattr("cnnc.target.reference", lacking)
    after, reasons = run(load("y = x -> add { id | constant(4) -> n: sqrt }"), "constant_folding")
    assert ops_of(after) == ["constant", "sqrt", "add"]
    assert reasons == {"n": "the target `numpy` has no `sqrt`"}


def test_a_constant_may_be_as_large_as_its_operands() -> None:
    numbers = ", ".join(map(str, range(1, 2001)))
    before = load(f"a = constant([{numbers}], shape=[2000]) y = add {{ x | a -> sqrt }}", size="2000")
    after, _ = run(before, "constant_folding")
    assert ops_of(after) == ["constant", "add"]


def test_constants_meet_the_layer_before_them() -> None:
    factor, offset = "mul { id | mul { half | half } }", "sub { id | half -> exp }"
    before = load(f"half = constant(0.5) y = x -> conv(4, 3) -> {factor} -> {offset}")
    after, _ = run(before, f"{CONSTANTS},{FOLDS}")
    assert ops_of(after) == ["conv"]
    assert_folded(before, after)
