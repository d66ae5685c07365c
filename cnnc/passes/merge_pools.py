"""Make one max-pool of two that follow each other.

The maximum of maxima is the maximum of all: max-pools of windows k1 at stride s1, then k2 at s2, are one of windows
k1 + (k2 - 1)*s1 at stride s1*s2, padded by p1 + p2*s1. It takes the same maxima, so the result is the same number.

Its windows read the same places where those of the first pool leave no gaps (s1 <= k1) and, if the second is padded
after the map (p2 > 0), reach the end of the map: what stands there for a window of padding would be a window of the
map's last places, which the first pool left out. Both pools must be plain: not dilated, and none of their windows cut
short by `ceil`. Cheaper where a place of the result costs fewer comparisons than those places of both pools which it
is made of: two pools of 2x2 at stride 2 are, two of 5x5 at stride 1 are not.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from cnnc import ops
from cnnc.ir.attrs import Padding
from cnnc.ir.dim import exact_quotient
from cnnc.ir.graph import Node, Value
from cnnc.passes.cost import nominal
from cnnc.passes.engine import Pass, Refusal, Sweep


def merge(node: Node, sweep: Sweep) -> Value | None:
    """maxpool of maxpool as one maxpool."""
    second, before = node.op, node.inputs[0] if node.inputs else None
    if not isinstance(second, ops.MaxPool) or not isinstance(before, Node) or not isinstance(before.op, ops.MaxPool):
        return None
    first = before.op
    if not sweep.used_once(before):
        raise Refusal(f"the result of `{before.name}` is read elsewhere too")
    _check_plain(before)
    _check_plain(node)
    if first.stride[0] > first.kernel[0] or first.stride[1] > first.kernel[1]:
        raise Refusal(f"the windows of `{before.name}` leave gaps")
    kernel = _wider(first.kernel, second.kernel, first.stride)
    merged = ops.MaxPool(
        kernel=kernel,
        stride=(first.stride[0] * second.stride[0], first.stride[1] * second.stride[1]),
        pad=_padding(node, before, first.stride),
    )
    both = prod(first.kernel) * nominal(before.type.size) + prod(second.kernel) * nominal(node.type.size)
    if prod(kernel) * nominal(node.type.size) > both:
        raise Refusal(f"one pool of {kernel[0]}x{kernel[1]} windows costs more than both")
    return Node(merged, before.inputs, {}, node.name, node.origin)


def _wider(first: tuple[int, int], second: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    return first[0] + (second[0] - 1) * stride[0], first[1] + (second[1] - 1) * stride[1]


def _check_plain(pool: Node) -> None:
    """Refusal for dilated windows and for those that `ceil` adds."""
    assert isinstance(pool.op, ops.MaxPool)
    if pool.op.dilation != (1, 1):
        raise Refusal(f"the windows of `{pool.name}` are dilated")
    if replace(pool.op, ceil=False).result(pool.inputs[0].type) != pool.type:
        raise Refusal(f"`ceil` gives `{pool.name}` windows that reach past the map")


def _padding(node: Node, before: Node, stride: tuple[int, int]) -> Padding:
    """p1 + p2*s1: top, left, bottom, right. Refusal where padding stands for windows of the map."""
    assert isinstance(node.op, ops.MaxPool)
    assert isinstance(before.op, ops.MaxPool)
    x = before.inputs[0].type
    inner, outer = before.op.pads(x), node.op.pads(before.type)
    found: list[int] = []
    for side, (p1, p2) in enumerate(zip(inner, outer, strict=True)):
        axis = side % 2
        if not isinstance(p1, int) or not isinstance(p2, int):
            raise Refusal("the padding depends on the size of the input")
        room = x.shape[2 + axis] + inner[axis] + inner[axis + 2] - before.op.kernel[axis]
        if side > 1 and p2 and exact_quotient(room, stride[axis]) is None:
            raise Refusal(f"the windows of `{before.name}` may leave out the end of the map, where this pool is padded")
        found.append(p1 + p2 * stride[axis])
    top, left, bottom, right = found
    return top, left, bottom, right


MERGE_POOLS = Pass("merge_pools", __doc__ or "", (merge,), level=1, of=(ops.MaxPool,))
