"""Convolutions one after the other, row by row: what lies between them never leaves a core's second cache.

A depthwise convolution does little with each number that it reads, so from memory its image takes longer to come than
its sums to be computed. Here each task computes some rows of the last convolution. For a row, it has the one before
compute the rows that the windows newly reach, into a ring that holds as many as a window has. Around the border of two
tasks both compute the rows that windows of both reach.

There are three forms: pointwise and depthwise, depthwise and pointwise, and pointwise on both sides of depthwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from cnnc_tvm import conv_depthwise, conv_direct, conv_direct_plan
from cnnc_tvm.conv_shape import ConvShape, Finish, Machine, as_they_are
from cnnc_tvm.tensor import Expr

_MANY = 0.8
"""Images between the convolutions that come from memory if they are stored, as a share of the cores' second caches."""
_FEW = 0.6
"""Weights and rings that stay in a second cache beside the rest, as a share of it."""
_NARROW = 4
"""Columns of a row from which on its tiles are full enough: alone, pointwise convolution takes several rows as one."""
_TWICE = 1.2
"""Rows of the first image that tasks compute for each that is needed, at most."""
_ANY = 3
"""The batch that one of any size is taken for: what it decides is within some percent of the best at 1 and at 8."""

Stage: TypeAlias = conv_direct_plan.Plan | conv_depthwise.Plan


@dataclass(frozen=True)
class Plan:
    """The sizes a kernel is generated with."""

    stages: tuple[Stage, ...]
    chunk: int
    """Rows of the last convolution in a task."""


def takes(shapes: Sequence[ConvShape], lanes: int) -> bool:
    """Whether the convolutions have one of the forms. A pointwise one after a depthwise one must have fewer filters
    than channels: the image that is better not stored is the one with the most."""
    match [_kind(shape, lanes) for shape in shapes]:
        case ["pointwise", "depthwise"]:
            return True
        case ["depthwise", "pointwise"] | ["pointwise", "depthwise", "pointwise"]:
            return shapes[-1].filters < shapes[-1].channels
    return False


def _kind(shape: ConvShape, lanes: int) -> str:
    if shape.groups > 1:
        narrow = shape.channels // shape.groups < lanes  # others are computed directly
        return "depthwise" if narrow and conv_depthwise.takes(shape, lanes) else ""
    return "pointwise" if (shape.kernel, shape.stride, any(shape.pads)) == ((1, 1), (1, 1), False) else ""


