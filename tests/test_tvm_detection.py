"""The ops of detectors on the targets `cpu` and `cuda`, against the reference. Without a GPU, kernels run emulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cnnc import ops
from cnnc.ir.graph import Graph, Input, Node
from cnnc.ir.op import Op
from cnnc.ir.types import DType
from cnnc.target import numpy_dtype
from cnnc_tvm import CpuTarget, CudaTarget
from cnnc_tvm.runtime import TvmProgram
from cuda_emulator import runnable
from numerics import Array, assert_node_agrees
from test_detection_ops import CASES, graph, inputs, quarters, used

TARGETS = ("cpu", "cuda")


def compiled(target: str, network: Graph) -> TvmProgram:
    return CpuTarget().compile(network, {}) if target == "cpu" else runnable(CudaTarget().compile(network, {}), True)


def operands(op: Op) -> tuple[Array, ...]:
    return used(op, inputs(op, 3, seed=0))


def joined(graphs: list[Graph]) -> Graph:
    """Graphs of one node as one, so that each target compiles once: inputs and outputs are prefixed with the case."""
    own = [[Input(f"c{i}_{x.name}", x.type) for x in graph.inputs] for i, graph in enumerate(graphs)]
    made = {f"c{i}": Node.make(graphs[i].nodes[0].op, *xs, name=f"c{i}") for i, xs in enumerate(own)}
    return Graph("Cases", tuple(x for xs in own for x in xs), made)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("cases", "dtype"),
    [(CASES, DType.F32), (list({type(op): op for op in CASES}.values()), DType.BF16)],
    ids=["f32", "bf16"],
)
def test_ops(target: str, cases: list[Op], dtype: DType) -> None:
    graphs = [graph(op, *operands(op), dtype=dtype, symbolic=dtype is DType.F32) for op in cases]
    program = compiled(target, joined(graphs))
    for n in (1, 3):
        given = [{f"x{k}": x[:n].astype(numpy_dtype(dtype)) for k, x in enumerate(operands(op))} for op in cases]
        outputs = program(**{f"c{i}_{name}": x for i, xs in enumerate(given) for name, x in xs.items()})
        for i, xs in enumerate(given):
            assert_node_agrees(graphs[i], {}, xs, {"y": outputs[f"c{i}"]})


@pytest.mark.parametrize("target", TARGETS)
def test_more_boxes_than_a_block_has_threads(target: str) -> None:
    """Many of equal score, of which only the first are considered; and images whose boxes are all the same."""
    rng = np.random.default_rng(0)
    corners = quarters(rng, 0, 40, 2, 3000, 2)
    boxes = np.concatenate([corners, corners + quarters(rng, 1, 20, 2, 3000, 2)], axis=2)
    boxes[1] = boxes[1, 0]
    given = {"x0": boxes, "x1": quarters(rng, 0, 3, 2, 3, 50, 20)}
    network = graph(ops.Nms(pre=2100, keep=60, iou=0.5), *given.values())
    outputs: dict[str, Any] = compiled(target, network)(**given)
    assert_node_agrees(network, {}, given, outputs)
    assert [np.count_nonzero(image[:, 2]) for image in outputs["y"]] == [60, 1]
