"""Winograd's convolution of the target `cpu`, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import te, tirx

from cnnc_tvm.conv_shape import ConvShape, Machine
from cnnc_tvm.conv_winograd import matrices, pack, write
from cnnc_tvm.conv_winograd_plan import Plan, choose
from conv_kernels import blocked, run
from numerics import Array

BOUND = {2: 16.0, 4: 32.0}
"""The factor of u*S for each m, S the largest of the places that may share a tile."""


def reference(x: Array, weight: Array, shape: ConvShape) -> Array:
    top, left, bottom, right = shape.pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return np.einsum("ncijrs,kcrs->nkij", windows, weight.astype(np.float64), optimize=True)


def around(size: Array, m: int) -> Array:
    """The largest of the places less than m rows and columns away."""
    padded = np.pad(size, ((0, 0), (0, 0), (m - 1, m - 1), (m - 1, m - 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * m - 1, 2 * m - 1), (2, 3))
    return np.asarray(windows.max((4, 5)))


def error(shape: ConvShape, plan: Plan, x: Array) -> float:
    """The largest error in units of u*S of a convolution, a residual added, a ReLU and 1 added."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((shape.filters, shape.channels, 3, 3), np.float32)
    residual = rng.standard_normal((len(x), shape.filters, *shape.out), np.float32)

    def kernel(x: Any, w: Any, residual: Any, out: Any) -> None:
        def finish(value: Any, n: Any, block: Any, lane: Any, i: Any, j: Any) -> Any:
            return tirx.max(value + residual[n, block, i, j, lane], tirx.const(0, "float32")) + tirx.const(1, "float32")

        write(shape, plan, finish, x, w, out)

    y = run(kernel, shape, plan.lanes, blocked(x, plan.lanes), pack(weight, plan), blocked(residual, plan.lanes))
    expected = np.maximum(reference(x, weight, shape) + residual, 0) + 1
    size = around(reference(abs(x), abs(weight), shape), plan.m) + abs(residual) + 1
    return float((abs(y - expected) / size).max() * 2**24)


def images(shape: ConvShape, n: int) -> Array:
    return np.random.default_rng(0).standard_normal((n, shape.channels, *shape.image), np.float32)


@pytest.mark.parametrize(
    ("shape", "plan"),
    [
        (ConvShape(2, 20, 40, (13, 7), (3, 3), pads=(1, 1, 1, 1)), Plan(4, 16, 5, 2, 3, 2)),
        (ConvShape(2, 20, 40, (13, 7), (3, 3), pads=(0, 2, 1, 0)), Plan(2, 8, 13, 2, 4, 2)),
        (ConvShape(1, 3, 5, (1, 1), (3, 3), pads=(1, 1, 1, 1)), Plan(4, 8, 1, 1, 4, 1)),
        (ConvShape(1, 24, 64, (3, 9), (3, 3)), Plan(2, 16, 3, 1, 4, 4)),
        (ConvShape(2, 20, 40, (13, 7), (3, 3), pads=(1, 1, 1, 1)), Plan(4, 16, 10, 1, 5, 2, phases=True)),
        (ConvShape(1, 9, 40, (4, 11), (3, 3), pads=(1, 2, 0, 1)), Plan(2, 8, 12, 2, 4, 2, phases=True)),
    ],
    ids=str,
)
def test_agrees(shape: ConvShape, plan: Plan) -> None:
    assert error(shape, plan, images(shape, shape.batch)) <= BOUND[plan.m]


def test_batch_known_when_it_runs() -> None:
    shape = ConvShape(te.var("n", "int32"), 16, 16, (6, 6), (3, 3), pads=(1, 1, 1, 1))
    for n in (1, 4):
        assert error(shape, Plan(4, 16, 3, 1, 3, 1), images(shape, n)) <= BOUND[4]


@pytest.mark.parametrize("m", [2, 4])
def test_error_on_sparse_images(m: int) -> None:
    """Where a place reads zeros, but others of its tile do not."""
    shape = ConvShape(6, 16, 32, (24, 24), (3, 3), pads=(1, 1, 1, 1))
    less = np.array([0, 0, 1, 1, 2, 2], np.float32).reshape(-1, 1, 1, 1)
    assert error(shape, Plan(m, 16, 24, 1, 12, 2), np.maximum(images(shape, 6) - less, 0)) <= BOUND[m]


@pytest.mark.parametrize("m", [2, 4])
def test_matrices_are_exact(m: int) -> None:
    """In rational numbers the transforms compute the correlation."""
    forward, weights, inverse = matrices(m)
    for k in range(m + 2):
        for r in range(3):
            products = [row[k] * g[r] for row, g in zip(forward, weights, strict=True)]
            assert [sum(a * p for a, p in zip(row, products, strict=True)) for row in inverse] == [
                int(i + r == k) for i in range(m)
            ]
    assert all(float(np.float32(float(c))) == c for row in (*forward, *inverse) for c in row)


SERVER = Machine(lanes=16, registers=32, cores=2)
DESKTOP = Machine(lanes=8, registers=16, cores=8)


def square(channels: int, size: int, batch: Any = 1, **more: Any) -> ConvShape:
    return ConvShape(batch, channels, channels, (size, size), **{"kernel": (3, 3), "pads": (1, 1, 1, 1), **more})


@pytest.mark.parametrize(
    ("shape", "m"),
    [
        (square(64, 56), 4),
        (square(128, 28), 4),
        (square(256, 14), 2),  # the weights of F(4x4, 3x3) take longer to read than its tiles save
        (square(512, 7), None),
        (square(512, 7, batch=8), 4),
        (square(512, 28), 4),
        (square(3, 224), None),
        (square(64, 56, stride=(2, 2)), None),
        (square(64, 56, dilation=(2, 2)), None),
        (square(64, 56, groups=2), None),
        (square(64, 56, kernel=(1, 1)), None),
    ],
    ids=str,
)
def test_chosen(shape: ConvShape, m: int | None) -> None:
    plan = choose(shape, SERVER)
    assert (plan and plan.m) == m


@pytest.mark.parametrize("machine", [SERVER, DESKTOP], ids=["avx512", "avx2"])
def test_plan_fits_the_machine(machine: Machine) -> None:
    for shape in (square(64, 56), square(512, 28), square(64, 56, batch=3)):
        plan = choose(shape, machine)
        assert plan is not None
        assert sum(plan.passes) == plan.tiles
        assert (max(plan.passes) + 1) * plan.columns + 1 <= machine.registers


def test_sizes_may_be_forbidden() -> None:
    plan = choose(square(64, 56), SERVER, sizes=(2,))
    assert plan is not None
    assert plan.m == 2
    assert choose(square(64, 56), SERVER, sizes=()) is None
