"""Rules of anchors and boxes. Those that choose boxes make them tables of positions, which the result is read by."""

from __future__ import annotations

import math
from functools import partial
from typing import TypeAlias

import numpy as np
from tvm import te, tirx

from cnnc import ops
from cnnc.ir.dim import Dim, minimum
from cnnc.ir.types import TensorType
from cnnc_tvm.builder import Builder
from cnnc_tvm.rules import CPU, CUDA, rule
from cnnc_tvm.scalar import at_least, at_most, bound, choose, exp, f32
from cnnc_tvm.selection import NONE, apart, best, key, position
from cnnc_tvm.tensor import Expr, Tensor

_THREADS = 1024
"""Threads of the block that works on an image on a GPU."""

Place: TypeAlias = tuple[Expr, Expr, Expr]
"""Which box of a place of a map, and the place's row and column."""


def _place(box: Expr, boxes: int, width: Expr) -> Place:
    """Where a box of a map is that has so many a place."""
    place = tirx.indexdiv(box, boxes)
    return tirx.indexmod(box, boxes), tirx.indexdiv(place, width), tirx.indexmod(place, width)


@rule(ops.Anchors)
def _(b: Builder, op: ops.Anchors, out: TensorType, x: Tensor) -> Tensor:
    corners = b.constant(f"{b.node}:corners", lambda: np.array(op.corners, np.float32))
    width = b.size(x.type.shape[3])

    def element(n: Expr, m: Expr, corner: Expr) -> Expr:
        k, i, j = _place(m, len(op.corners), width)
        centre = choose(corner % 2 > 0, i * op.stride[0], j * op.stride[1])
        return centre.astype("float32") + corners[k, corner]

    return b.moves(out, element)


@rule(ops.Decode)
def _(b: Builder, op: ops.Decode, out: TensorType, anchors: Tensor, deltas: Tensor) -> Tensor:
    _, channels, _, width = deltas.type.shape
    assert isinstance(channels, int)

    def element(n: Expr, m: Expr, corner: Expr) -> Expr:
        k, i, j = _place(m, channels // 4, b.size(width))
        axis = corner % 2
        first = anchors[n, m, axis]
        size = anchors[n, m, axis + 2] - first
        centre = first + size / f32(2) + deltas[n, 4 * k + axis, i, j] * size
        half = exp(at_most(deltas[n, 4 * k + axis + 2, i, j], math.log(1000 / 16))) * size / f32(2)
        return bound(half, lambda v: centre + choose(corner < 2, -v, v))

    return b.moves(out, element)


@rule(ops.ClipBoxes)
def _(b: Builder, op: ops.ClipBoxes, out: TensorType, boxes: Tensor, image: Tensor) -> Tensor:
    height, width = b.shape(image.type.shape[2:])

    def element(n: Expr, m: Expr, corner: Expr) -> Expr:
        end = choose(corner % 2 > 0, height, width).astype("float32")
        return bound(at_least(boxes[n, m, corner], 0), lambda v: choose(v > end, end, v))

    return b.moves(out, element)


def _nms(threads: int, b: Builder, op: ops.Nms, out: TensorType, boxes: Tensor, scores: Tensor) -> Tensor:
    n, count, _ = boxes.type.shape
    _, a, _, width = scores.type.shape
    assert isinstance(a, int)

    def score(n: Expr, m: Expr) -> Expr:
        k, i, j = _place(m, a, b.size(width))
        return scores[n, k, i, j]

    keys = b.store(b.moves(TensorType((n, count)), lambda n, m: key(score(n, m))))
    order = best(b, threads, keys, op.pre)

    def candidate(n: Expr, value: Expr, rank: Expr) -> Expr:
        m = position(order[n, 1, rank])
        known = te.if_then_else(value < 4, boxes[n, m, value], score(n, m))
        return te.if_then_else(m != NONE, known, f32(0))

    candidates = b.store(b.moves(TensorType((n, 5, op.pre)), candidate))
    kept = apart(b, threads, candidates, minimum(count, op.pre), op.keep, op.iou)

    def element(n: Expr, rank: Expr, value: Expr) -> Expr:
        m = position(kept[n, rank])
        return te.if_then_else(m != NONE, candidates[n, value, m], f32(0))

    return b.moves(out, element)


def _top(threads: int, b: Builder, op: ops.Top, out: TensorType, *lists: Tensor) -> Tensor:
    starts: list[Dim] = [0]
    for x in lists:
        starts.append(starts[-1] + x.type.shape[1])

    def listed(n: Expr, m: Expr, value: Expr) -> Expr:
        *before, (last, start) = zip(lists, starts, strict=False)
        found = last[n, m - b.size(start), value]
        for (x, start), stop in reversed(list(zip(before, starts[1:], strict=False))):
            found = te.if_then_else(m < b.size(stop), x[n, m - b.size(start), value], found)
        return found

    keys = b.store(b.moves(TensorType((out.shape[0], starts[-1])), lambda n, m: key(listed(n, m, 4))))
    order = best(b, threads, keys, op.k)

    def element(n: Expr, rank: Expr, value: Expr) -> Expr:
        m = position(order[n, 1, rank])
        return te.if_then_else(m != NONE, listed(n, m, value), f32(0))

    return b.moves(out, element)


for rules, threads in (CPU, 1), (CUDA, _THREADS):
    rules(ops.Nms)(partial(_nms, threads))
    rules(ops.Top)(partial(_top, threads))
