"""What a comparison is made on: a graph, weights that hide nothing, and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from cnnc import target
from cnnc.diagnostics import error
from cnnc.ir.dim import evaluate, symbols
from cnnc.ir.graph import Graph, Node
from cnnc.target import numpy_dtype
from cnnc.weights.initial import fans

if TYPE_CHECKING:
    from cnnc.target import Array, Weights

BATCH: Final = 2
"""Samples of an input whose batch is symbolic: enough to show that one leaks into another."""


@dataclass(frozen=True)
class Case:
    """A graph with arrays for its parameters and inputs."""

    graph: Graph
    weights: Weights
    inputs: Mapping[str, Array]

    def pruned(self, node: Node) -> Case:
        """The same up to one node, the only output."""
        graph = self.graph.with_outputs({node.name: node})
        return Case(graph, {name: self.weights[name] for name in graph.params}, self.inputs)


def reference(case: Case, *, exact: bool = True) -> dict[str, Array]:
    """The outputs of a case in float64; unless `exact` with each value rounded to its element type."""
    return target.reference(case.graph, case.weights, case.inputs, exact=exact)


def random_case(graph: Graph, weights: Weights | None = None, seed: int = 0) -> Case:
    """A graph with random inputs, and random weights unless some are given.

    A symbolic batch becomes 2. CnncError E0902 for other symbolic dims, which must be bound before.
    """
    dims = {name: BATCH for x in graph.inputs for name in symbols(x.type.shape[0])}
    if unknown := sorted(graph.symbols - dims.keys()):
        message = f"the inputs of `{graph.name}` need the size of `{unknown[0]}`"
        raise error("E0902", message, help=f"`--dim {unknown[0]}=...`")
    weights = random_weights(graph, seed) if weights is None else weights
    return Case(graph, weights, random_inputs(graph, seed, **dims))


def random_weights(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Weights that hide nothing: He-scaled matrices; biases, scales and statistics away from 0 and 1."""
    rng = np.random.default_rng(seed)
    ops = {param.name: node.op for node in graph.nodes for param in node.params.values()}
    weights = {}
    for name, param in graph.params.items():
        shape = tuple(evaluate(dim, {}) for dim in param.type.shape)
        if param.init.value == 1.0:  # scales and variances
            values = rng.uniform(0.5, 1.5, shape)
        else:
            fan_in = fans(ops[name], shape)[0]
            values = rng.standard_normal(shape) * (np.sqrt(2 / fan_in) if len(shape) > 1 else 0.2)
        weights[name] = values.astype(numpy_dtype(param.type.dtype))
    return weights


def random_inputs(graph: Graph, seed: int = 0, **dims: int) -> dict[str, Array]:
    """Standard normal inputs; `dims` binds the symbolic dims."""
    rng = np.random.default_rng(seed + 1)
    return {
        x.name: rng.standard_normal(tuple(evaluate(d, dims) for d in x.type.shape)).astype(numpy_dtype(x.type.dtype))
        for x in graph.inputs
    }
