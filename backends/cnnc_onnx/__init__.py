"""The target `onnx`: an ONNX model, which ONNX Runtime runs.

`emit` has the emitter and the table of rules, `rules_*` a rule for each op, `lower` makes the model and checks it, and
`program` runs it. Importing this package imports neither onnx nor onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

from cnnc.diagnostics import error
from cnnc.ir.graph import Graph
from cnnc.target import Status, Target

if TYPE_CHECKING:
    from cnnc.target import Weights
    from cnnc_onnx.program import OnnxProgram

class OnnxTarget(Target):
    name = "onnx"
    doc = "an ONNX model, which ONNX Runtime runs"
    options: ClassVar = {"opset": "version of the operator set: 13 or newer; the newest that is installed by default"}

    def status(self) -> Status:
        try:
            return Status(True, f"onnx {version('onnx')}, onnxruntime {version('onnxruntime')}")
        except PackageNotFoundError as e:
            return Status(False, f"{e.name} is not installed: pip install 'cnnc[onnx]'")

    def compile(self, graph: Graph, weights: Weights, **options: str) -> OnnxProgram:
        from cnnc_onnx.lower import lower
        from cnnc_onnx.program import OnnxProgram

        return OnnxProgram(lower(graph, weights, _opset(options.get("opset"), graph)))

    def load(self, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> OnnxProgram:
        from cnnc_onnx.program import MEMBER, OnnxProgram

        return OnnxProgram.parse(files.get(MEMBER, b""))


def _opset(text: str | None, graph: Graph) -> int:
    """The opset asked for, or the newest that runs. CnncError E0670 where it is not one from 13 to the newest."""
    from cnnc_onnx.opset import OLDEST, newest, newest_that_runs

    if text is None:
        return newest_that_runs(graph)
    latest = newest()
    if not (text.isascii() and text.isdecimal()) or not OLDEST <= int(text) <= latest:
        raise error("E0670", f"option `opset` of target `onnx` is {text!r}, not a number from {OLDEST} to {latest}")
    return int(text)