def choose(shapes: Sequence[ConvShape], machine: Machine) -> Plan | None:
    """The plan for convolutions that `takes` says; None where each by itself is expected to be faster.

    So it is where their images stay in the caches anyway, where the weights, which are read anew for each row, do not,
    where rows are too short for a tile, and where tasks have so few rows that many are computed twice.
    """
    batch = shapes[0].batch if isinstance(shapes[0].batch, int) else _ANY
    between = [4 * batch * before.filters * prod(before.out) for before in shapes[:-1]]
    weights = sum(4 * shape.filters * shape.channels // shape.groups * prod(shape.kernel) for shape in shapes)
    rings = sum(4 * after.channels * after.image[1] * min(after.span[0], after.image[0]) for after in shapes[1:])
    if max(between) < _MANY * machine.l2 * machine.cores or weights + rings > _FEW * machine.l2:
        return None
    if min(shape.out[1] for shape in shapes) < _NARROW:
        return None
    best, height = plan(shapes, machine), shapes[-1].out[0]
    twice = -(-height // best.chunk) * _reached(shapes, best.chunk) / _reached(shapes, height)
    return best if twice <= _TWICE else None


def plan(shapes: Sequence[ConvShape], machine: Machine) -> Plan:
    """The plan with the fewest rows for the core that has the most."""
    height, batch = shapes[-1].out[0], shapes[0].batch if isinstance(shapes[0].batch, int) else 1

    def rows(chunk: int) -> int:
        tasks = batch * -(-height // chunk)
        return int(-(-tasks // machine.cores) * _reached(shapes, chunk))

    stages = tuple(
        conv_direct_plan.choose_row(shape, machine) if shape.groups == 1 else conv_depthwise.choose(shape, machine)
        for shape in shapes
    )
    return Plan(stages, min(sorted({-(-height // n) for n in range(1, height + 1)}, reverse=True), key=rows))


def _reached(shapes: Sequence[ConvShape], chunk: int) -> int:
    """Rows of the first image that so many rows of the last reach."""
    (shape,) = (shape for shape in shapes if shape.groups > 1)
    return (chunk - 1) * shape.stride[0] + max(shape.span[0], shape.stride[0])


def _windowed(shape: ConvShape) -> bool:
    """Whether a row of the result needs others of the image than the one at its place."""
    return (shape.span[0], shape.stride[0], shape.pads[0], shape.pads[2]) != (1, 1, 0, 0)


def write(
    shapes: Sequence[ConvShape], plan: Plan, finishes: Sequence[Finish], x: Any, weights: Sequence[Any], out: Any
) -> None:
    """Emit the convolutions, the first of x; to be called inside a `T.prim_func`.

    There are an epilogue and packed weights, as its stage of the plan asks for, for each.
    """
    height, batch = shapes[-1].out[0], shapes[-1].batch
    chunks = -(-height // plan.chunk)
    with T.parallel(batch * chunks) as task:
        n, first = T.bind(task // chunks), T.bind(task % chunks * plan.chunk)
        kernel = _Kernel(shapes, plan, finishes, x, weights, out, n, first)
        with T.serial(te.min(plan.chunk, height - first)) as k:
            kernel.row(len(shapes) - 1, T.bind(first + k))


def newly_reached(shape: ConvShape, i: Expr, first: Expr) -> tuple[Expr, Expr]:
    """The rows begin .. end - 1 of the image that windows at row i reach and those at rows first .. i - 1 do not."""
    top, stride, span = shape.pads[0], shape.stride[0], shape.span[0]
    before = tirx.Select(i > first, (i - 1) * stride - top + span, 0)
    return te.max(te.max(i * stride - top, 0), before), te.min(i * stride - top + span, shape.image[0])


class _Kernel:
    """The convolutions of image n, whose last has its rows from `first` on computed in order."""

    def __init__(
        self, shapes: Sequence[ConvShape], plan: Plan, finishes: Sequence[Finish], x: Any, weights: Sequence[Any],
        out: Any, n: Expr, first: Expr,
    ) -> None:  # fmt: skip
        self.shapes, self.plan, self.finishes, self.weights, self.out = shapes, plan, finishes, weights, out
        self.n, self.first = n, first
        held = [min(after.span[0], after.image[0]) for after in shapes[1:]]  # rows in each ring
        self.rings = [
            _Ring(T.alloc_buffer((1, -(-after.channels // lanes), rows, after.image[1], lanes)), rows)
            for after, rows, lanes in zip(shapes[1:], held, (stage.lanes for stage in plan.stages), strict=False)
        ]
        self.images = [_Image(x, n), *self.rings]

    def row(self, s: int, i: Expr) -> None:
        """Compute row i of convolution s, and before it what that needs."""
        shape = self.shapes[s]
        if s and not _windowed(shape):
            self.row(s - 1, i)
        elif s:
            begin, end = map(T.bind, newly_reached(shape, i, self.first))
            with T.serial(end - begin) as k:
                self.row(s - 1, T.bind(begin + k))
        if s == len(self.shapes) - 1:
            self.store(s, i, self.finishes[s], self.out, self.n, as_they_are)
        else:
            ring, finish = self.rings[s], self.finishes[s]
            self.store(
                s, i, lambda value, _n, block, lane, _i, j: finish(value, self.n, block, lane, i, j),
                ring.buffer, 0, lambda i, j: (ring.row(i), j),
            )  # fmt: skip

    def store(self, s: int, i: Expr, finish: Finish, out: Any, n: Expr, placed: Any) -> None:
        shape, stage, image, w = self.shapes[s], self.plan.stages[s], self.images[s], self.weights[s]
        if isinstance(stage, conv_direct_plan.Plan):
            near = conv_direct.Near(image=s > 0, result=s < len(self.rings))
            conv_direct.write_row(shape, stage, finish, image, w, out, n, i, placed, near)
        else:
            conv_depthwise.write_row(shape, stage, finish, image, w, out, n, i, placed)


@dataclass(frozen=True)
class _Ring:
    """The rows of an image that were computed last."""

    buffer: Any
    rows: int

    def row(self, i: Expr) -> Expr:
        """Where in the ring a row of the image is."""
        return tirx.truncmod(i, self.rows)

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        _, block, i, j, lane = index
        return self.buffer[0, block, self.row(i), j, lane]


@dataclass(frozen=True)
class _Image:
    """One of the images in a buffer."""

    buffer: Any
    n: Expr

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        _, *place = index
        return self.buffer[self.n, *place]
