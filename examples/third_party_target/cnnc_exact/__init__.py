"""The target `exact`: a network computed with fractions, so that nothing is rounded before the end.

It is slow, and right where float32 is not: a reference for small networks. Importing this package imports no NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cnnc.ir import Graph
from cnnc.target import Status, Target

if TYPE_CHECKING:
    from cnnc.target import Weights
    from cnnc_exact.program import ExactProgram


class ExactTarget(Target):
    name = "exact"
    doc = "computes with fractions: slow, and nothing is rounded before the end"
    passes = False  # a folded weight is a rounded one

    def status(self) -> Status:
        return Status(True, f"numpy {version('numpy')}")

    def compile(self, graph: Graph, weights: Weights, **options: str) -> ExactProgram:
        from cnnc_exact.program import ExactProgram

        return ExactProgram(graph, weights)

    def load(self, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> ExactProgram:
        from cnnc_exact.program import ExactProgram

        return ExactProgram.parse(files)
