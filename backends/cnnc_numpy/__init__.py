"""The target `numpy`: a reference evaluator, and a standalone Python file that needs NumPy alone.

`kernels` compute, `rules` says which kernel computes each op, `evaluator` runs a graph with them in any element type,
and `source` writes the same calls as a Python file. Importing this package does not import NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cnnc.ir.graph import Graph
from cnnc.target import Status, Target

if TYPE_CHECKING:
    from cnnc.target import Array, Weights
    from cnnc_numpy.program import NumpyProgram


class NumpyTarget(Target):
    name = "numpy"
    doc = "runs with NumPy; a standalone readable .py file"

    def status(self) -> Status:
        return Status(True, f"numpy {version('numpy')}")

    def compile(self, graph: Graph, weights: Weights, **options: str) -> NumpyProgram:
        from cnnc_numpy.program import NumpyProgram

        return NumpyProgram(graph, {name: array.copy() for name, array in weights.items()})

    def load(self, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> NumpyProgram:
        from cnnc_numpy.program import NumpyProgram

        return NumpyProgram.parse(files)

    def reference(
        self, graph: Graph, weights: Weights, inputs: Mapping[str, Array], *, exact: bool = True
    ) -> dict[str, Array]:
        """The outputs that every target is compared with: evaluated in float64, or unless `exact` with each value
        rounded to its element type. CnncError E0601 for ops without a rule, E0320 for inputs that do not fit."""
        import numpy as np

        from cnnc_numpy.evaluator import evaluate

        return evaluate(graph, weights, inputs, np.float64 if exact else None)
