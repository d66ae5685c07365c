"""cnnc: a compiler for convolutional networks.

    graph = cnnc.load("models/resnet50.cnn")
    program = cnnc.compile(graph, target="cpu", weights="resnet50.safetensors")
    logits = program(image=batch)["logits"]

Importing this imports no numeric library; `compile` and `load_program` do when they run.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cnnc import ops as _ops  # registers every op
from cnnc.diagnostics import CnncError, Diagnostic
from cnnc.driver import compile, load, optimise  # noqa: A004
from cnnc.ir.graph import Graph

if TYPE_CHECKING:
    from cnnc.target import Program

__version__ = "0.1.0"


def load_program(path: str | Path, *, trust: bool = False) -> "Program":
    """The program saved at `path`. Native code of others is refused (E07xx) unless `trust` is set."""
    from cnnc.artifact import load_program as read

    return read(Path(path), trust=trust)


del _ops
__all__ = ["CnncError", "Diagnostic", "Graph", "Program", "compile", "load", "load_program", "optimise"]
