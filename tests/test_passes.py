"""Passes: each preserves the value of a graph, does what its page says, and says why where it does not."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import cnnc
from cnnc import ops
from cnnc.ir.graph import Graph, Input, Node, Value
from cnnc.ir.op import Op
from cnnc.ir.types import DType, TensorType
from cnnc.ops.activation import Pointwise
from cnnc.passes import LEVELS, PASSES, Network, Pass, Pipeline, Sweep, choose
from cnnc_numpy.evaluator import evaluate
from numerics import random_inputs, random_weights

FOLDING_TOLERANCE = 2e-6
"""Weights that are scaled are rounded once more, by 2^-24 each; the graphs here sum at most some hundred of them."""


def model(body: str, size: str = "4, 8, 8", head: str = "") -> Graph:
    return cnnc.load(f"{head}\nmodel M {{ input x: f32[2, {size}] output y {body} }}", "M")


def run(graph: Graph, *names: str) -> tuple[Network, dict[str, str]]:
    """The network after these passes, and the reasons they gave for what they left, by node."""
    passes = tuple(PASSES[name] for name in names)
    result = Pipeline(passes).run(Network(graph, random_weights(graph)))
    assert {node.origin for node in result.network.graph.nodes} <= {node.origin for node in graph.nodes}
    return result.network, {note.node: note.reason for note in result.notes if not note.applied}


def names_of(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


def deviation(before: Graph, after: Network, dtype: Any = np.float64) -> float:
    """The largest difference of the outputs in float64, relative to their size; in their own type for None."""
    weights, inputs = random_weights(before), random_inputs(before)
    expected, got = evaluate(before, weights, inputs, dtype), evaluate(after.graph, after.weights, inputs, dtype)
    assert expected.keys() == got.keys()
    assert all(np.unique(x).size > 1 for x in expected.values())
    return max(float(np.abs(got[k] - x).max() / np.abs(x).max()) for k, x in expected.items())


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        ("dropout(0.5)", False), ("cast(f32)", False), ("cast(f16)", True), ("reshape(4, 8, 8)", False),
        ("reshape(8, 4, 8)", True), ("slice(0, 4)", False), ("slice(1, 4)", True), ("pad(0)", False), ("pad(1)", True),
        ("transpose(0, 1, 2, 3)", False), ("transpose(0, 1, 3, 2)", True), ("upsample(1)", False),
        ("upsample(2)", True), ('upsample(1, mode="bilinear")', True), ("pixel_shuffle(1)", False),
        ("shuffle(1)", False), ("shuffle(4)", False), ("shuffle(2)", True), ("add { id }", False),
        ("add { id | id }", True), ("concat { id }", False), ("maxpool(1)", False), ("avgpool(1)", False),
        ("maxpool(1, s=2)", True), ("maxpool(3, s=1, pad=1)", True), ("crop(0) { id | neg }", False),
        ("crop(0) { id | conv(3, 1) }", False), ("resize { id | id }", False), ("relu", True), ("mul { id }", False),
        ("maximum { id }", False), ("minimum { id }", False), ("add { id | constant(1) }", True),
    ],
)  # fmt: skip
def test_remove_identity(step: str, kept: bool) -> None:
    before = model(f"y = x -> tanh -> {step} -> exp")
    after, _ = run(before, "remove_identity")
    assert (len(after.graph.nodes) == len(before.nodes)) == kept
    assert deviation(before, after, None) == 0


def test_remove_identity_can_leave_nothing() -> None:
    before = model("y = x -> dropout(0.5) -> flatten(axis=3)")
    after, _ = run(before, "remove_identity")
    assert after.graph.outputs["y"] is after.graph.inputs[0]
    assert deviation(before, after) == 0


def test_share_common() -> None:
    before = model("y = add { x -> relu -> tanh | x -> relu -> exp | x -> relu -> tanh }")
    after, _ = run(before, "share_common")
    assert names_of(after.graph) == ["relu", "tanh", "exp", "add"]
    assert deviation(before, after) == 0


def test_share_common_tells_weights_apart() -> None:
    apart = model("y = add { conv(4, 1) | conv(4, 1) }".replace("y =", "y = x ->"))
    after, _ = run(apart, "share_common")
    assert names_of(after.graph).count("conv") == 2
    shared = model("shared c = conv(4, 1)  y = add { x -> c | x -> c }")
    after, _ = run(shared, "share_common")
    assert names_of(after.graph).count("conv") == 1
    assert deviation(shared, after) == 0


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("x -> transpose(0, 2, 3, 1) -> transpose(0, 2, 1, 3)", ["transpose"]),
        ("x -> transpose(0, 2, 3, 1) -> transpose(0, 3, 1, 2)", []),
        ("x -> reshape(8, 4, 8) -> reshape(2, -1)", ["reshape"]),
        ("x -> flatten -> reshape(2, 2, 64)", ["reshape"]),
        ("x -> reshape(8, 32) -> flatten", ["flatten"]),
        ("x -> flatten(axis=2) -> flatten", ["flatten"]),
        ("x -> flatten(axis=0) -> slice(0, 9, axis=0)", ["flatten", "slice"]),
        ("x -> flatten(axis=0) -> reshape(1, 1)", ["flatten", "reshape"]),
        ("x -> pad([1, 0, 2, 3]) -> conv(3, 3, pad=1)", ["conv"]),
        ("x -> pad(1, value=1) -> conv(3, 3, pad=1)", ["pad", "conv"]),
        ("x -> pad(1) -> conv(3, 3, s=2, pad=same_upper)", ["pad", "conv"]),
        ("x -> pad([1, 0, 1, 1]) -> avgpool(3, s=2, pad=1)", ["avgpool"]),
        ("x -> pad(1) -> avgpool(3, s=2, pad=same_upper)", ["pad", "avgpool"]),
        ("x -> pad(1) -> avgpool(2, count_include_pad=false)", ["avgpool"]),
        ("x -> pad(1, value=1) -> avgpool(3)", ["pad", "avgpool"]),
        ("x -> pad(1) -> avgpool(3, pad=1, count_include_pad=false)", ["pad", "avgpool"]),
        ("x -> pad(1) -> avgpool(3, s=2, ceil=true)", ["pad", "avgpool"]), ("x -> pad(2) -> l2pool(3)", ["l2pool"]),
        ("x -> relu -> pad(1) -> maxpool(3, s=2)", ["relu", "maxpool"]),
        ("x -> pad(1) -> maxpool(3)", ["pad", "maxpool"]),
        ("x -> abs -> pad(3) -> maxpool(3)", ["abs", "pad", "maxpool"]),
        ("x -> abs -> pad(1) -> maxpool(2, dilation=2)", ["abs", "pad", "maxpool"]),
        ("concat { concat { x | x -> tanh } | x -> exp }", ["tanh", "exp", "concat"]),
        ("x -> c: concat { id | tanh } -> concat { c | exp }", ["tanh", "concat", "exp", "concat"]),
        ("concat { concat(axis=2) { x | x } | concat(axis=2) { x | x } }", ["concat", "concat", "concat"]),
        ("x -> concat { slice(0, 1) | slice(1, 4) }", []),
        ("x -> concat { slice(1, 4) | slice(0, 1) }", ["slice", "slice", "concat"]),
        ("x -> concat { slice(0, 1) | slice(1, 3) }", ["slice", "slice", "concat"]),
        ("concat { x -> slice(0, 1) | x -> tanh -> slice(1, 4) }", ["slice", "tanh", "slice", "concat"]),
        ("concat { x | x -> tanh } -> slice(4, 8)", ["tanh"]),
        ("concat { x | x -> tanh } -> slice(3, 8)", ["tanh", "concat", "slice"]),
        ("concat { x | x -> tanh } -> slice(4, 8, axis=2)", ["tanh", "concat", "slice"]),
        ("concat { x | x -> tanh } -> slice(0, 8, axis=2)", ["tanh", "concat"]),
        ("x -> relu -> relu", ["relu"]), ("x -> sigmoid -> relu", ["sigmoid"]), ("x -> clip(0, 1) -> relu", ["clip"]),
        ("x -> hard_sigmoid -> relu", ["hard_sigmoid"]), ("x -> exp -> relu", ["exp"]), ("x -> abs -> relu", ["abs"]),
        ("x -> softmax -> relu", ["softmax"]),
        ("x -> clip(-1, 1) -> relu", ["clip", "relu"]), ("x -> tanh -> relu", ["tanh", "relu"]),
        ("x -> clip(-1, 1) -> clip(-0.5, 2)", ["clip"]), ("x -> clip(-2, -1) -> clip(-0.5, 2)", ["clip"]),
    ],
)  # fmt: skip
def test_canonical(body: str, left: list[str]) -> None:
    before = model(f"y = {body}")
    after, _ = run(before, "canonical", "remove_identity")
    assert names_of(after.graph) == left
    weights, inputs = random_weights(before), random_inputs(before)
    expected = evaluate(before, weights, inputs, None)["y"]
    np.testing.assert_array_equal(evaluate(after.graph, after.weights, inputs, None)["y"], expected)


def test_a_concat_that_is_read_elsewhere_too_stays_one_operand() -> None:
    after, _ = run(model("y = x -> c: concat { id | tanh } -> concat { c | exp }"), "canonical")
    assert len(after.graph.nodes[-1].inputs) == 2


def test_all_passes_on_a_residual_network() -> None:
    branch = "conv(in.c, 3, pad=1, bias=false) -> bn -> relu -> dropout(0.2) -> conv(in.c, 3, pad=1) -> bn"
    head = f"def block = add {{ {branch} | id }}"
    before = model("y = x -> conv(8, 3) -> bn -> relu -> block * 3 -> gap -> flatten -> linear(5)", head=head)
    after, _ = run(before, *LEVELS[3])
    assert [str(node.op) for node in after.graph.nodes] == [
        "fused(conv(8, 3), relu)", *["fused(conv(8, 3, pad=1), relu)", "fused(conv(8, 3, pad=1), add)"] * 3,
        "gap", "flatten", "linear(5)",
    ]  # fmt: skip
    assert deviation(before, after) < FOLDING_TOLERANCE


def test_the_verifier_sees_a_pass_that_breaks_a_graph() -> None:
    def rename(node: Node, sweep: Any) -> Node | None:
        return None if node.name == "same" else Node(node.op, node.inputs, node.params, "same", node.origin)

    graph = model("y = x -> relu -> tanh")
    with pytest.raises(cnnc.CnncError, match="E0999"):
        Pipeline((Pass("rename", "", (rename,), level=1),)).run(Network(graph, {}))


def test_a_pass_that_changes_nothing_returns_the_same_network() -> None:
    network = Network(model("y = x -> tanh"), {})
    assert PASSES["canonical"].run(network) is network


def test_a_pass_asks_its_rules_about_its_own_ops_alone() -> None:
    asked: list[str] = []

    def rule(node: Node, sweep: Sweep) -> Value | None:
        asked.append(node.name)
        return Node(ops.Exp(), node.inputs, {}, node.name, node.origin) if isinstance(node.op, ops.Tanh) else None

    network = Network(model("y = x -> a: relu -> b: tanh -> c: maxpool(2)"), {})
    for of, expected in (((Op,), "abbc"), ((ops.Tanh, ops.MaxPool), "bc"), ((Pointwise,), "abb"), ((ops.Abs,), "")):
        asked.clear()
        after = Pass("asking", "", (rule,), level=1, of=of).run(network)
        assert "".join(asked) == expected
        assert (after is network) == ("b" not in expected)


def test_what_a_pass_says_of_itself() -> None:
    common = PASSES["share_common"]
    assert (common.title, common.exact) == ("Compute equal nodes once (common subexpressions)", True)
    assert not PASSES["fold_batch_norm"].exact


def test_a_sweep_counts_uses_as_they_become() -> None:
    """A value has the readers of those that became it, but not these; what a rule makes is read once."""
    found: dict[str, int] = {}

    def rule(node: Node, sweep: Sweep) -> Value | None:
        if isinstance(node.op, ops.Dropout | ops.Add):
            return node.inputs[0]
        if isinstance(node.op, ops.Silu):
            made = Node(ops.Abs(), node.inputs, {}, "made", node.origin)
            return Node(ops.Relu(), (made,), {}, node.name, node.origin)
        found.update((x.name, sweep.uses(x)) for x in node.inputs)
        return None

    body = "x -> c: neg  x -> d: exp  y = concat { c -> dropout -> concat { tanh | relu } | c -> abs"
    graph = model(f"{body} | add {{ d | d }} -> sqrt | x -> silu }}")
    Pipeline((Pass("counted", "", (rule,), level=1),)).run(Network(graph, {}))
    assert found.items() >= {"c": 3, "d": 1, "made": 1}.items()


def test_a_sweep_gives_names_that_no_value_has() -> None:
    sweep = Sweep(Network(model("y = x -> a: relu -> a_3: tanh"), {}), PASSES["canonical"], [])
    assert [sweep.name(wanted) for wanted in ("a", "b", "b", "b", "a", "x")] == ["a_2", "b", "b_2", "b_3", "a_4", "x_2"]


@pytest.mark.parametrize("enabled", [True, False])
def test_cycles_are_collected_after_passes_as_before(enabled: bool) -> None:
    def rule(node: Node, sweep: Sweep) -> None:
        during.append(gc.isenabled())

    during: list[bool] = []
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        Pipeline((Pass("looking", "", (rule,), level=1),)).run(Network(model("y = x -> tanh"), {}))
        assert (during, gc.isenabled()) == ([False], enabled)
    finally:
        (gc.enable if was else gc.disable)()


def test_passes_are_chosen_in_their_order() -> None:
    assert choose(1, "-canonical, fold_scale") == tuple(
        name for name in PASSES if (name in LEVELS[1] and name != "canonical") or name == "fold_scale"
    )
    assert [choose(0), choose(3)] == [(), LEVELS[3]]
    assert choose(0, "+canonical, fold_scale") == choose(0, "fold_scale,canonical")
    for level, changes, what, note in (
        (4, "", "no optimisation level 4", "the levels: 0, 1, 2, 3"),
        (1, "-q", "no pass `q`", "`cnnc passes` lists them"),
        (1, "fold_scales", "no pass `fold_scales`", "did you mean `fold_scale`?"),
    ):
        with pytest.raises(cnnc.CnncError, match=rf"E0902[^\0]*{what}") as e:
            choose(level, changes)
        assert note in str(e.value)


def test_passes_are_linear() -> None:
    """The rules are asked once a node, whatever the length of the chain."""
    counts = []
    for length in (50, 500):
        x = Input("x", TensorType((1, 2, 4, 4), DType.F32))
        value: Any = x
        for i in range(length):
            value = Node.make(ops.Relu() if i % 2 else ops.Dropout(), value, name=str(i))
        asked = 0

        def counted(rule: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                nonlocal asked
                asked += 1
                return rule(*args)

            return call

        passes = tuple(replace(p, rules=tuple(map(counted, p.rules))) for p in PASSES.values())
        Pipeline(passes).run(Network(Graph("Chain", (x,), {"y": value}), {}))
        counts.append(asked)
    assert counts[1] <= 11 * counts[0]
