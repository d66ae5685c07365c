"""Running a graph with fractions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors.numpy import load, save

from cnnc import weights as weight_files
from cnnc.diagnostics import error
from cnnc.ir import Graph, Value, from_json, to_json, verify
from cnnc.target import Program, numpy_dtype, ports
from cnnc_exact.rules import check, rules

if TYPE_CHECKING:
    from cnnc.target import Array, Weights

GRAPH: Final = "graph.json"
WEIGHTS: Final = "weights.safetensors"

_fractions: Any = np.vectorize(Fraction.from_float, otypes=[object])


def fractions(name: str, array: Array) -> Array:
    """The array as fractions; CnncError E0601 where it holds what is no number."""
    if not np.isfinite(array).all():
        raise error("E0601", f"target `exact` has no NaN and no infinity, and `{name}` holds one")
    result: Array = _fractions(array.astype(np.float64))
    return result


class ExactProgram(Program):
    """A graph and its weights."""

    def __init__(self, graph: Graph, weights: Weights) -> None:
        """CnncError E0601 for what the target cannot compute."""
        super().__init__("exact", *ports(graph))
        check(graph)
        self.graph, self.weights = graph, weights
        self._params = {name: fractions(name, array) for name, array in weights.items()}

    def run(self, inputs: dict[str, Array], dims: dict[str, int]) -> dict[str, Array]:
        values: dict[Value, Array] = {x: fractions(x.name, inputs[x.name]) for x in self.graph.inputs}
        for node in self.graph.nodes:
            operands = [values[x] for x in node.inputs]
            values[node] = rules[node.op](node, *operands, *(self._params[x.name] for x in node.params.values()))
        return {name: values[x].astype(numpy_dtype(x.type.dtype)) for name, x in self.graph.outputs.items()}

    def files(self) -> dict[str, bytes]:
        return {GRAPH: json.dumps(to_json(self.graph)).encode(), WEIGHTS: save(dict(self.weights))}

    @staticmethod
    def parse(files: Mapping[str, bytes]) -> ExactProgram:
        """The program whose `files` these are: not believed, but checked as what a user gives."""
        graph = from_json(json.loads(files[GRAPH]))
        verify(graph)
        return ExactProgram(graph, weight_files.check(load(files[WEIGHTS]), graph, WEIGHTS))
