"""How each op is computed, on NumPy arrays of fractions. An op that gives irrational numbers (`tanh`) has no rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cnnc import ops
from cnnc.ir import Graph, Node, TensorType
from cnnc.ir.dim import evaluate
from cnnc.target import Rules, unsupported

if TYPE_CHECKING:
    from cnnc.target import Array

Rule: TypeAlias = "Callable[..., Array]"
"""rule(node, operands..., params by role...) -> the node's value"""

rules: Rules[Rule] = Rules("exact")


def check(graph: Graph) -> None:
    """CnncError E0601 for each node that this target cannot compute: ops without a rule, then attributes it lacks."""
    rules.check(graph)
    lacking = {
        node.name: "has no grouped or dilated `conv`"
        for node in graph.nodes
        if isinstance(node.op, ops.Conv) and (node.op.groups != 1 or node.op.dilation != (1, 1))
    }
    unsupported("exact", lacking, graph)


@rules(ops.Conv)
def conv(node: Node, x: Array, weight: Array, bias: Array | int = 0) -> Array:
    assert isinstance(node.op, ops.Conv)
    top, left, bottom, right = (evaluate(pad, {}) for pad in node.op.pads(TensorType(x.shape)))
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    down, across = node.op.stride
    windows = sliding_window_view(x, node.op.kernel, axis=(2, 3))[:, :, ::down, ::across]  # [N, C, H', W', kh, kw]
    y = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3)))
    return (y + bias).transpose(0, 3, 1, 2)


@rules(ops.Linear)
def linear(node: Node, x: Array, weight: Array, bias: Array | int = 0) -> Array:
    return x @ weight.T + bias


@rules(ops.Add)
def add(node: Node, *xs: Array) -> Array:
    return reduce(np.add, xs)


@rules(ops.Relu)
def relu(node: Node, x: Array) -> Array:
    return x * (x > 0)


@rules(ops.GlobalAvgPool)
def gap(node: Node, x: Array) -> Array:
    return np.asarray(x.sum((2, 3), keepdims=True) / (x.shape[2] * x.shape[3]))


@rules(ops.Flatten)
def flatten(node: Node, x: Array) -> Array:
    assert isinstance(node.op, ops.Flatten)
    return x.reshape(*x.shape[: node.op.axis], -1)
