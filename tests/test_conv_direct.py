"""The kernels of direct convolution, alone, against the reference: every edge, stride, dilation and group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from cnnc import ops
from cnnc.ir.types import TensorType
from cnnc.verification.case import Case, reference
from cnnc_tvm.conv_direct import pack, write
from cnnc_tvm.conv_direct_plan import Plan, choose
from cnnc_tvm.conv_shape import ConvShape, Machine
from cnnc_tvm.scalar import exp
from conv_kernels import blocked, execute, filled, run
from numerics import assert_node_agrees, random_inputs, random_weights, single

AVX2 = Machine(lanes=8, registers=16)
AVX512 = Machine(lanes=16, registers=32, cores=2)

SAME = (1, 1, 1, 1)
SHAPES = [
    ConvShape(2, 32, 48, (5, 31), (3, 3), pads=SAME),
    ConvShape(1, 20, 40, (13, 17), (3, 3), (2, 2), pads=(0, 1, 1, 0)),
    ConvShape(1, 16, 96, (7, 7), (3, 3), pads=SAME),
    ConvShape(1, 16, 24, (11, 20), (5, 3), (1, 2), (2, 3), (4, 3, 2, 5)),
    ConvShape(1, 5, 7, (1, 1), (3, 3), pads=SAME),
    ConvShape(2, 33, 17, (3, 2), (7, 7), (3, 2), pads=(3, 3, 3, 3)),
    ConvShape(1, 8, 16, (1, 70), (1, 9), pads=(0, 8, 0, 3)),
    ConvShape(1, 64, 96, (6, 5), (3, 3), pads=SAME, groups=2),
    ConvShape(1, 16, 32, (4, 60), (3, 3), dilation=(12, 12), pads=(12, 12, 12, 12)),
    ConvShape(2, 40, 80, (7, 8), (1, 1)),
    ConvShape(1, 32, 32, (7, 9), (1, 1), (2, 2)),
    ConvShape(1, 16, 16, (3, 4), (1, 1), pads=(1, 0, 0, 2)),
]


def check(shape: ConvShape, plan: Plan, batch: int | None = None) -> None:
    op = ops.Conv(
        shape.filters, shape.kernel, stride=shape.stride, pad=shape.pads, dilation=shape.dilation, groups=shape.groups
    )
    graph = single(op, TensorType((batch or shape.batch, shape.channels, *shape.image)))
    weights, inputs = random_weights(graph), random_inputs(graph)
    kernel, bias = weights["node.weight"], weights["node.bias"]
    x = inputs["x0"] if plan.depth == 1 else blocked(inputs["x0"], plan.lanes)

    def emit(x: Any, w: Any, b: Any, out: Any) -> None:
        write(shape, plan, lambda value, n, block, lane, i, j: value + b[block * plan.lanes + lane], x, w, out)

    y = run(emit, shape, plan.lanes, x, pack(kernel, plan, shape.groups), filled(bias, plan.lanes))
    assert_node_agrees(graph, weights, inputs, {"y": y})


@pytest.mark.parametrize("machine", [AVX2, AVX512], ids=["avx2", "avx512"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees(shape: ConvShape, machine: Machine) -> None:
    check(shape, choose(shape, machine))


def test_batch_known_when_it_runs() -> None:
    shape = ConvShape(te.var("n", "int32"), 16, 32, (5, 6), (3, 3), pads=SAME)
    plan = choose(replace(shape, batch=1), AVX512)
    for batch, once in (1, False), (3, True):
        check(shape, replace(plan, chunk=2, weights_once=once), batch)


@pytest.mark.parametrize(("columns", "blocks", "rows"), [(1, 3, 1), (5, 2, 2), (12, 1, 2)])
def test_any_tile(columns: int, blocks: int, rows: int) -> None:
    """Tiles that do not divide the columns or the filters."""
    shape = ConvShape(1, 16, 48, (5, 23), (3, 3), (1, 2), pads=SAME)
    check(shape, replace(choose(shape, AVX512), columns=columns, blocks=blocks, rows=rows, chunk=4))


def test_rows_of_a_tile_that_see_the_image_at_other_rows_of_the_window() -> None:
    """The first at the last row of the window alone, the second at the first one."""
    shape = ConvShape(1, 16, 16, (1, 5), (3, 3), (2, 1), pads=(2, 1, 2, 1))
    check(shape, Plan(16, 2, 5, 1, 2, False, 16, shape.image))


@pytest.mark.parametrize(("channels", "machine"), [(1, AVX2), (3, AVX512)])
def test_image_that_is_not_in_blocks(channels: int, machine: Machine) -> None:
    shape = ConvShape(2, channels, 24, (15, 17), (7, 7), (2, 2), pads=(3, 3, 3, 3))
    check(shape, choose(shape, machine, plain=True))


@pytest.mark.parametrize("kernel", [1, 3])
def test_epilogue_knows_its_element(kernel: int) -> None:
    """Also where the image is walked with other rows."""
    pad = kernel // 2
    shape = ConvShape(2, 16, 32, (6, 7), (kernel, kernel), pads=(pad, pad, pad, pad))
    plan = choose(shape, AVX512)
    assert (plan.image == shape.image) == (kernel == 3)
    op = ops.Conv(32, kernel, pad=pad, bias=False)
    graph = single(op, TensorType((2, 16, 6, 7)))
    weights, inputs = random_weights(graph), random_inputs(graph)
    other = np.random.default_rng(0).integers(-9, 9, (2, 32, 6, 7)).astype(np.float32)

    def emit(x: Any, w: Any, other: Any, out: Any) -> None:
        write(shape, plan, lambda value, n, block, lane, i, j: value + other[n, block, i, j, lane], x, w, out)

    x, packed = blocked(inputs["x0"], 16), pack(weights["node.weight"], plan)
    y = run(emit, shape, 16, x, packed, blocked(other, 16))
    expected = reference(Case(graph, weights, inputs))["y"] + other
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_epilogue_that_calls_functions() -> None:
    shape = ConvShape(1, 16, 24, (7, 7), (3, 3), pads=SAME)
    plan = choose(shape, AVX512)
    assert plan.rows == plan.blocks == 2
    op = ops.Conv(24, 3, pad=1)
    graph = single(op, TensorType((1, 16, 7, 7)))
    weights, inputs = random_weights(graph), random_inputs(graph)

    def emit(x: Any, w: Any, b: Any, out: Any) -> None:
        write(shape, plan, lambda value, n, block, lane, i, j: exp(value + b[block * 16 + lane]), x, w, out)

    x, bias = blocked(inputs["x0"], 16), filled(weights["node.bias"], 16)
    y = run(emit, shape, 16, x, pack(weights["node.weight"], plan), bias)
    np.testing.assert_allclose(y, np.exp(reference(Case(graph, weights, inputs))["y"]), rtol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [ConvShape(1, 2048, 128, (7, 7), (1, 1)), ConvShape(1, 1024, 272, (5, 9), (1, 1), (2, 1))],
    ids=str,
)
def test_the_next_weights_are_fetched_by_the_last_tile(shape: ConvShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, and of the weights no others: what would be fetched is marked."""
    plan = choose(shape, AVX512)
    assert not plan.weights_once
    weights = np.zeros((*pack(np.zeros((shape.filters, shape.channels, 1, 1), np.float32), plan).shape,), np.float32)
    lines = weights.size // 16

    def emit(x: Any, w: Any, out: Any, marks: Any) -> None:
        def mark(buffer: Any, *index: Any, level: int = 1, write: bool = False) -> None:
            if level == 1:
                return
            assert buffer is w
            place = 0
            for i, size in zip(index, w.shape, strict=True):
                place = place * size + i
            with T.If(place < weights.size), T.Then():
                T.buffer_store(marks, 1.0, [0, tirx.floordiv(place, 16)])

        monkeypatch.setattr("cnnc_tvm.conv_direct.prefetch", mark)
        write(shape, plan, lambda value, n, block, lane, i, j: value, x, w, out)

    image, result = (np.zeros((1, c // 16, *size, 16), np.float32) for c, size in (
        (shape.channels, shape.image), (shape.filters, shape.out)))
    marks = execute(emit, [image, weights, result], (lines,), 1)[0].reshape(len(weights), -1)
    assert not (marks[0] == 1).any()
    assert (marks[1:] == 1).all()
