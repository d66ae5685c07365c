"""Which operator sets are installed."""

from __future__ import annotations

from functools import cache

from onnx import TensorProto, defs, helper

from cnnc import ops
from cnnc.ir.graph import Graph

OLDEST = 13
"""The first opset in which `Squeeze`, `Unsqueeze` and `ReduceSum` take their axes as operands."""


_LAST = {ops.RoiAlign: 21, ops.RoiAlignPyramid: 21, ops.RoiPool: 21}
"""The last opset in which ONNX Runtime 1.31 has a kernel, of the ops for which that is not the newest."""


def newest_that_runs(graph: Graph) -> int:
    """The newest opset in which ONNX Runtime runs the graph."""
    return min([newest(), *(_LAST.get(type(node.op), newest()) for node in graph.nodes)])


@cache
def newest() -> int:
    """The newest opset that onnx describes and ONNX Runtime takes; it refuses those not released when it was."""
    from onnxruntime import InferenceSession, SessionOptions
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    options = SessionOptions()
    options.log_severity_level = 4
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    for opset in range(defs.onnx_opset_version(), OLDEST, -1):
        ids = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=ids, ir_version=helper.find_min_ir_version_for(ids))
        try:
            InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Fail:
            continue
        return opset
    return OLDEST
