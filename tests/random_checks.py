"""What every random network must satisfy, as functions of a `Case`; the tests and the long run call the same ones.

Two comparisons with the float64 reference need no tolerance for the depth of a network:

- node by node: a program that gives every node as an output is right if each node's values are within that node's
  derived bound of the reference *on the operand values that the program itself gave*. Nothing propagates, and no
  decision (of `step`, say) can fall the other way.
- whole: a program is allowed twice the largest deviation seen when the reference is evaluated with each node's values
  moved by as much as its bound allows, in random directions, and rounded to float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import cnnc
from cnnc import ops
from cnnc.ir import bind, from_json, from_text, structurally_equal, to_json, to_text, verify
from cnnc.ir.graph import Graph, Input, Node, Value
from cnnc.ir.types import DType, TensorType
from cnnc.passes import PASSES, Network, Pipeline
from cnnc_numpy.evaluator import evaluate, evaluate_nodes
from numerics import Array, assert_close, node_bound, random_inputs
from strategies import Case, to_cnn

ERROR = ".error"
RUNS = 8
"""Evaluations with moved values: half move all places of a node the same way, half each place by itself."""


def alive(case: Case) -> bool:
    """Whether every output is finite and depends on the inputs: others give others somewhere."""
    first = evaluate(case.graph, case.weights, case.inputs)
    second = evaluate(case.graph, case.weights, random_inputs(case.graph, case.seed + 1, N=case.batch))
    return all(np.isfinite(x).all() and (x != second[name]).any() for name, x in first.items())


def forms(case: Case) -> None:
    """The verifier accepts the graph; text, JSON and `.cnn` read back as it; sizes bound before and after agree."""
    graph = verify(case.graph)
    assert structurally_equal(from_text(to_text(graph)), graph)
    assert structurally_equal(from_json(to_json(graph)), graph)
    read = cnnc.load(to_cnn(graph))
    assert [str(node.op) for node in read.nodes] == [str(node.op) for node in graph.nodes]
    assert _types(read) == _types(graph)
    assert sorted(str(x.type) for x in read.params.values()) == sorted(str(x.type) for x in graph.params.values())
    bound = verify(bind(graph, {"N": case.batch}))
    assert structurally_equal(bound, _concrete(graph, case.batch))
    symbolic, concrete = (evaluate(x, case.weights, case.inputs) for x in (graph, bound))
    for name, x in symbolic.items():
        np.testing.assert_array_equal(x, concrete[name])


def _types(graph: Graph) -> dict[str, TensorType]:
    return {name: x.type for name, x in graph.outputs.items()}


def _concrete(graph: Graph, batch: int) -> Graph:
    """The graph made again on inputs whose batch is a number."""
    inputs = tuple(replace(x, type=x.type.with_shape((batch, *x.type.shape[1:]))) for x in graph.inputs)
    return graph.rebuild(lambda node, xs: Node(node.op, xs, node.params, node.name), inputs)


def nodes_agree(case: Case, target: str) -> None:
    """Each node of the unoptimised program is within its bound on the operands that the program gave it."""
    tapped = case.graph.with_outputs({node.name: node for node in case.graph.nodes})
    outputs = cnnc.compile(tapped, target, case.weights, optimise=0)(**case.inputs)
    values = {x: case.inputs[x.name] for x in case.graph.inputs} | {x: outputs[x.name] for x in case.graph.nodes}
    for node in case.graph.nodes:
        expected, bound = _bound(node, values, case.weights)
        assert_close(outputs[node.name], expected, node.type.dtype, bound, f"{node.name} = {node.op}")


def _bound(node: Node, values: Mapping[Value, Array], weights: Mapping[str, Array]) -> tuple[Array, Array]:
    """What a node makes of these values of its operands, and its bound."""
    inputs = tuple(Input(f"x{i}", x.type.with_shape(values[x].shape)) for i, x in enumerate(node.inputs))
    alone = Graph(node.name, inputs, {"y": Node(node.op, inputs, node.params, "y")})
    return node_bound(alone, weights, {x.name: values[old] for x, old in zip(inputs, node.inputs, strict=True)})


def allowances(case: Case) -> tuple[dict[str, Array], dict[str, float]]:
    """The reference, and how far from it each output of a correct program in float32 may be."""
    graph = bind(case.graph, {"N": case.batch})
    reference = evaluate_nodes(graph, case.weights, case.inputs)
    stored: dict[Value, Array] = {x: reference[x.name].astype(np.float32) for x in graph.users}
    bounds = {node.name: _bound(node, stored, case.weights)[1] for node in graph.nodes}
    moved = _moved(graph, {name for name, bound in bounds.items() if bound.any()})
    rng = np.random.default_rng(case.seed)
    expected = {name: reference[x.name] for name, x in graph.outputs.items()}
    allowed = {name: float(bounds[x.name].max()) for name, x in graph.outputs.items()}
    for run in range(RUNS):
        errors = {}
        for x in moved.inputs[len(graph.inputs) :]:
            bound = bounds[x.name.removesuffix(ERROR)]
            errors[x.name] = bound * rng.choice([-1.0, 1.0], () if run % 2 else bound.shape)
        for name, values in evaluate(moved, case.weights, {**case.inputs, **errors}).items():
            allowed[name] = max(allowed[name], 2 * float(np.abs(values - expected[name]).max()))
    return expected, allowed


def _moved(graph: Graph, names: set[str]) -> Graph:
    """The graph with each node rounded to float32, those of these names after an error, an input, is added to them."""
    errors: list[Input] = []

    def move(node: Node, operands: tuple[Value, ...]) -> Value:
        new = Node(node.op, operands, node.params, node.name, node.origin)
        if node.name in names:
            errors.append(Input(f"{node.name}{ERROR}", node.type))
            new = Node(ops.Add(), (new, errors[-1]), {}, f"{node.name}.moved")
        return Node(ops.Cast(DType.F32), (new,), {}, f"{node.name}.rounded")

    moved = graph.rebuild(move)
    return replace(moved, inputs=(*graph.inputs, *errors))


def whole_agrees(case: Case, target: str) -> None:
    """The optimised program agrees with the reference, and saved and loaded again it gives the same bits."""
    expected, allowed = allowances(case)
    program = cnnc.compile(case.graph, target, case.weights)
    outputs = program(**case.inputs)
    _within(outputs, expected, allowed)
    with tempfile.TemporaryDirectory() as folder:
        again = cnnc.load_program(program.save(Path(folder) / "program.cnnx"))(**case.inputs)
    for name, values in outputs.items():
        np.testing.assert_array_equal(again[name], values, err_msg=f"`{name}` of the program saved and loaded")


def _within(outputs: Mapping[str, Array], expected: Mapping[str, Array], allowed: Mapping[str, float]) -> None:
    assert outputs.keys() == expected.keys()
    for name, values in outputs.items():
        bound = np.full(expected[name].shape, allowed[name])
        assert_close(values, expected[name], DType.F32, bound, name)


def passes_preserve(case: Case) -> None:
    """Each pass by itself, and all in order, keep the outputs' names and types and, in float64, their values."""
    expected, allowed = allowances(case)
    for chosen in [*((each,) for each in PASSES.values()), tuple(PASSES.values())]:
        network = Pipeline(chosen).run(Network(case.graph, case.weights)).network
        assert _types(network.graph) == _types(case.graph)
        values = evaluate(network.graph, network.weights, case.inputs)
        _within({name: x.astype(np.float32) for name, x in values.items()}, expected, allowed)


