"""The kernels of depthwise convolution, alone, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import te

from cnnc import ops
from cnnc.ir.types import TensorType
from cnnc_tvm.conv_depthwise import Plan, choose, pack, write
from cnnc_tvm.conv_shape import ConvShape, Machine
from conv_kernels import blocked, filled, run
from numerics import assert_node_agrees, random_inputs, random_weights, single

AVX2 = Machine(lanes=8, registers=16)
AVX512 = Machine(lanes=16, registers=32, cores=2)


def depthwise(
    channels: int, image: tuple[int, int], kernel: int, stride: int, pads: tuple[int, int, int, int],
    dilation: int = 1, batch: Any = 1,
) -> ConvShape:  # fmt: skip
    sizes = (kernel, kernel), (stride, stride), (dilation, dilation)
    return ConvShape(batch, channels, channels, image, *sizes, pads, channels)


def check(shape: ConvShape, plan: Plan, batch: int) -> None:
    op = ops.Conv(
        shape.filters, shape.kernel, stride=shape.stride, pad=shape.pads, dilation=shape.dilation, groups=shape.groups
    )
    graph = single(op, TensorType((batch, shape.channels, *shape.image)))
    weights, inputs = random_weights(graph), random_inputs(graph)

    def emit(x: Any, w: Any, b: Any, out: Any) -> None:
        write(shape, plan, lambda value, n, block, lane, i, j: value + b[block * plan.lanes + lane], x, w, out)

    x = blocked(inputs["x0"], plan.lanes)
    bias = filled(weights["node.bias"], plan.lanes)
    y = run(emit, shape, plan.lanes, x, pack(weights["node.weight"], plan), bias)
    assert_node_agrees(graph, weights, inputs, {"y": y})


@pytest.mark.parametrize("machine", [AVX2, AVX512], ids=["avx2", "avx512"])
@pytest.mark.parametrize(
    "shape",
    [
        depthwise(24, (9, 29), 3, 1, (1, 1, 1, 1)),
        depthwise(20, (8, 30), 3, 2, (0, 0, 1, 1)),
        depthwise(16, (7, 7), 5, 1, (2, 2, 2, 2)),
        depthwise(16, (14, 15), 5, 2, (2, 1, 2, 3)),
        depthwise(5, (1, 1), 3, 1, (1, 1, 1, 1)),
        depthwise(8, (6, 7), 3, 1, (2, 2, 2, 2), dilation=2),
    ],
    ids=str,
)
def test_agrees(shape: ConvShape, machine: Machine) -> None:
    check(shape, choose(shape, machine), 1)


def test_batch_known_when_it_runs() -> None:
    shape = depthwise(20, (5, 6), 3, 1, (1, 1, 1, 1), batch=te.var("n", "int32"))
    check(shape, Plan(16, 4, 2), 3)
