"""The target `torch`: a readable, trainable nn.Module as a Python file, and its weights.

`rules_*` say how each op is written and `helpers*` has what torch lacks. `regions` finds the blocks in the names of the
nodes, `blocks` makes them modules, `forward` writes how they run, `classes` finds those that are alike, `source` puts
the file together and `program` runs it. Importing this package does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cnnc.ir.graph import Graph
from cnnc.target import Status, Target

if TYPE_CHECKING:
    from cnnc.target import Weights
    from cnnc_torch.program import TorchProgram


class TorchTarget(Target):
    name = "torch"
    doc = "a readable, trainable nn.Module as a .py file, and its weights"
    passes = False  # the module is to be trained: dropout and batch norm stay

    def status(self) -> Status:
        try:
            return Status(True, f"torch {version('torch')}")
        except PackageNotFoundError:
            return Status(False, "torch is not installed: pip install 'cnnc[torch]'")

    def compile(self, graph: Graph, weights: Weights, **options: str) -> TorchProgram:
        from cnnc_torch.program import TorchProgram

        return TorchProgram(graph, {name: array.copy() for name, array in weights.items()})

    def load(self, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> TorchProgram:
        from cnnc_torch.program import TorchProgram

        return TorchProgram.parse(files)