def batches_join(case: Case, target: str) -> None:
    """f(cat(a, b)) = cat(f(a), f(b)) along the batch."""
    _, allowed = allowances(case)
    program = cnnc.compile(case.graph, target, case.weights)
    other = random_inputs(case.graph, case.seed + 1, N=2)
    parts = [program(**x) for x in (case.inputs, other)]
    joined = program(**{name: np.concatenate([x, other[name]]) for name, x in case.inputs.items()})
    for name, values in joined.items():
        separate = np.concatenate([part[name] for part in parts])
        assert np.abs(values - separate).max() <= 2 * allowed[name], f"`{name}` depends on what else is in the batch"


def scales(case: Case, target: str, power: int) -> None:
    """f(2^k x) = 2^k f(x) in every bit, for networks of `HOMOGENEOUS` ops without bias."""
    program = cnnc.compile(case.graph, target, case.weights)
    factor = np.float32(2.0**power)
    outputs, scaled = program(**case.inputs), program(**{name: factor * x for name, x in case.inputs.items()})
    for name, values in outputs.items():
        np.testing.assert_array_equal(scaled[name], factor * values, err_msg=f"`{name}` with inputs times 2^{power}")


def groups_split(case: Case, target: str) -> None:
    """Each grouped convolution is as many plain ones, on slices of its channels, joined."""
    expected, allowed = allowances(case)
    weights = dict(case.weights)
    graph = case.graph.rebuild(lambda node, operands: _split(node, operands, weights))
    outputs = cnnc.compile(graph, target, {name: weights[name] for name in graph.params})(**case.inputs)
    _within(outputs, expected, allowed)


def _split(node: Node, operands: tuple[Value, ...], weights: dict[str, Array]) -> Node:
    """The convolutions of the groups of a node, joined; new weights are put into `weights`."""
    if not isinstance(node.op, ops.Conv) or node.op.groups == 1:
        return Node(node.op, operands, node.params, node.name, node.origin)
    (x,) = operands
    groups = node.op.groups
    arrays = {role: np.split(weights[param.name], groups) for role, param in node.params.items()}
    inputs = arrays["weight"][0].shape[1]
    arms = []
    for g in range(groups):
        part = Node(ops.Slice(g * inputs, (g + 1) * inputs), (x,), {}, f"{node.name}.{g}.slice")
        op = replace(node.op, groups=1, channels=node.op.channels // groups)
        arms.append(Node.make(op, part, name=f"{node.name}.{g}"))
        weights.update({f"{node.name}.{g}.{role}": parts[g] for role, parts in arrays.items()})
    return Node(ops.Concat(), tuple(arms), {}, node.name)
