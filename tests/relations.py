"""Metamorphic relations: what must hold between runs of networks, or inputs, that differ in a known way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from cnnc import ops, verification
from cnnc.ir.bind import bind
from cnnc.ir.graph import Node, Value, keep
from numerics import Array
from random_checks import compiled, winograd, within
from strategies import ATTEMPTS, Case

Rewrite: TypeAlias = Callable[[Node, tuple[Value, ...], dict[str, Array]], Node]
"""What stands for a node on rewritten operands, by its name; new weights are put into the dict."""


def batches_join(case: Case, target: str) -> None:
    """f(cat(a, b)) = cat(f(a), f(b)) along the batch."""
    allowed = case.allowed(winograd=winograd(target))
    program = compiled(case.graph, target, case.weights)
    other = case.other_inputs(ATTEMPTS, N=2)
    parts = [program(**x) for x in (case.inputs, other)]
    inputs = {name: np.concatenate([x, other[name]]) for name, x in case.inputs.items()}
    joined = program(**inputs)
    separate = {name: np.concatenate([part[name] for part in parts]) for name in joined}
    if all(np.abs(x - separate[name]).max() <= 2 * allowed[name] for name, x in joined.items()):
        return
    both = verification.Case(bind(case.graph, {**case.sizes, "N": case.sizes["N"] + 2}), case.weights, inputs)
    allowed = verification.network_bounds(both, winograd=winograd(target))  # the other inputs may be larger
    for name, x in joined.items():
        assert np.abs(x - separate[name]).max() <= 2 * allowed[name], f"`{name}` depends on what else is in the batch"


def scales(case: Case, target: str, power: int) -> None:
    """f(2^k x) = 2^k f(x) in every bit, for networks of `HOMOGENEOUS` ops without bias."""
    program = compiled(case.graph, target, case.weights)
    factor = np.float32(2.0**power)
    outputs, scaled = program(**case.inputs), program(**{name: factor * x for name, x in case.inputs.items()})
    for name, values in outputs.items():
        np.testing.assert_array_equal(scaled[name], factor * values, err_msg=f"`{name}` with inputs times 2^{power}")


def keeps(rewrite: Rewrite, case: Case, target: str) -> None:
    """The network with every node rewritten has the value of the network as it was; nothing is run if none is."""
    weights = dict(case.weights)
    graph = case.graph.rebuild(lambda node, operands: rewrite(node, operands, weights))
    if graph is case.graph:
        return
    for level in (0, 3):
        program = compiled(graph, target, {name: weights[name] for name in graph.params}, level)
        within(case, program(**case.inputs), case.allowed(winograd=winograd(target)))


def grouped(node: Node) -> bool:
    """Whether `groups_split` changes it."""
    return isinstance(node.op, ops.Conv) and node.op.groups > 1


def groups_split(node: Node, operands: tuple[Value, ...], weights: dict[str, Array]) -> Node:
    """A grouped convolution as many plain ones, on slices of its channels, joined."""
    if not isinstance(node.op, ops.Conv) or node.op.groups == 1:
        return keep(node, operands)
    (x,) = operands
    groups = node.op.groups
    arrays = {role: np.split(weights[param.name], groups) for role, param in node.params.items()}
    inputs = arrays["weight"][0].shape[1]
    arms = []
    for g in range(groups):
        part = Node(ops.Slice(g * inputs, (g + 1) * inputs), (x,), {}, f"{node.name}.{g}.slice")
        op = replace(node.op, groups=1, channels=node.op.channels // groups)
        arms.append(_with_weights(op, part, f"{node.name}.{g}", {k: x[g] for k, x in arrays.items()}, weights))
    return Node(ops.Concat(), tuple(arms), {}, node.name)


def permuted(node: Node) -> bool:
    """Whether `channels_permuted` changes it."""
    dense = isinstance(node.op, ops.Linear) or (isinstance(node.op, ops.Conv) and node.op.groups == 1)
    return dense and node.inputs[0].type.shape[1] != 1


def channels_permuted(node: Node, operands: tuple[Value, ...], weights: dict[str, Array]) -> Node:
    """A convolution or linear layer on its channels in another order, its results put back into theirs."""
    if not permuted(node) or not isinstance(node.op, ops.Conv | ops.Linear):
        return keep(node, operands)
    arrays = {role: weights[param.name] for role, param in node.params.items()}
    outputs, inputs = arrays["weight"].shape[:2]
    rng = np.random.default_rng(inputs)
    before, after = rng.permutation(inputs), rng.permutation(outputs)
    arrays = {role: array[after] for role, array in arrays.items()}
    arrays["weight"] = arrays["weight"][:, before]
    x = Node(ops.Take(before.tolist()), operands, {}, f"{node.name}.taken")
    layer = _with_weights(node.op, x, f"{node.name}.permuted", arrays, weights)
    return Node(ops.Take(np.argsort(after).tolist()), (layer,), {}, node.name)


def identities_inserted(node: Node, operands: tuple[Value, ...], weights: dict[str, Array]) -> Node:
    """A node followed by a dropout, or cut along its channels and joined again."""
    value = Node(node.op, operands, node.params, f"{node.name}.itself")
    channels = value.type.shape[1] if value.type.rank > 1 else 1
    if not isinstance(channels, int) or channels == 1 or len(node.name) % 2:
        return Node(ops.Dropout(), (value,), {}, node.name)
    cuts = (0, channels // 2, channels)
    parts = [Node(ops.Slice(cuts[i], cuts[i + 1]), (value,), {}, f"{node.name}.part{i}") for i in (0, 1)]
    return Node(ops.Concat(), tuple(parts), {}, node.name)


def _with_weights(
    op: ops.Conv | ops.Linear, x: Value, name: str, arrays: Mapping[str, Array], weights: dict[str, Array]
) -> Node:
    """A node with parameters of its own, whose arrays are put into `weights`."""
    weights.update({f"{name}.{role}": array for role, array in arrays.items()})
    return Node.make(op, x, name=name)
