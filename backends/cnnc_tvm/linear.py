"""Matrix products with weights on a CPU, whose time is that of reading the weights: each is read from memory once.

A thread computes some vectors of outputs for some rows of the batch at a time, whose sums stay in registers. The
weights of these outputs lie one after the other; for further rows they come from a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import te
from tvm.script.ir_builder import tirx as T

from cnnc.ir.types import DType
from cnnc_tvm.conv_shape import Machine
from cnnc_tvm.conv_tiles import zero
from cnnc_tvm.prefetch import prefetch
from cnnc_tvm.tensor import Expr, loaded

if TYPE_CHECKING:
    from cnnc.target import Array

_ROWS = 8
"""Rows at a time at most."""
_FORK = 2**15
"""Products below which waking other threads takes longer than it saves."""
_AHEAD = 16
"""Features between the weights that are multiplied and those fetched: the processor by itself stops at pages' ends."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a product: x [batch, features] by weights [outputs, features]."""

    batch: Expr
    features: int
    outputs: int


@dataclass(frozen=True)
class Plan:
    """The sizes a kernel is generated with."""

    lanes: int
    blocks: int
    """Vectors of outputs that a thread computes at a time."""
    rows: int
    """Rows of the batch at a time."""
    parallel: bool

    @property
    def wide(self) -> int:
        """Outputs that a thread computes at a time."""
        return self.lanes * self.blocks


def choose(shape: Shape, machine: Machine) -> Plan:
    """As many rows as registers hold, and so many vectors that sums need not wait and each core gets some."""
    most = min(_ROWS, (machine.registers - 3) // 2)
    batch = shape.batch if isinstance(shape.batch, int) else most
    rows = -(-batch // -(-batch // most))
    vectors = -(-shape.outputs // machine.lanes)
    fits = (blocks for blocks in (4, 2) if rows * blocks + blocks < machine.registers)
    blocks = next((blocks for blocks in fits if -(-vectors // blocks) >= 4 * machine.cores), 1)
    return Plan(machine.lanes, blocks, rows, batch * shape.features * shape.outputs > _FORK and machine.cores > 1)


def pack(weight: Array, plan: Plan) -> Array:
    """Weights [outputs, features] as [ceil(outputs / wide), features, wide], zeros after the last output."""
    outputs, features = weight.shape
    full = np.zeros((-(-outputs // plan.wide) * plan.wide, features), weight.dtype)
    full[:outputs] = weight
    return np.ascontiguousarray(full.reshape(-1, plan.wide, features).swapaxes(1, 2))


def write(shape: Shape, plan: Plan, dtype: DType, finish: Callable[..., Expr], x: Any, w: Any, y: Any) -> None:
    """Emit the product of x, in f32, by the weights `w` that `pack` made, stored as `dtype`.

    `finish(sum, n, o)` is stored at [n, o]. To be called inside a `T.prim_func`.
    """
    count = -(-shape.outputs // plan.wide)
    with (T.parallel if plan.parallel else T.serial)(count) as group:
        sums = [[T.alloc_buffer((plan.lanes,)) for _ in range(plan.blocks)] for _ in range(plan.rows)]
        done = T.alloc_buffer((plan.rows, plan.wide))
        with T.serial((shape.batch + plan.rows - 1) // plan.rows) as t:
            first = T.bind(t * plan.rows)
            left = shape.batch - first

            def tile(rows: int) -> None:
                _sums(shape, plan, dtype, group, first, sums[:rows], x, w)
                for u, row in enumerate(sums[:rows]):
                    for k, total in enumerate(row):
                        with T.vectorized(plan.lanes) as lane:
                            T.buffer_store(done, total[lane], [u, k * plan.lanes + lane])
                with T.serial(te.min(rows, left)) as u:
                    _finish(shape, plan, finish, done, u, first + u, group, y)

            if plan.rows == 1:
                tile(1)
                return
            with T.If(left == 1):
                with T.Then():
                    tile(1)
                with T.Else():
                    tile(plan.rows)


def _sums(
    shape: Shape, plan: Plan, dtype: DType, group: Expr, first: Expr, sums: list[list[Any]], x: Any, w: Any
) -> None:
    """The sums of some rows; those past the last repeat it."""
    for row in sums:
        for total in row:
            zero(total, plan.lanes)
    rows = [T.bind(te.min(first + u, shape.batch - 1)) for u in range(len(sums))]
    with T.serial(shape.features) as f:
        for k in range(plan.blocks):
            prefetch(w, group, f, (k + _AHEAD * plan.blocks) * plan.lanes)
        for n, row in zip(rows, sums, strict=True):
            for k, total in enumerate(row):
                with T.vectorized(plan.lanes) as lane:
                    weight = loaded(w[group, f, k * plan.lanes + lane], dtype)
                    T.buffer_store(total, total[lane] + x[n, f] * weight, [lane])


def _finish(
    shape: Shape, plan: Plan, finish: Callable[..., Expr], done: Any, u: Expr, n: Expr, group: Expr, y: Any
) -> None:
    """Finish and store row n, whose sums are in row u of `done`."""
    with T.serial(plan.blocks) as k:
        start = T.bind(group * plan.wide + k * plan.lanes)

        def element(lane: Expr) -> None:
            T.buffer_store(y, finish(done[u, k * plan.lanes + lane], n, start + lane), [n, start + lane])

        with T.If(start + plan.lanes <= shape.outputs):
            with T.Then(), T.vectorized(plan.lanes) as lane:
                element(lane)
            with T.Else(), T.serial(te.max(shape.outputs - start, 0)) as lane:
                element(lane)
