"""The program of the `numpy` target: the graph and its weights, evaluated in the element types of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnc import weights as weight_files
from cnnc.artifact import network_files, read_network
from cnnc.diagnostics import CnncError, Diagnostic, Help, Label
from cnnc.files import replacing
from cnnc.ir.graph import Graph, Value
from cnnc.ir.types import DType
from cnnc.target import Program, ports
from cnnc_numpy.evaluator import run, steps
from cnnc_numpy.source import write

if TYPE_CHECKING:
    from cnnc.target import Array, Weights


class NumpyProgram(Program):
    """Runs a graph with NumPy; `export` writes a `.py` file that needs NumPy alone, and its weights beside it."""

    suffix = ".py"

    def __init__(self, graph: Graph, weights: Weights) -> None:
        """CnncError E0601 for ops without a rule, E0606 for bf16."""
        super().__init__("numpy", *ports(graph))
        values: tuple[Value, ...] = (*graph.inputs, *graph.nodes)
        for value in values:
            if value.type.dtype is DType.BF16:
                raise _no_bf16(value)
        self.graph, self.weights = graph, {name: weights[name] for name in graph.params}
        self._steps = steps(graph)

    def run(self, inputs: dict[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        values = run(self.graph, self._steps, self.weights, inputs, dims)
        return {name: np.array(values[x]) for name, x in self.graph.outputs.items()}  # copies: one may be an input

    def files(self) -> dict[str, bytes]:
        return network_files(self.graph, self.weights)

    @staticmethod
    def parse(files: Mapping[str, bytes]) -> NumpyProgram:
        """The program whose `files` these are; CnncErrors as of `read_network`."""
        return NumpyProgram(*read_network(files))

    def source(self) -> str:
        return write(self.graph, self._steps)

    def export(self, path: Path) -> None:
        """Write `path` and the weights as the .npz file of the same name beside it."""
        weight_files.save(path.with_suffix(".npz"), self.weights)
        with replacing(path) as temporary:
            temporary.write_text(self.source(), encoding="utf-8")


def _no_bf16(value: Value) -> CnncError:
    labels = (Label(value.origin.span, str(value.type), primary=True),) if value.origin else ()
    message = f"target `numpy` has no bf16, the element type of `{value.name}`: NumPy has no bfloat16"
    return CnncError((Diagnostic("E0606", message, labels, help=Help("use f32 or f16")),))
