"""The kernels of convolution in narrow groups, depthwise or of a few channels, alone, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import te

from cnnc import ops
from cnnc.ir.types import TensorType
from cnnc_tvm.conv_depthwise import Plan, choose, pack, takes, write
from cnnc_tvm.conv_shape import ConvShape, Machine
from conv_kernels import blocked, filled, run
from numerics import assert_node_agrees, random_inputs, random_weights, single

AVX2 = Machine(lanes=8, registers=16)
AVX512 = Machine(lanes=16, registers=32, cores=2)


def grouped(
    channels: int, image: tuple[int, int], kernel: int, stride: int, pads: tuple[int, int, int, int],
    dilation: int = 1, batch: Any = 1, width: int = 1,
) -> ConvShape:  # fmt: skip
    """In groups of `width` channels."""
    sizes = (kernel, kernel), (stride, stride), (dilation, dilation)
    return ConvShape(batch, channels, channels, image, *sizes, pads, channels // width)


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
        grouped(24, (9, 29), 3, 1, (1, 1, 1, 1)),
        grouped(20, (8, 30), 3, 2, (0, 0, 1, 1)),
        grouped(16, (7, 7), 5, 1, (2, 2, 2, 2)),
        grouped(16, (14, 15), 5, 2, (2, 1, 2, 3)),
        grouped(5, (1, 1), 3, 1, (1, 1, 1, 1)),
        grouped(8, (6, 7), 3, 1, (2, 2, 2, 2), dilation=2),
        grouped(24, (9, 29), 3, 1, (1, 1, 1, 1), width=4),
        grouped(40, (8, 14), 3, 2, (1, 1, 1, 1), width=8),
        grouped(6, (5, 9), 5, 1, (2, 2, 2, 2), width=2),
        grouped(20, (5, 9), 1, 1, (0, 0, 0, 0), width=4),
    ],
    ids=str,
)
def test_agrees(shape: ConvShape, machine: Machine) -> None:
    check(shape, choose(shape, machine), 1)


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "lanes", "taken"),
    [(32, 32, 32, 16, True), (32, 32, 8, 16, True), (36, 36, 12, 16, False), (32, 64, 32, 16, False)],
)
def test_what_is_taken(channels: int, filters: int, groups: int, lanes: int, taken: bool) -> None:
    assert takes(ConvShape(1, channels, filters, (4, 4), (3, 3), groups=groups), lanes) == taken


def test_an_infinite_value_stays_in_its_group() -> None:
    shape = grouped(16, (3, 3), 1, 1, (0, 0, 0, 0), width=4)
    plan, x = choose(shape, AVX512), np.ones((1, 16, 3, 3), np.float32)
    x[0, 5] = np.inf
    weight, bias = np.ones((16, 4, 1, 1), np.float32), np.zeros(16, np.float32)

    def emit(x: Any, w: Any, b: Any, out: Any) -> None:
        write(shape, plan, lambda value, *place: value, x, w, out)

    y = run(emit, shape, plan.lanes, blocked(x, plan.lanes), pack(weight, plan), bias)
    assert np.isfinite(y).all((0, 2, 3)).tolist() == [not 4 <= channel < 8 for channel in range(16)]


def test_batch_known_when_it_runs() -> None:
    shape = grouped(20, (5, 6), 3, 1, (1, 1, 1, 1), batch=te.var("n", "int32"))
    check(shape, Plan(16, 4, 2), 3)
